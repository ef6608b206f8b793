"""Where a training step goes on the device: compute only, overlapped, exposed communication, idle.

The four parts are exclusive and sum to the step. A kernel that runs while a collective runs is
*overlapped*, booked neither as compute nor as communication. The window of a step reaches from the start of
the first kernel that the host launched in it to that of the next step, for the device runs behind the host.

Communication in this breakdown contains waiting: NCCL's kernels spin until the last rank arrives, and the
device is busy for that long. **Device work time** leaves the waiting out: the union of all other kernels
and of the transfers (analysis.collectives), so that another rank's late host does not make this rank's work
look slower.

An idle gap is the host's while the next kernel had not been launched yet, and the kernel's afterwards (it
waits for another stream, or for the launch to arrive).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from epbench.analysis.collectives import match, work_union
from epbench.analysis.intervals import Intervals, clip, covered_s, intervals, length_s, union
from epbench.analysis.trace import Kernel, RankTrace, read_traces
from epbench.records import Breakdown, Idle

__all__ = ["DeviceTime", "breakdown", "device_time_of"]


@dataclass(frozen=True)
class DeviceTime:
    """Device seconds of a step of the critical rank, the one with most device work; None on a CPU."""

    breakdown: Breakdown
    device_work_s: float | None
    step_s: float | None  # of the trace: what the parts sum to, slower than a timed step
    critical_rank: int | None


def breakdown(trace_dir: Path, *, steps: int) -> DeviceTime:
    """Reads the traces and splits the step; raises RunError as ``read_traces`` does."""
    return device_time_of(read_traces(trace_dir, steps=steps), steps=steps)


def device_time_of(traces: Sequence[RankTrace], *, steps: int) -> DeviceTime:
    """The split of traces that are already read. Device work is the median over steps of the worst rank."""
    if not all(trace.on_cuda for trace in traces):
        return DeviceTime(Breakdown(), None, None, None)
    windows = {trace.rank: _step_windows(trace) for trace in traces}
    busy = _work_and_transfers(traces)
    work_s = {rank: [length_s(clip(busy[rank], *window)) for window in windows[rank]] for rank in windows}
    critical = max(traces, key=lambda trace: median(work_s[trace.rank]))
    start_s, end_s = windows[critical.rank][0][0], windows[critical.rank][-1][1]
    return DeviceTime(
        breakdown=_parts(critical, start_s, end_s, steps),
        device_work_s=median(max(per_rank) for per_rank in zip(*work_s.values(), strict=True)),
        step_s=(end_s - start_s) / steps,
        critical_rank=critical.rank,
    )


def _step_windows(trace: RankTrace) -> list[tuple[float, float]]:
    """Device time of each traced step; a step without a kernel is empty."""
    starts: list[float] = []
    last_s = max(kernel.end_s for kernel in trace.kernels)
    for step in reversed(trace.steps):
        launched = [k.start_s for k in trace.kernels if k.launch and step.holds(k.launch.time_s)]
        starts.append(min(launched, default=starts[-1] if starts else last_s))
    starts.reverse()
    return list(zip(starts, [*starts[1:], last_s], strict=True))


def _work_and_transfers(traces: Sequence[RankTrace]) -> dict[int, Intervals]:
    """Per rank the union of kernels that do not communicate and of the transfers of collectives."""
    transfers: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for matched in match(traces):
        for rank in matched.timed:
            transfers[rank].append(matched.window(rank))
    return {
        trace.rank: union(np.concatenate([work_union(trace), intervals(transfers[trace.rank])])) for trace in traces
    }


def _parts(trace: RankTrace, start_s: float, end_s: float, steps: int) -> Breakdown:
    """Seconds a step of each part, within one window over all steps."""
    work = clip(work_union(trace), start_s, end_s)
    communication = union(intervals((k.start_s, k.end_s) for k in trace.kernels if k.communication))
    communication = clip(communication, start_s, end_s)
    overlapped_s = float(covered_s(work, by=communication).sum())
    idle_host_s, idle_kernel_s = _idle(trace.kernels, start_s, end_s)
    return Breakdown(
        compute=(length_s(work) - overlapped_s) / steps,
        overlapped=overlapped_s / steps,
        exposed=(length_s(communication) - overlapped_s) / steps,
        idle=Idle(host=idle_host_s / steps, kernel=idle_kernel_s / steps),
    )


def _idle(kernels: Sequence[Kernel], start_s: float, end_s: float) -> tuple[float, float]:
    """Seconds in which no kernel ran: before, and after, the host had launched the next one."""
    busy = clip(union(intervals((k.start_s, k.end_s) for k in kernels)), start_s, end_s)
    launched_s = {k.start_s: k.launch.time_s for k in reversed(kernels) if k.launch}
    host_s = kernel_s = 0.0
    for gap_start_s, gap_end_s in zip(busy[:-1, 1], busy[1:, 0], strict=True):
        launch_s = launched_s.get(float(gap_end_s), float(gap_start_s))
        host = float(np.clip(launch_s - gap_start_s, 0, gap_end_s - gap_start_s))
        host_s += host
        kernel_s += float(gap_end_s - gap_start_s) - host
    return host_s, kernel_s
