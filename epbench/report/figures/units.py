"""GiB, or MiB where a model is so small that its GiB would be a row of noughts."""

from dataclasses import dataclass

from epbench.report.figures.base import rounded

__all__ = ["Unit"]


@dataclass(frozen=True)
class Unit:
    """What bytes are shown in, one for all charts and tables of a section: a test's model has no GiB."""

    name: str
    bytes: int

    @classmethod
    def of(cls, largest: float) -> "Unit":
        """GiB, or MiB below a tenth of one."""
        return cls("GiB", 2**30) if largest >= 0.1 * 2**30 else cls("MiB", 2**20)

    def of_bytes(self, count: float) -> float:
        """The number to draw."""
        return rounded(count / self.bytes) or 0.0
