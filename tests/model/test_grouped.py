"""The grouped product against one product per expert, and what its registration with torch promises."""

import pytest
import torch
from torch import Tensor

from epbench.model.grouped import grouped_linear
from tests.model.compare import assert_same

IN, OUT = 16, 24
ROWS = {
    "even": [4, 4, 4, 4],
    "uneven": [3, 1, 7, 2],
    "an expert without rows": [5, 0, 2, 3],
    "the first and last without rows": [0, 3, 6, 0],
    "all rows on one expert": [0, 0, 9, 0],
    "no rows at all": [0, 0, 0, 0],
}


def _operands(rows: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(sum(rows), IN, generator=generator).to(dtype)
    weight = torch.randn(len(rows), OUT, IN, generator=generator).to(dtype)
    offsets = torch.tensor(rows).cumsum(0).to(torch.int32)
    return x.requires_grad_(), weight.requires_grad_(), offsets


def _loop(x_RI: Tensor, weight_EOI: Tensor, rows: list[int]) -> Tensor:
    return torch.cat([part @ weight.T for part, weight in zip(x_RI.split(rows), weight_EOI, strict=True)])


@pytest.mark.parametrize("case", ROWS)
def test_values_and_gradients_are_those_of_a_loop(case: str) -> None:
    x, weight, offsets = _operands(ROWS[case])
    expected = _loop(x, weight, ROWS[case])
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    dx, dw = torch.autograd.grad(expected, (x, weight), gradient)

    result = grouped_linear(x, weight, offsets)
    result.backward(gradient)
    assert_same(result, expected, "output")
    assert_same(x.grad, dx, "gradient of the rows")
    assert_same(weight.grad, dw, "gradient of the weights")


@pytest.mark.parametrize("case", ROWS)
def test_an_expanded_gradient_is_accepted(case: str) -> None:
    """``F.grouped_mm`` alone refuses the stride-0 gradient that ``sum()`` sends back.

    Without rows that gradient calls itself contiguous and has stride 0 all the same.
    """
    x, weight, offsets = _operands(ROWS[case])
    grouped_linear(x, weight, offsets).sum().backward()
    dx, dw = torch.autograd.grad(_loop(x, weight, ROWS[case]).sum(), (x, weight))
    assert_same(x.grad, dx, "gradient of the rows")
    assert_same(weight.grad, dw, "gradient of the weights")


def test_an_expert_without_rows_gets_a_gradient_of_exactly_zero() -> None:
    """Not uninitialised memory: AdamW would carry it into the weights of every idle expert."""
    x, weight, offsets = _operands([5, 0, 2, 0])
    grouped_linear(x, weight, offsets).square().sum().backward()
    assert weight.grad is not None
    assert not weight.grad[1].any()
    assert not weight.grad[3].any()
    assert weight.grad[0].any()


def test_bfloat16_stays_bfloat16() -> None:
    rows = [5, 0, 8, 3]
    x, weight, offsets = _operands(rows, torch.bfloat16)
    result = grouped_linear(x, weight, offsets)
    result.square().sum().backward()
    assert result.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert_same(result.float(), _loop(x.float(), weight.float(), rows), "output", tolerance=2**-8)


def test_fp32_weights_under_bf16_rows_are_narrowed_inside() -> None:
    """What rounding them beforehand gives, bit for bit; only the weights' gradient is fp32."""
    rows = [5, 0, 8, 3]
    x, weight, offsets = _operands(rows)
    results = []
    for weights in (weight, weight.detach().bfloat16().requires_grad_()):
        narrow = x.detach().bfloat16().requires_grad_()
        y = grouped_linear(narrow, weights, offsets)
        y.square().sum().backward()
        assert weights.grad is not None
        assert weights.grad.dtype == weights.dtype
        results.append([y, narrow.grad, weights.grad.bfloat16()])
    for mixed, uniform in zip(*results, strict=True):
        assert mixed is not None
        assert mixed.dtype == torch.bfloat16
        assert_same(mixed, uniform, "mixed precision", tolerance=0)


def test_the_op_is_what_it_tells_the_compiler() -> None:
    """Fake kernel, schema and autograd agree with the real ones, also with an unknown number of rows."""
    torch.library.opcheck(torch.ops.epbench.grouped_linear.default, _operands([5, 0, 2, 3]))


def test_compiled_code_follows_the_number_of_rows_without_compiling_again() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(grouped_linear, backend="aot_eager", fullgraph=True)
    for rows in ([3, 1, 7, 2], [6, 0, 2, 3], [0, 0, 17, 4]):
        x, weight, offsets = _operands(rows)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert_same(compiled(x, weight, offsets), _loop(x, weight, rows), f"output for {rows}")
