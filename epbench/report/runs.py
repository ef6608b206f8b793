"""Two runs or more of the same cells: what changed, by how much, and what else differs between them.

Cells are matched by what they are: layout, mode, routing, ranks, model and training settings; a setting that an older
version did not know has its default. All comparisons are of speed, of the last run against the first, as inside a run.

Launches of two runs are no pairs: another time, another machine start. So the interval is Welch's, and it knows only
how launches scatter inside the runs. What a machine start adds is in no launch of one run and so in no interval; where
it matters, an interleaved comparison tells more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from epbench.analysis.statistics import Interval, rank_p, unpaired_ratio
from epbench.cell_content import content_key, with_defaults
from epbench.errors import RunError
from epbench.records import CellResult
from epbench.report.comparison import Naming, is_measured, step_launches
from epbench.report.data import RunData
from epbench.report.provenance import Difference, provenance_diff
from epbench.report.text import clean
from epbench.report.verdict import NOT_RUN

__all__ = ["Change", "ComparedRuns", "Word", "compared_runs"]

Word = Literal["faster", "slower", "no difference", "unknown"]


@dataclass(frozen=True)
class Change:
    """One cell in every run, in the order given; None where a run does not have it."""

    name: str
    cells: tuple[CellResult | None, ...]

    @property
    def cell(self) -> CellResult:
        """The cell as the latest run that has it knows it."""
        return next(cell for cell in reversed(self.cells) if cell is not None)

    @property
    def is_common(self) -> bool:
        """Whether the first run and the last both have the cell."""
        return self.cells[0] is not None and self.cells[-1] is not None

    @cached_property
    def speed(self) -> Interval | None:
        """Speed in the last run over that in the first; None where either has no number."""
        first, last = (_steps(cell) for cell in (self.cells[0], self.cells[-1]))
        return unpaired_ratio(last, first)

    @cached_property
    def p(self) -> float | None:
        """Two-sided, that the steps of the first run and the last are alike (Mann-Whitney); shown, decides nothing."""
        first, last = (_steps(cell) for cell in (self.cells[0], self.cells[-1]))
        return rank_p(first, last)

    @cached_property
    def device_work(self) -> Interval | None:
        """The same of device work time: less of it is faster."""
        first, last = (_device_work(cell) for cell in (self.cells[0], self.cells[-1]))
        return unpaired_ratio(last, first)

    @property
    def word(self) -> Word:
        """What the interval of the speed bears out; unknown where there is none."""
        if self.speed is None or not self.speed.known:
            return "unknown"
        if not self.speed.excludes(1.0):
            return "no difference"
        return "faster" if self.speed.value > 1 else "slower"

    @property
    def outcomes(self) -> tuple[str | None, ...]:
        """How the cell ended in each run; None where a run does not have it."""
        return tuple(None if cell is None else cell.outcome or NOT_RUN for cell in self.cells)

    @property
    def has_new_outcome(self) -> bool:
        """Whether the cell ended differently in the last run than in the first, both having it."""
        return self.is_common and self.outcomes[0] != self.outcomes[-1]


@dataclass(frozen=True)
class ComparedRuns:
    """Runs in the order given; every cell that the first or the last of them has, in the last one's order."""

    runs: tuple[RunData, ...]
    names: tuple[str, ...]  # of the runs, unique and short
    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]  # of the last run's environment from the first's

    @property
    def common(self) -> tuple[Change, ...]:
        """Cells that the first run and the last both have."""
        return tuple(change for change in self.changes if change.is_common)


def compared_runs(runs: Sequence[RunData]) -> ComparedRuns:
    """Match the cells of two runs or more.

    Raises RunError if there are fewer, if two are the same, if their protocols differ, or if the first and the last
    have no cell in common.
    """
    _require_comparable(runs)
    matched = _matched(runs)
    latest = [next(cell for cell in reversed(cells) if cell is not None) for cells in matched]
    naming = Naming.of(runs[-1].view.model_copy(update={"cells": latest}))
    changes = (Change(naming.full(cell), cells) for cell, cells in zip(latest, matched, strict=True))
    shown = tuple(change for change in changes if change.cells[0] is not None or change.cells[-1] is not None)
    if not any(change.is_common for change in shown):
        raise RunError("these runs have no cell in common: layout, mode, routing, model or training settings differ")
    return ComparedRuns(tuple(runs), _names(runs), shown, provenance_diff(runs[-1].view, runs[0].view))


def _require_comparable(runs: Sequence[RunData]) -> None:
    if len(runs) < 2:
        raise RunError("a comparison needs two runs or more")
    paths = [run.path.resolve() for run in runs if run.path is not None]
    if len(set(paths)) < len(paths):
        raise RunError("a run is given twice: a comparison needs different runs")
    protocols = [run.view.protocol for run in runs]
    if len(set(protocols)) > 1:
        listed = ", ".join(f"'{_name(run)}' is of protocol {run.view.protocol}" for run in runs)
        raise RunError(f"these runs were measured in different ways and are never compared: {listed}")


def _matched(runs: Sequence[RunData]) -> list[tuple[CellResult | None, ...]]:
    """The cells that are the same, run by run: first in the order of the last run, then of those before it."""
    by_run = [{content_key(cell): cell for cell in map(with_defaults, run.view.cells)} for run in runs]
    keys = dict.fromkeys(key for cells in reversed(by_run) for key in cells)
    return [tuple(cells.get(key) for cells in by_run) for key in keys]


def _name(run: RunData) -> str:
    return clean(run.path.name if run.path is not None else run.view.run.name, 80)


def _names(runs: Sequence[RunData]) -> tuple[str, ...]:
    """Names of the run directories, numbered where two are the same."""
    names = [_name(run) for run in runs]
    return tuple(name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1))


def _steps(cell: CellResult | None) -> list[float]:
    return list(step_launches(cell).values()) if cell is not None and is_measured(cell) else []


def _device_work(cell: CellResult | None) -> list[float]:
    if cell is None or not is_measured(cell):
        return []
    return [launch.device_work_s for launch in cell.launch_values if launch.valid and launch.device_work_s]
