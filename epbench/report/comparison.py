"""Which cells may be compared with which, what they are called, and by how much they differ.

Layouts, modes and ways to compute (recompute policy, micro-batch, dispatcher, ...) are ranked against each
other only inside a **group**: cells that do the same work, which is one model, one routing, one batch and
precision on one number of ranks. Models of different size are never ranked as if they were layouts; they are
put side by side, layout by layout.

All comparisons are of speed: a ratio of 1.107 is 10.7 % more tokens a second than what it is compared with.
"""

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from epbench.analysis.noise import machine_start
from epbench.analysis.statistics import Interval, launch_interval, ratio_interval
from epbench.analysis.work import WAYS, work_key
from epbench.records import CellResult, RunView
from epbench.report.data import RunData
from epbench.report.text import clean, mark, shortened, told_apart

__all__ = [
    "Compared",
    "Group",
    "Naming",
    "groups_of",
    "is_measured",
    "launch_spread",
    "on_unlike_starts",
    "pareto",
    "speed_ratio",
    "step_interval",
    "step_launches",
    "step_rounds",
    "throughput",
]

_ROUTING = 40  # characters of a routing's name: "replay:" is followed by a path
_SIZE = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


@dataclass(frozen=True)
class Naming:
    """Keys of model and train that differ between the cells of a run: what a name has to say.

    ``routings`` are their short texts; ``arm_marks`` and ``work_marks``, by cell id, end the names that would
    otherwise be those of other cells, or of other work.
    """

    model_keys: tuple[str, ...]
    train_keys: tuple[str, ...]
    has_routings: bool
    has_worlds: bool
    routings: Mapping[str, str] = field(default_factory=dict)
    arm_marks: Mapping[str, str] = field(default_factory=dict)
    work_marks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, view: RunView) -> "Naming":
        """The naming of a run."""
        plain = cls(
            model_keys=_varying(cell.model for cell in view.cells),
            train_keys=_varying(cell.train for cell in view.cells),
            has_routings=len({cell.routing for cell in view.cells}) > 1,
            has_worlds=len({cell.world_size for cell in view.cells}) > 1,
            routings=told_apart((cell.routing for cell in view.cells), _ROUTING),
        )
        works = {cell.cell: work_key(cell) for cell in view.cells}
        return replace(
            plain,
            arm_marks=_marks((cell.cell, works[cell.cell] + plain.arm(cell), cell.cell) for cell in view.cells),
            work_marks=_marks((cell.cell, plain.work(cell), works[cell.cell]) for cell in view.cells),
        )

    @property
    def has_sizes(self) -> bool:
        """Whether the model varies in this run."""
        return bool(self.model_keys)

    def layout(self, cell: CellResult) -> str:
        """Layout, and the ways of computing that vary: ``dp4-ep4, activation_checkpointing full``."""
        ways = [key for key in self.train_keys if key in WAYS]
        return ", ".join([clean(cell.layout, 60), *_settings(cell.train, ways)])

    def routing(self, cell: CellResult) -> str:
        """How tokens choose experts, short, and unique in the run."""
        return self.routings.get(cell.routing) or shortened(cell.routing, _ROUTING)

    def arm(self, cell: CellResult) -> str:
        """Unique name inside a group: ``dp4-ep4 compiled``."""
        layout, _, ways = self.layout(cell).partition(", ")
        name = f"{layout} {clean(cell.mode, 20)}" + (f", {ways}" if ways else "")
        return name + self.arm_marks.get(cell.cell, "")

    def size(self, cell: CellResult) -> str:
        """Experts / experts per token / width of an expert, then other sizes that vary: ``128 / 8 / 768``."""
        sizes = " / ".join(_size_of(cell))
        return ", ".join([sizes, *_settings(cell.model, self._other_sizes())])

    def size_in_words(self, cell: CellResult) -> str:
        """The same as ``128 experts, top-8, width 768``."""
        experts, top_k, width = _size_of(cell)
        sizes = f"{experts} experts, top-{top_k}, width {width}"
        return ", ".join([sizes, *_settings(cell.model, self._other_sizes())])

    def conditions(self, cell: CellResult) -> str:
        """Routing, ranks and settings that vary and change the work, the model's size left out."""
        parts = [f"{self.routing(cell)} routing"] if self.has_routings else []
        parts += [f"{cell.world_size} ranks"] if self.has_worlds else []
        parts += _settings(cell.train, [key for key in self.train_keys if key not in WAYS])
        return ", ".join(parts)

    def work(self, cell: CellResult) -> str:
        """What sets a cell's group apart from the other groups of the run; empty if there is one group."""
        size = self.size_in_words(cell) if self.has_sizes else ""
        return ", ".join(part for part in (size, self.conditions(cell)) if part) + self.work_marks.get(cell.cell, "")

    def full(self, cell: CellResult) -> str:
        """Unique name inside the run."""
        return self.with_work(self.arm(cell), cell)

    def with_work(self, name: str, cell: CellResult) -> str:
        """A name from inside a group, followed by what sets the group apart, in short."""
        size = self.size(cell) if self.has_sizes else ""
        parts = (name, size, self.conditions(cell))
        return ", ".join(part for part in parts if part) + self.work_marks.get(cell.cell, "")

    def _other_sizes(self) -> list[str]:
        return [key for key in self.model_keys if key not in (*_SIZE, "preset", "total_layers")]


@dataclass(frozen=True)
class Group:
    """Cells that do the same work, in the run's order, and the cell that the others are compared with."""

    work: str
    cells: tuple[CellResult, ...]
    reference: CellResult | None

    @property
    def measured(self) -> tuple[CellResult, ...]:
        """The cells that have a number."""
        return tuple(cell for cell in self.cells if is_measured(cell))


@dataclass(frozen=True)
class Compared:
    """A run with its cells named and grouped: what every table, chart and sentence is made from."""

    data: RunData
    naming: Naming
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, run: RunView | RunData) -> "Compared":
        """Name and group the cells of a run; of a view alone, no chart of what lies beside it can be made."""
        data = run if isinstance(run, RunData) else RunData(run)
        return cls(data, Naming.of(data.view), groups_of(data.view))

    @property
    def view(self) -> RunView:
        """The run's records."""
        return self.data.view

    @property
    def rank_word(self) -> str:
        """What one rank is to the reader."""
        return "GPU" if self.view.environment.device == "cuda" else "rank"

    @property
    def measured(self) -> tuple[CellResult, ...]:
        """All cells that have a number, group by group."""
        return tuple(cell for group in self.groups for cell in group.measured)

    def reference(self, cell: CellResult) -> CellResult | None:
        """What ``cell`` is compared with: the reference of its group."""
        return next(group.reference for group in self.groups if cell in group.cells)


def groups_of(view: RunView) -> tuple[Group, ...]:
    """The run's cells by the work they do, in order of first appearance."""
    naming = Naming.of(view)
    by_work: dict[str, list[CellResult]] = {}
    for cell in view.cells:
        by_work.setdefault(work_key(cell), []).append(cell)
    return tuple(Group(naming.work(cells[0]), tuple(cells), _reference(cells)) for cells in by_work.values())


def _reference(cells: list[CellResult]) -> CellResult | None:
    """Plain data parallelism in the mode of the fastest cell if it has a number, else the first that has."""
    measured = [cell for cell in cells if is_measured(cell)]
    if not measured:
        return None
    fastest = min(measured, key=_step_value)
    plain = [cell for cell in measured if cell.layout == f"dp{cell.world_size}"]
    return next((cell for cell in plain if cell.mode == fastest.mode), (plain or measured)[0])


def is_measured(cell: CellResult) -> bool:
    """Whether a cell is ok and has at least one valid launch with a step time: it may be compared."""
    return cell.outcome == "ok" and bool(step_launches(cell))


def step_launches(cell: CellResult) -> dict[int, float]:
    """Step seconds of the valid launches, by launch index."""
    return {
        launch.index: launch.step_s
        for launch in cell.launch_values
        if launch.valid and launch.step_s is not None and launch.step_s > 0
    }


def step_rounds(cell: CellResult) -> dict[Hashable, float]:
    """Step seconds of the valid launches by round: index and machine start.

    Launches of two cells are pairs only within a round: a cell that another sitting measured on another machine has
    the same indices, and shares nothing else with those. All starts that are not recorded count as one.
    """
    seconds = step_launches(cell)
    return {
        (launch.index, machine_start(launch)): seconds[launch.index]
        for launch in cell.launch_values
        if launch.valid and launch.index in seconds
    }


def on_unlike_starts(cells: Iterable[CellResult]) -> bool:
    """Whether two of the cells are known to have been measured on other machine starts, or in a round of theirs."""
    found = [_known_starts(cell) for cell in cells]
    rounds = {one for starts in found for one in starts.items()}
    return len({frozenset(starts.values()) for starts in found if starts}) > 1 or len(rounds) > len(dict(rounds))


def _known_starts(cell: CellResult) -> dict[int, Hashable]:
    """Machine start of the valid launches by index, where it is recorded."""
    measured = step_launches(cell)
    starts = {launch.index: machine_start(launch) for launch in cell.launch_values if launch.index in measured}
    return {index: start for index, start in starts.items() if any(start)}


def _step_value(cell: CellResult) -> float:
    interval = launch_interval(list(step_launches(cell).values()))
    assert interval is not None, f"{cell.cell} is measured but has no launch"
    return interval.value


def step_interval(cell: CellResult) -> Interval | None:
    """The cell's step in seconds as recorded; None if it has none."""
    return None if cell.step_s is None else Interval(cell.step_s, cell.step_s_low, cell.step_s_high)


def throughput(cell: CellResult) -> Interval | None:
    """Tokens a second of one rank, with the interval of the step turned over; None if it has none."""
    step, tokens = step_interval(cell), cell.tokens_per_s_per_rank
    if step is None or tokens is None:
        return None
    if step.low is None or step.high is None:
        return Interval(tokens)
    return Interval(tokens, tokens * step.value / step.high, tokens * step.value / step.low)


def speed_ratio(cell: CellResult, against: CellResult | None) -> Interval | None:
    """How many times as fast ``cell`` is as ``against``; None without two cells that have numbers."""
    if against is None or cell.cell == against.cell or not (is_measured(cell) and is_measured(against)):
        return None
    return ratio_interval(step_rounds(cell), step_rounds(against))


def launch_spread(cell: CellResult) -> float | None:
    """Slowest over fastest valid launch, minus 1; None below two launches."""
    values = step_launches(cell).values()
    return max(values) / min(values) - 1 if len(values) > 1 else None


def pareto(points: Iterable[tuple[str, float, float]]) -> list[str]:
    """Names of the (name, memory, throughput) that none beats, by growing memory.

    A point is beaten if another needs no more memory, is no slower, and is better in one of them.
    """
    frontier: list[str] = []
    last = (float("nan"), float("-inf"))
    for name, memory, throughput in sorted(points, key=lambda point: (point[1], -point[2])):
        if throughput > last[1] or (memory, throughput) == last:
            frontier.append(name)
            last = (memory, throughput)
    return frontier


def _varying(tables: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Keys that do not have the same value in all tables, in order of first appearance."""
    values: dict[str, set[str]] = {}
    rows = list(tables)
    for key in dict.fromkeys(key for row in rows for key in row):
        values[key] = {json.dumps(row.get(key), sort_keys=True) for row in rows}
    return tuple(key for key, found in values.items() if len(found) > 1)


def _marks(named: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """By cell, of (cell, name, what it stands for): what to add to names that stand for more than one thing."""
    named = list(named)
    meant: dict[str, set[str]] = {}
    for _, name, what in named:
        meant.setdefault(name, set()).add(what)
    return {cell: f" {mark(what)}" for cell, name, what in named if len(meant[name]) > 1}


def _size_of(cell: CellResult) -> list[str]:
    return [clean(str(cell.model.get(key, "?")), 12) for key in _SIZE]


def _settings(table: dict[str, Any], keys: list[str]) -> list[str]:
    return [f"{key} {shortened(str(table.get(key)), 40)}" for key in keys]
