"""What a rule gives: one sentence, the chart that shows it, and how much it matters."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from epbench.analysis.statistics import MIN_LAUNCHES, Interval, ties
from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, step_launches, step_rounds
from epbench.report.text import join

__all__ = [
    "DOUBT",
    "FAILURE",
    "Finding",
    "Rule",
    "best_of",
    "fastest_cells",
    "gain",
    "group_of",
    "listed",
    "ranked",
    "share",
]

# What has no share of the step is given one: a number that may be wrong matters more than any that is right, and a
# cell that failed more than most differences.
DOUBT, FAILURE = 1.0, 0.5
_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One sentence; ``chart`` is the key of the chart, or section, that shows it.

    ``weight`` orders findings: the share of a step's time that the sentence is about, 0 to 1, or what stands for one.
    """

    text: str
    chart: str
    weight: float


Rule = Callable[[Compared], Finding | None]  # None: nothing to say, or not enough is recorded to say it


def ranked(group: Group) -> list[CellResult]:
    """Measured cells of a group with launches enough for an interval."""
    return [cell for cell in group.measured if len(step_launches(cell)) >= MIN_LAUNCHES]


def best_of(group: Group) -> list[CellResult]:
    """Those of a group that cannot be told apart and no cell is faster than, see ``ties``; empty below two ranked."""
    cells = {cell.cell: cell for cell in ranked(group)}
    if len(cells) < 2:
        return []
    return [cells[name] for name in ties({name: step_rounds(cell) for name, cell in cells.items()})]


def fastest_cells(compared: Compared) -> Iterator[CellResult]:
    """Of each group that has one, the cell that is fastest; of a tie, none is."""
    yield from (best[0] for group in compared.groups if len(best := best_of(group)) == 1)


def gain(ratio: Interval | None) -> float:
    """Share of the step that a speed ratio saves, 0 where the interval does not exclude 1."""
    return abs(1 - 1 / ratio.value) if ratio is not None and ratio.excludes(1.0) else 0.0


def share(fraction: float) -> str:
    """``29 %``; one decimal below ten."""
    return f"{fraction * 100:.0f} %" if fraction >= 0.0995 else f"{fraction * 100:.1f} %"


def group_of(compared: Compared, cell: CellResult) -> Group:
    """The group that a cell belongs to."""
    return next(group for group in compared.groups if any(one.cell == cell.cell for one in group.cells))


def listed(names: Sequence[str]) -> str:
    """The first three by name, the others counted."""
    left = len(names) - _NAMED
    return join([*names[:_NAMED], f"{left} more"]) if left > 0 else join(list(names))
