"""One measure of difference for all numerical tests: against the largest entry of what is expected."""

from torch import Tensor

__all__ = ["TOLERANCE", "assert_same", "difference"]

TOLERANCE = 1e-5


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected entry (over 1 if all of it is zero, or empty)."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    largest = float(expected.abs().max()) or 1.0
    return float((actual - expected).abs().max()) / largest


def assert_same(actual: Tensor | None, expected: Tensor | None, what: str, tolerance: float = TOLERANCE) -> None:
    assert actual is not None, f"{what} is missing"
    assert expected is not None, f"{what}: nothing to compare with"
    error = difference(actual.detach(), expected.detach())
    assert error <= tolerance, f"{what} is off by {error:.1e} of its largest entry"
