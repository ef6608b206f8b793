"""What a step's collectives cost: the transfer apart from the waiting, by op, purpose, phase and axis.

A collective's duration on one rank is not a cost of the network: it contains the wait for the last rank to
arrive. The k-th call of one kind in one group is therefore matched over the group's ranks::

    rank 0   |---- wait ----|== transfer ==|
    rank 1                  |== transfer ==|

    transfer = max(end) - max(start)          wait of a rank = its duration - transfer, not below 0

which needs one clock, so ranks of one host. Where ranks do not share a clock, or the trace does not tell the
group, the shortest duration over the ranks is taken: a lower bound of the transfer when splits are uneven. One host
name is no proof of one clock; that no rank is done with a gather or a reduction before all have begun it is the test.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from epbench.analysis.calls import Call, Kind, calls_of
from epbench.analysis.intervals import Intervals, covered_s, intervals, length_s
from epbench.analysis.reading import read_traces
from epbench.analysis.trace import RankTrace
from epbench.errors import RunError
from epbench.records import CollectiveRow

__all__ = ["Matched", "clock_note", "collective_rows", "match", "rows_of"]

CLOCK_ERROR_S = 1e-3  # devices of one host agree within some ten microseconds
NEEDS_ALL = {"all_gather", "reduce_scatter", "all_reduce"}  # each rank waits for data of every other

RankCalls = dict[int, Call]


@dataclass(frozen=True)
class Matched:
    """One collective: the calls of its ranks, and how long moving the data took."""

    kind: Kind
    root: int | None
    step: int
    calls: RankCalls
    transfer_s: float
    one_clock: bool = True  # whether the ranks' times can be compared

    @cached_property
    def timed(self) -> dict[int, tuple[float, float]]:
        """(start, end) of the ranks whose device had anything to do."""
        return {
            rank: (call.start_s, call.end_s)
            for rank, call in self.calls.items()
            if call.start_s is not None and call.end_s is not None
        }

    @property
    def heaviest_bytes(self) -> int:
        """Bytes of the rank that sends or receives most."""
        return max(call.bytes for call in self.calls.values())

    @property
    def heaviest_bus_bytes(self) -> float | None:
        """Bytes over the bus of the rank that moves most; None where the group has one rank or is not known."""
        known = [call.bus_bytes for call in self.calls.values() if call.bus_bytes is not None]
        return max(known) if known and self.size != 1 else None

    @property
    def mean_bytes(self) -> float:
        """Bytes of the mean rank."""
        return sum(call.bytes for call in self.calls.values()) / len(self.calls)

    @property
    def size(self) -> int | None:
        """Ranks of the group; None if the trace does not tell."""
        return next(iter(self.calls.values())).size

    def waits_s(self) -> dict[int, float]:
        """How long each rank waited for the others."""
        return {r: max(0.0, end_s - start_s - self.transfer_s) for r, (start_s, end_s) in self.timed.items()}

    @property
    def last(self) -> int | None:
        """The rank that the others waited for; None if fewer than two ranks had anything to do."""
        if len(self.timed) < 2 or not self.one_clock:
            return None
        return max(self.timed, key=lambda rank: self.timed[rank][0])

    def window(self, rank: int) -> tuple[float, float]:
        """The end of a rank's call, as long as the transfer: when it moved data and no longer waited."""
        start_s, end_s = self.timed[rank]
        return max(start_s, end_s - self.transfer_s), end_s


def collective_rows(trace_dir: Path, *, steps: int) -> list[CollectiveRow]:
    """One row per op, purpose, phase and axis, the longest transfer first.

    Raises RunError for missing, unreadable or incomplete traces, and when the ranks of a group did not make
    the same calls.
    """
    return rows_of(read_traces(trace_dir, steps=steps), steps=steps)


def rows_of(traces: Sequence[RankTrace], *, steps: int, found: Sequence[Matched] | None = None) -> list[CollectiveRow]:
    """The rows of traces that are already read, and whose collectives may be ``found`` already."""
    by_kind: dict[Kind, list[Matched]] = defaultdict(list)
    for matched in match(traces) if found is None else found:
        by_kind[matched.kind].append(matched)
    work = {trace.rank: trace.kernels.work for trace in traces} if all(t.on_cuda for t in traces) else {}
    rows = [_row(kind, calls, steps, work) for kind, calls in by_kind.items()]
    return sorted(rows, key=lambda row: (-row.transfer_s, row.op, row.purpose, row.phase, row.axis))


# ---------------------------------------------------------------- matching


def match(traces: Sequence[RankTrace]) -> list[Matched]:
    """The collectives of the traced steps, each with its calls on all ranks of its group."""
    groups: dict[tuple[Kind, int | None], dict[int, list[Call]]] = defaultdict(lambda: defaultdict(list))
    for trace in traces:
        for call in calls_of(trace):
            groups[call.kind, call.root][trace.rank].append(call)
    zipped = [(kind, root, calls) for (kind, root), by_rank in groups.items() for calls in _zipped(kind, root, by_rank)]
    one_clock = _hosts(traces) == 1 and all(
        _apart_s(calls) <= CLOCK_ERROR_S for kind, root, calls in zipped if kind.op in NEEDS_ALL and root is not None
    )
    return [_matched(kind, root, calls, one_clock) for kind, root, calls in zipped]


def clock_note(traces: Sequence[RankTrace], found: Sequence[Matched]) -> str | None:
    """What to say of transfers and waits of ranks that share no clock; None if they do."""
    if all(matched.one_clock for matched in found):
        return None
    bound = "transfers are the shortest duration over the ranks, a lower bound"
    if (hosts := _hosts(traces)) > 1:
        return f"ranks on {hosts} hosts share no clock: {bound}"
    apart_ms = 1e3 * max(_apart_s(matched.calls) for matched in found if matched.kind.op in NEEDS_ALL)
    return f"a rank was done with a collective {apart_ms:.1f} ms before another began it, so clocks differ: {bound}"


def _hosts(traces: Sequence[RankTrace]) -> int:
    return len({trace.host for trace in traces})


def _apart_s(calls: RankCalls) -> float:
    """By how much the last rank began after the first was done; below 0 where all overlap."""
    starts_s = [call.start_s for call in calls.values() if call.start_s is not None]
    ends_s = [call.end_s for call in calls.values() if call.end_s is not None]
    return max(starts_s) - min(ends_s) if starts_s else -math.inf


def _zipped(kind: Kind, root: int | None, by_rank: dict[int, list[Call]]) -> list[RankCalls]:
    """The k-th call of every rank together."""
    sequences = {rank: [call.step for call in calls] for rank, calls in by_rank.items()}
    first = min(sequences)
    size = by_rank[first][0].size
    if root is not None and size is not None and len(by_rank) != size:
        raise RunError(
            f"{_name(kind, root)}: {len(by_rank)} of {size} ranks have such calls in their traces;"
            " the traces are of different runs or incomplete"
        )
    odd = next((rank for rank, steps in sequences.items() if steps != sequences[first]), None)
    if odd is not None:
        raise RunError(
            f"{_name(kind, root)}: rank {first} made {len(sequences[first])} calls and rank {odd}"
            f" {len(sequences[odd])}, or in other steps; the traces are of different runs or incomplete"
        )
    ranks = sorted(by_rank)
    calls_by_k = zip(*(by_rank[rank] for rank in ranks), strict=True)
    return [dict(zip(ranks, calls, strict=True)) for calls in calls_by_k]


def _name(kind: Kind, root: int | None) -> str:
    return f"{kind.op} {kind.purpose} {kind.phase} on {kind.axis} (group of rank {root})"


def _matched(kind: Kind, root: int | None, calls: RankCalls, one_clock: bool) -> Matched:
    spans = [(c.start_s, c.end_s) for c in calls.values() if c.start_s is not None and c.end_s is not None]
    if not spans:
        transfer_s = 0.0
    elif one_clock and root is not None:
        transfer_s = max(end_s for _, end_s in spans) - max(start_s for start_s, _ in spans)
    else:
        transfer_s = min(end_s - start_s for start_s, end_s in spans)
    return Matched(kind, root, next(iter(calls.values())).step, calls, transfer_s, one_clock)


# ---------------------------------------------------------------- one row


def _row(kind: Kind, found: list[Matched], steps: int, work: dict[int, Intervals]) -> CollectiveRow:
    transfers_s = [matched.transfer_s for matched in found]
    moving = [matched for matched in found if matched.heaviest_bytes and matched.transfer_s > 0]
    on_bus = [matched for matched in moving if matched.heaviest_bus_bytes is not None]
    exposed_s, overlapped_s = _exposed(found, steps, work) if work else (None, None)
    return CollectiveRow(
        **kind._asdict(),
        calls_per_step=max(Counter(matched.root for matched in found).values()) / steps,
        bytes=round(median(matched.heaviest_bytes for matched in found)),
        bytes_mean=median(matched.mean_bytes for matched in found),
        bus_bytes=_median(matched.heaviest_bus_bytes or 0.0 for matched in on_bus),
        bytes_per_step=median(_worst_by_step(found, steps, _bytes)),
        bus_bytes_per_step=_bus_bytes_per_step(found, steps),
        transfer_s=median(_worst_by_step(found, steps, lambda matched: {matched.root: matched.transfer_s})),
        wait_s=median(_worst_by_step(found, steps, Matched.waits_s)),
        exposed_s=exposed_s,
        overlapped_s=overlapped_s,
        p50_s=float(np.percentile(transfers_s, 50)),
        p95_s=float(np.percentile(transfers_s, 95)),
        last_rank_share=_last_rank_share(found),
        algbw_bytes_per_s=_median(matched.heaviest_bytes / matched.transfer_s for matched in moving),
        busbw_bytes_per_s=_median((matched.heaviest_bus_bytes or 0.0) / matched.transfer_s for matched in on_bus),
    )


def _bytes(matched: Matched) -> dict[int, float]:
    return {rank: call.bytes for rank, call in matched.calls.items()}


def _bus_bytes_per_step(found: Sequence[Matched], steps: int) -> float | None:
    """None unless it is known of every call, for a sum that leaves some out is none."""
    calls = [call for matched in found for call in matched.calls.values()]
    if any(call.bus_bytes is None or call.size == 1 for call in calls):
        return None
    return median(
        _worst_by_step(found, steps, lambda matched: {r: call.bus_bytes or 0.0 for r, call in matched.calls.items()})
    )


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None


def _worst_by_step(
    found: Iterable[Matched], steps: int, shares: Callable[[Matched], Mapping[Any, float]]
) -> list[float]:
    """Per step the largest sum over calls, among the groups or ranks that ``shares`` names."""
    sums: list[dict[Any, float]] = [defaultdict(float) for _ in range(steps)]
    for matched in found:
        for who, value in shares(matched).items():
            sums[matched.step][who] += value
    return [max(step.values(), default=0.0) for step in sums]


def _exposed(found: Iterable[Matched], steps: int, work: dict[int, Intervals]) -> tuple[float, float]:
    """Seconds of transfer a step outside of and under other kernels, of the rank where most is outside."""
    windows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for matched in found:
        for rank in matched.timed:
            windows[matched.step, rank].append(matched.window(rank))
    worst = [(0.0, 0.0)] * steps
    for (step, rank), spans in windows.items():
        transfers = intervals(spans)
        overlapped_s = float(covered_s(transfers, by=work[rank]).sum())
        worst[step] = max(worst[step], (length_s(transfers) - overlapped_s, overlapped_s))
    return median(exposed_s for exposed_s, _ in worst), median(overlapped_s for _, overlapped_s in worst)


def _last_rank_share(found: Iterable[Matched]) -> dict[int, float]:
    """Rank to the share of calls for which it came last, the most frequent first; of calls where one can tell."""
    lasts = Counter(matched.last for matched in found if matched.last is not None)
    return {rank: count / lasts.total() for rank, count in lasts.most_common()}
