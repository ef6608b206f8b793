"""How much identical launches differ, and the smallest change that so many launches can find.

Three kinds of scatter, each the standard deviation of a relative difference. *Within* a launch: of its steps, the
median launch's. *Between* launches on one machine start, pooled over the starts. Between machine *starts*: of the
starts' means, less what their launches scatter by chance; 0 if that is all. Pooling steps of different launches would
hide the second behind the first, and that is the one that a comparison lives with.

The smallest detectable change is that of a one-sided paired t test of K launches an arm, interleaved, so that what a
machine start adds is in both arms: the shift that the test finds in 95 % of nights, if 1 % of nights without any
may raise an alarm. It comes from the noncentral t distribution (Cohen, Statistical Power Analysis, 1988, chapter 2).

It grows with the scatter between launches, and that is an estimate: from one pair of launches (one degree of freedom)
the true one may be 32 times as large, from 4 degrees 2.9 times (the upper bound of the 95 % chi-square interval). So
below ``MIN_DEGREES``, which is five launches on one machine start, no smallest change is told.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from epbench.analysis.differences import POWER, growth_found
from epbench.records import CellResult, LaunchValue

__all__ = [
    "ALPHA",
    "METRICS",
    "MIN_DEGREES",
    "POWER",
    "MachineStart",
    "Noise",
    "machine_start",
    "machine_starts",
    "noise_of",
    "smallest_detectable_change",
    "smallest_gated_change",
]

ALPHA = 0.01  # false alarms
MIN_DEGREES = 4  # of freedom, of the scatter between launches: with fewer it may be off by more than a factor of 3
# Of a launch: the value, and the standard deviation over its steps.
METRICS: Mapping[str, str] = {"step_s": "step_sd_s", "device_work_s": "device_work_sd_s"}


MachineStart = tuple[tuple[str, ...], tuple[str, ...]]  # host names, GPUs


@dataclass(frozen=True)
class Noise:
    """Relative standard deviations of one metric of one cell; None where there is too little to tell."""

    metric: str
    median: float  # over all launches, in the metric's unit
    launches: int
    starts: int
    within: float | None
    between: float | None  # None: no machine start has two launches
    degrees: int  # of freedom that ``between`` rests on: launches less machine starts
    between_starts: float | None  # None: one machine start, or nothing tells what launches add

    def finds(self, launches: int, *, alpha: float = ALPHA, limit: float = 0.0) -> float | None:
        """The relative slowdown that so many launches an arm find; None where ``between`` is too rough to tell."""
        if self.between is None or self.degrees < MIN_DEGREES:
            return None
        return smallest_detectable_change(self.between, launches, alpha=alpha, limit=limit)


def noise_of(cells: Iterable[CellResult], metric: str) -> Noise | None:
    """Of the valid launches of one cell, measured in one run or in several; None if none has the metric.

    ``metric`` is a key of ``METRICS``. A machine start is a set of host names and GPUs.
    """
    launches = [launch for cell in cells for launch in cell.launch_values if launch.valid]
    known = [launch for launch in launches if _is_time(getattr(launch, metric))]
    if not known:
        return None
    starts: dict[Hashable, list[float]] = defaultdict(list)
    for launch in known:
        starts[machine_start(launch)].append(math.log(getattr(launch, metric)))
    between = _pooled(list(starts.values()))
    return Noise(
        metric=metric,
        median=median(getattr(launch, metric) for launch in known),
        launches=len(known),
        starts=len(starts),
        within=_within(known, metric),
        between=between,
        degrees=len(known) - len(starts),
        between_starts=_between_starts(list(starts.values()), between),
    )


def _is_time(value: float | None) -> bool:
    """What a scatter can be taken of: a step of which no trace kept a kernel has a device work of 0."""
    return value is not None and 0 < value < math.inf


def machine_start(launch: LaunchValue) -> MachineStart:
    """Host names and GPUs of a launch: a machine that was started anew has others. Empty where nothing is recorded."""
    names, gpus = (tuple(map(str, launch.host.get(key) or ())) for key in ("names", "gpu_uuids"))
    return names, gpus


def machine_starts(launches: Iterable[LaunchValue]) -> dict[MachineStart, MachineStart]:
    """What each launch names as its machine start, with the widest of them that it is part of, in order of first use.

    A launch names the GPUs that it uses: one with fewer ranks, on the same hosts, names only some of the others' GPUs.
    """
    found = list(dict.fromkeys(map(machine_start, launches)))
    widest = sorted(found, key=lambda start: -len(start[1]))
    return {start: next(wide for wide in widest if _is_part(start, wide)) for start in found}


def _is_part(start: MachineStart, wide: MachineStart) -> bool:
    return start[0] == wide[0] and set(start[1]) <= set(wide[1])


def _within(launches: Sequence[LaunchValue], metric: str) -> float | None:
    pairs = [(getattr(launch, METRICS[metric]), getattr(launch, metric)) for launch in launches]
    relative = [sd / value for sd, value in pairs if sd is not None]
    return median(relative) if relative else None


def _pooled(starts: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups whose means may differ."""
    degrees = sum(len(logs) - 1 for logs in starts)
    squares = sum((len(logs) - 1) * stdev(logs) ** 2 for logs in starts if len(logs) > 1)
    return math.sqrt(squares / degrees) if degrees else None


def _between_starts(starts: Sequence[Sequence[float]], between: float | None) -> float | None:
    """The variance of the means, less the share that launches explain: the one-way random-effects estimate."""
    if len(starts) < 2 or between is None:
        return None
    of_means = stdev([fmean(logs) for logs in starts]) ** 2
    by_chance = between**2 * fmean(1 / len(logs) for logs in starts)
    return math.sqrt(max(0.0, of_means - by_chance))


def smallest_detectable_change(
    between: float, launches: int, *, alpha: float = ALPHA, limit: float = 0.0
) -> float | None:
    """The relative slowdown (0.03 is 3 %) that ``launches`` launches an arm find; None below two.

    ``between`` is the standard deviation between launches, relative; ``limit`` the growth beyond which a slowdown
    is one.
    """
    if launches < 2:
        return None
    error = between * math.sqrt(2 / launches)
    return growth_found(error, launches - 1.0, limit=math.log1p(limit), alpha=alpha)


def smallest_gated_change(
    noise: Noise, launches: int, *, family: int, limit: float, alpha: float = ALPHA, floor_s: float = 0.0
) -> float | None:
    """What the gate finds with interleaved launches; None where nothing tells how much they scatter.

    ``alpha`` is that of the look, which ``family`` tests share; Holm's hardest step, ``alpha / family``, is the one
    that a single slow cell has to pass. ``limit`` and ``floor_s`` are what is allowed, relative and in seconds.
    """
    return noise.finds(launches, alpha=alpha / family, limit=max(limit, floor_s / noise.median))
