"""One cell as one side of a comparison: which launches count, and in which round each of them ran.

A **round** is where, and when among the others, a launch ran: source, number of the round, machine start. Launches of
one round ran close together, so what the machine did just then is in both; arms of one source, which were interleaved,
share their rounds, and arms of two runs never do.

The number of a round is not the index of a launch: an invalid launch is repeated once, right after it and in its
round, and from then on indices run ahead. Pairs by index would then be launches of neighbouring rounds.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from epbench.analysis.noise import machine_start
from epbench.gate_records import TIMINGS
from epbench.records import CellResult, LaunchValue

__all__ = ["MIN_NIGHTS", "TRANSFER", "Arm", "Night", "arm_of", "rounds_of"]

MIN_NIGHTS = 5  # of a baseline that decides; with fewer it is settling
TRANSFER = "transfer_s:"  # then op/purpose/phase/axis
_ALL_TO_ALL = "all_to_all/"


@dataclass(frozen=True)
class Night:
    """One run of one cell: metric to round to the value of a valid launch, and COUNTERS; only what is known."""

    timings: Mapping[str, Mapping[Hashable, float]] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One cell, one side of a comparison."""

    outcome: str | None  # None: not run
    reason: str | None
    expected: bool
    nights: tuple[Night, ...]  # of a run one; of a baseline one or more, oldest first
    is_settling: bool = False  # a baseline of fewer than MIN_NIGHTS: compared and shown, its numbers decide nothing


def arm_of(cell: CellResult, *, source: Hashable, launches: int | None = None) -> Arm:
    """The cell of one run; ``launches``: only those of the first so many rounds count.

    Counters are those of the whole cell: one launch is enough for them, and the first valid one gives them.
    """
    values = [value for value in _in_rounds(cell.launch_values, source) if launches is None or value[0] < launches]
    timings: dict[str, dict[Hashable, float]] = {}
    for _, place, launch in values:
        for metric, seconds in _timings(launch):
            timings.setdefault(metric, {})[place] = seconds
    night = Night(timings=timings, counters=dict(_counters(cell)))
    return Arm(outcome=cell.outcome, reason=cell.reason, expected=cell.expected, nights=(night,))


def rounds_of(launches: Iterable[LaunchValue]) -> list[tuple[int, LaunchValue]]:
    """All launches by index, each with the number of its round, from 0: a repeat shares that of what it repeats."""
    found: list[tuple[int, LaunchValue]] = []
    number, may_repeat = -1, False
    for launch in sorted(launches, key=lambda one: one.index):
        is_repeat, may_repeat = may_repeat, not may_repeat and not launch.valid
        number += not is_repeat
        found.append((number, launch))
    return found


def _in_rounds(launches: Sequence[LaunchValue], source: Hashable) -> Iterator[tuple[int, Hashable, LaunchValue]]:
    """The valid launches, each with the number of its round, and its round."""
    for number, launch in rounds_of(launches):
        if launch.valid:
            yield number, (source, number, machine_start(launch)), launch


def _timings(launch: LaunchValue) -> Iterator[tuple[str, float]]:
    """What is positive and finite: a comparison takes logarithms, and nothing takes no time."""
    found = {metric: getattr(launch, metric) for metric in TIMINGS}
    found |= {TRANSFER + name: value for name, value in launch.transfers_s.items() if name.startswith(_ALL_TO_ALL)}
    return ((metric, value) for metric, value in found.items() if value is not None and 0 < value < math.inf)


def _counters(cell: CellResult) -> Iterator[tuple[str, float]]:
    """What is known: a step without a kernel on a GPU, or without memory, is one of which nothing was recorded."""
    found: dict[str, float | None] = {
        "peak_allocated_bytes": cell.peak_allocated_bytes or None,
        "kernel_count": cell.kernel_count or None,
        "graph_breaks": cell.compile.graph_breaks,
        "recompiles": cell.compile.recompiles,
    }
    if cell.breakdown_s.step_s is not None and cell.kernel_count != 0:  # read traces: no row means no collective
        moved = [row.bytes_per_step for row in cell.collectives]
        known = [count for count in moved if count is not None]
        found["collective_count"] = sum(row.calls_per_step for row in cell.collectives)
        found["collective_bytes"] = sum(known) if len(known) == len(moved) else None
    return ((name, float(value)) for name, value in found.items() if value is not None and math.isfinite(value))
