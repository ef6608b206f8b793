"""Where a training step goes on the device: compute only, overlapped, exposed communication, idle.

The four parts are exclusive and sum to the step. A kernel that runs while a collective runs is
*overlapped*, booked neither as compute nor as communication. The window of a step reaches from the start of
the first kernel that the host launched in it to that of the next step, for the device runs behind the host; the
last one ends with the last kernel that was launched before the host was done with it. A kernel whose launch is not
known, as in a replayed CUDA graph, counts as launched when it started.

Communication in this breakdown contains waiting: NCCL's kernels spin until the last rank arrives, and the
device is busy for that long. **Device work time** leaves the waiting out: the union of all other kernels
and of the transfers (analysis.collectives), so that another rank's late host does not make this rank's work
look slower. The plain **kernel union** (anything ran, waiting included) stands beside it, to be looked at only.

An idle gap is the host's while the next kernel had not been launched yet, and the kernel's afterwards (it
waits for another stream, or for the launch to arrive).

On a CPU the operators' own time stands for kernels and gloo's transfers for those that communicate
(analysis.columns); what is left is the host's: Python, dispatch, and waiting inside a collective's operator
after the transfer is over. There is no device work time.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, stdev

import numpy as np
from numpy.typing import NDArray

from epbench.analysis.collectives import Matched, match
from epbench.analysis.columns import Kernels
from epbench.analysis.intervals import Intervals, clip, covered_s, intervals, length_s, union
from epbench.analysis.kinds import OTHER
from epbench.analysis.reading import read_traces
from epbench.analysis.trace import RankTrace
from epbench.records import Breakdown, Idle

__all__ = ["DeviceTime", "breakdown", "device_time_of"]

Window = tuple[float, float]  # start and end, seconds


@dataclass(frozen=True)
class DeviceTime:
    """Seconds of a step: of every rank, and of the critical rank, the one with most device work."""

    per_rank: tuple[Breakdown, ...]  # in order of rank
    critical_rank: int
    device_work_s: float | None  # None on a CPU
    device_work_sd_s: float | None = None  # over the traced steps; None for one
    kernel_union_s: float | None = None  # when anything ran, waiting included: the critical rank's median step
    kernels_s: dict[str, float] = field(default_factory=dict)  # by kind, streams added up, critical rank
    kernel_count: float | None = None  # kernels, copies and fills that the critical rank's steps launched; not on a CPU

    @property
    def breakdown(self) -> Breakdown:
        """Of the critical rank."""
        return next(parts for parts in self.per_rank if parts.rank == self.critical_rank)

    @property
    def step_s(self) -> float | None:
        """Of the trace: what the parts sum to, slower than a timed step."""
        return self.breakdown.step_s

    @property
    def unclassified_share(self) -> float | None:
        """Share of the kernel seconds whose kind no pattern knows; None without kernels."""
        total_s = sum(self.kernels_s.values())
        return self.kernels_s.get(OTHER, 0.0) / total_s if total_s else None


def breakdown(trace_dir: Path, *, steps: int) -> DeviceTime:
    """Reads the traces and splits the step; raises RunError as ``read_traces`` does."""
    return device_time_of(read_traces(trace_dir, steps=steps), steps=steps)


def device_time_of(traces: Sequence[RankTrace], *, steps: int, found: Sequence[Matched] | None = None) -> DeviceTime:
    """The split of traces that are already read, and whose collectives may be ``found`` already.

    Device work is the median over steps of the worst rank.
    """
    windows = {trace.rank: _step_windows(trace) for trace in traces}
    busy = _work_and_transfers(traces, match(traces) if found is None else found)
    work_s = {rank: [length_s(clip(busy[rank], *window)) for window in windows[rank]] for rank in windows}
    worst_s = [float(max(per_rank)) for per_rank in zip(*work_s.values(), strict=True)]
    critical = max(traces, key=lambda trace: median(work_s[trace.rank]))
    whole = _whole(windows[critical.rank])
    kernels_s = critical.kernels.seconds_by_kind(*whole)
    return DeviceTime(
        per_rank=tuple(_parts(trace, _whole(windows[trace.rank]), steps) for trace in traces),
        critical_rank=critical.rank,
        device_work_s=median(worst_s) if critical.on_cuda else None,
        device_work_sd_s=stdev(worst_s) if critical.on_cuda and len(worst_s) > 1 else None,
        kernel_union_s=_kernel_union_s(critical, windows[critical.rank]) if critical.on_cuda else None,
        kernels_s={kind: seconds / steps for kind, seconds in kernels_s.items()},
        kernel_count=_launched(critical) / steps if critical.on_cuda else None,
    )


def _launched(trace: RankTrace) -> int:
    """How many kernels the host launched within the steps: whenever they ran, they are the steps'."""
    launch_s = _launch_or_start_s(trace.kernels)
    return int(((trace.steps[0].start_s <= launch_s) & (launch_s <= trace.steps[-1].end_s)).sum())


def _launch_or_start_s(kernels: Kernels) -> NDArray[np.float64]:
    return np.where(np.isnan(kernels.launch_s), kernels.start_s, kernels.launch_s)


def _kernel_union_s(trace: RankTrace, windows: Sequence[Window]) -> float:
    busy = union(trace.kernels.spans)
    return median(length_s(clip(busy, *window)) for window in windows)


def _whole(windows: Sequence[Window]) -> Window:
    return windows[0][0], windows[-1][1]


def _step_windows(trace: RankTrace) -> list[Window]:
    """Time of each traced step, on the device if there is one; a step in which nothing was launched is empty."""
    if not trace.on_cuda:
        return _until_next([step.start_s for step in trace.steps], trace.steps[-1].end_s)
    kernels = trace.kernels
    launch_s = _launch_or_start_s(kernels)
    in_steps = ~(kernels.launch_s > trace.steps[-1].end_s)
    last_s = float(kernels.end_s[in_steps].max(initial=trace.steps[0].start_s))
    starts: list[float] = []
    for step in reversed(trace.steps):
        launched = (step.start_s <= launch_s) & (launch_s <= step.end_s)
        otherwise_s = starts[-1] if starts else last_s
        starts.append(float(kernels.start_s[launched].min(initial=otherwise_s)))
    return _until_next(starts[::-1], last_s)


def _until_next(starts: Sequence[float], last_s: float) -> list[Window]:
    return list(zip(starts, [*starts[1:], last_s], strict=True))


def _work_and_transfers(traces: Sequence[RankTrace], collectives: Sequence[Matched]) -> dict[int, Intervals]:
    """Per rank the union of kernels that do not communicate and of the transfers of collectives."""
    transfers: dict[int, list[Window]] = defaultdict(list)
    for matched in collectives:
        for rank in matched.timed:
            transfers[rank].append(matched.window(rank))
    return {
        trace.rank: union(np.concatenate([trace.kernels.work, intervals(transfers[trace.rank])])) for trace in traces
    }


def _parts(trace: RankTrace, window: Window, steps: int) -> Breakdown:
    """Seconds a step of each part, within one window over all steps."""
    work, communication = clip(trace.kernels.work, *window), clip(trace.kernels.communication, *window)
    overlapped_s = float(covered_s(work, by=communication).sum())
    return Breakdown(
        rank=trace.rank,
        step_s=(window[1] - window[0]) / steps,
        compute=(length_s(work) - overlapped_s) / steps,
        overlapped=overlapped_s / steps,
        exposed=(length_s(communication) - overlapped_s) / steps,
        idle=_idle(trace, window, steps),
    )


def _idle(trace: RankTrace, window: Window, steps: int) -> Idle:
    """Seconds a step in which nothing ran: before, and after, the host had launched what ran next."""
    gaps = _gaps(trace.kernels, window)
    if not trace.on_cuda:
        return Idle(host=length_s(gaps) / steps)
    launch_s = _launch_of_first_at(trace.kernels, gaps[:, 1])
    launch_s = np.where(np.isnan(launch_s), gaps[:, 0], launch_s)
    host_s = float((np.clip(launch_s, gaps[:, 0], gaps[:, 1]) - gaps[:, 0]).sum())
    return Idle(host=host_s / steps, kernel=(length_s(gaps) - host_s) / steps)


def _gaps(kernels: Kernels, window: Window) -> Intervals:
    """When nothing ran within a window."""
    busy = clip(union(kernels.spans), *window)
    return np.column_stack([np.r_[window[0], busy[:, 1]], np.r_[busy[:, 0], window[1]]])


def _launch_of_first_at(kernels: Kernels, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """When the kernel that starts at each of the times was launched; NaN where none does or nobody knows."""
    known = np.flatnonzero(~np.isnan(kernels.launch_s) & (kernels.end_s > kernels.start_s))
    found = np.full(len(times_s), np.nan)
    if len(known):
        starts_s = kernels.start_s[known]
        place = np.searchsorted(starts_s, times_s).clip(max=len(known) - 1)
        hit = starts_s[place] == times_s
        found[hit] = kernels.launch_s[known[place[hit]]]
    return found
