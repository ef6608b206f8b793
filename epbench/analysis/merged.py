"""All ranks of a launch in one chrome trace that is small enough to hand on: for https://ui.perfetto.dev.

Each rank is a process, named with its place in the mesh; its streams come first, then the threads of its host. An
arrow leads from the launch of each collective to its kernel. The profiler's own files hold every argument of every
operator and are many times as large; here are kernels, annotations and our labels, and the operators where they
are few. What was left out is counted in ``otherData``.

Times are microseconds from the first event of any rank, in order within each rank.
"""

import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from epbench.analysis.columns import Floats, Kernels, Spans
from epbench.analysis.kinds import KINDS
from epbench.analysis.trace import RankTrace, Scope
from epbench.layout import Layout

__all__ = ["MAX_EVENTS", "rank_name", "write_merged"]

MAX_EVENTS = 200_000  # of all ranks together: about 30 MB of JSON
MAX_ARROWS = 20_000

Timed = tuple[float, str]  # microseconds, and the event as JSON
_Lanes = dict[tuple[str, int], int]


def rank_name(rank: int, layout: Layout) -> str:
    """``rank 3: dp1 tp1 ep3``: the places on the axes of more than one rank; both meshes are row-major."""
    dense = {"rep": layout.dp_replicate, "dp": layout.dp_shard, "cp": layout.cp, "tp": layout.tp}
    expert = {"ep": layout.ep, "etp": layout.etp}
    places = {**_places(rank, dense), **_places(rank, expert)}
    degrees = dense | expert
    shown = [f"{axis}{place}" for axis, place in places.items() if degrees[axis] > 1]
    return f"rank {rank}: {' '.join(shown)}" if shown else f"rank {rank}"


def _places(rank: int, degrees: dict[str, int]) -> dict[str, int]:
    places = {}
    for axis, degree in reversed(degrees.items()):
        rank, places[axis] = divmod(rank, degree)
    return dict(reversed(places.items()))


def write_merged(
    traces: Sequence[RankTrace], path: Path, *, names: Sequence[str], max_events: int = MAX_EVENTS
) -> None:
    """Writes one gzipped trace of all ranks; ``names`` are those of the processes, by rank.

    Besides the traces the text of one rank is held at a time. The file appears under its name when it is whole.
    """
    zero_s = min(map(_first_s, traces))
    parts = [_Part.of(trace, max_events // len(traces)) for trace in traces]
    unfinished = path.with_name(path.name + ".part")
    with gzip.open(unfinished, "wb", compresslevel=4) as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        for index, (part, name) in enumerate(zip(parts, names, strict=True)):
            file.write(b",\n" if index else b"")
            file.write(",\n".join(part.lines(name, zero_s)).encode())
        left_out = {
            "operators_left_out": sum(part.operators_left_out for part in parts),
            "kernels_left_out": sum(part.kernels_left_out for part in parts),
        }
        file.write(b'\n],"otherData":' + msgspec.json.encode(left_out) + b"}\n")
    unfinished.replace(path)


def _first_s(trace: RankTrace) -> float:
    """When anything begins, also what lies before the first step: Perfetto drops times below zero."""
    kernels = trace.kernels
    starts_s = (trace.operators.start_s, kernels.start_s, kernels.launch_s, [scope.start_s for scope in trace.gloo])
    return min(float(np.fmin.reduce(times_s, initial=trace.steps[0].start_s)) for times_s in starts_s)


@dataclass(frozen=True)
class _Part:
    """What of one rank is written."""

    trace: RankTrace
    shown: "np.typing.NDArray[np.int64]"  # places of the kernels, in order of start
    with_operators: bool

    @classmethod
    def of(cls, trace: RankTrace, max_events: int) -> "_Part":
        kernels = trace.kernels if trace.on_cuda else None
        annotations = len(trace.steps) + len(trace.labels) + len(trace.fsdp) + len(trace.gloo)
        shown = _longest(kernels, max(0, max_events - annotations)) if kernels else np.empty(0, dtype=np.int64)
        few = len(shown) + len(trace.operators) + len(trace.gloo) <= max_events
        return cls(trace, shown, with_operators=few and not trace.operators_left_out)

    @property
    def operators_left_out(self) -> int:
        return self.trace.operators_left_out + (0 if self.with_operators else len(self.trace.operators))

    @property
    def kernels_left_out(self) -> int:
        return len(self.trace.kernels) - len(self.shown) if self.trace.on_cuda else 0

    def lines(self, name: str, zero_s: float) -> Iterator[str]:
        """The rank's metadata, then its events in order of time, each as JSON."""
        trace, lanes = self.trace, self._lanes()
        yield from _metadata(trace.rank, name, lanes)
        scopes = trace.gloo if self.with_operators else (*_annotations(trace), *trace.gloo)
        timed = [
            *_kernel_lines(trace, self.shown, lanes, zero_s),
            *_scope_lines(trace.rank, scopes, lanes, zero_s),
            *(_operator_lines(trace.rank, trace.operators, lanes, zero_s) if self.with_operators else ()),
            *(_arrows(trace, self.shown, lanes, zero_s) if trace.on_cuda else ()),
        ]
        timed.sort(key=itemgetter(0))
        yield from (line for _, line in timed)

    def _lanes(self) -> _Lanes:
        """Number of each lane's row in the process: streams, then threads."""
        streams = sorted(set(self.trace.kernels.stream[self.shown].tolist()))
        scopes = [*_annotations(self.trace), *self.trace.gloo]
        threads = {scope.thread for scope in scopes} | set(self.trace.kernels.thread[self.shown].tolist())
        if self.with_operators:
            threads |= set(self.trace.operators.thread.tolist())
        lanes = [("stream", stream) for stream in streams] + [("thread", thread) for thread in sorted(threads)]
        return {lane: row for row, lane in enumerate(lanes, start=1)}


def _longest(kernels: Kernels, number: int) -> "np.typing.NDArray[np.int64]":
    """Places of the kernels to show, in order: those that communicate, then the longest."""
    importance = kernels.end_s - kernels.start_s + np.where(kernels.communicates, np.inf, 0.0)
    return np.sort(np.argsort(-importance, kind="stable")[:number])


def _annotations(trace: RankTrace) -> list[Scope]:
    return [*trace.steps, *(scope for scope, _ in trace.labels), *trace.fsdp]


def _metadata(rank: int, name: str, lanes: _Lanes) -> Iterator[str]:
    yield _json({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}})
    yield _json({"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}})
    for (what, number), row in lanes.items():
        lane = {"ph": "M", "pid": rank, "tid": row}
        yield _json({**lane, "name": "thread_name", "args": {"name": f"{what} {number}"}})
        yield _json({**lane, "name": "thread_sort_index", "args": {"sort_index": row}})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _slices(
    heads: Iterable[str], rows: Iterable[int], start_s: Floats, end_s: Floats, zero_s: float
) -> Iterator[Timed]:
    """Slices of which ``heads`` are the JSON up to the lane; put together by hand, for there are many."""
    ts_us, dur_us = _microseconds(start_s - zero_s), _microseconds(np.maximum(0.0, end_s - start_s))
    for head, row, (at_us, ts), (_, dur) in zip(heads, rows, ts_us, dur_us, strict=True):
        yield at_us, f'{head},"tid":{row},"ts":{ts},"dur":{dur}}}'


def _microseconds(times_s: Floats) -> Iterator[tuple[float, str]]:
    """Times in microseconds, rounded to nanoseconds, each as number and as JSON."""
    times_us = np.round(times_s * 1e6, 3).tolist()
    return zip(times_us, _json(times_us)[1:-1].split(","), strict=True) if times_us else iter(())


def _head(rank: int, name: str, **more: str) -> str:
    return _json({"ph": "X", "name": name, "pid": rank, **more})[:-1]


def _scope_lines(rank: int, scopes: Sequence[Scope], lanes: _Lanes, zero_s: float) -> Iterator[Timed]:
    heads = [_head(rank, scope.name) for scope in scopes]
    rows = [lanes["thread", scope.thread] for scope in scopes]
    start_s, end_s = np.array([scope.start_s for scope in scopes]), np.array([scope.end_s for scope in scopes])
    return _slices(heads, rows, start_s, end_s, zero_s)


def _operator_lines(rank: int, spans: Spans, lanes: _Lanes, zero_s: float) -> Iterator[Timed]:
    heads = [_head(rank, name) for name in spans.names]
    rows = [lanes["thread", thread] for thread in spans.thread.tolist()]
    return _slices([heads[name] for name in spans.name.tolist()], rows, spans.start_s, spans.end_s, zero_s)


def _kernel_lines(trace: RankTrace, shown: Any, lanes: _Lanes, zero_s: float) -> Iterator[Timed]:
    kernels = trace.kernels
    kinds = [KINDS[kind] for kind in kernels.kinds.tolist()]
    heads = [_head(trace.rank, name, cat=kind) for name, kind in zip(kernels.names, kinds, strict=True)]
    rows = [lanes["stream", stream] for stream in kernels.stream[shown].tolist()]
    shown_heads = [heads[name] for name in kernels.name[shown].tolist()]
    return _slices(shown_heads, rows, kernels.start_s[shown], kernels.end_s[shown], zero_s)


def _arrows(trace: RankTrace, shown: Any, lanes: _Lanes, zero_s: float) -> Iterator[Timed]:
    """Both ends of the arrows from launches to kernels that communicate; none if they are too many."""
    kernels = trace.kernels
    known = shown[kernels.communicates[shown] & ~np.isnan(kernels.launch_s[shown])]
    if len(known) > MAX_ARROWS:
        return
    launched, started = _microseconds(kernels.launch_s[known] - zero_s), _microseconds(kernels.start_s[known] - zero_s)
    lanes_of = (kernels.thread[known].tolist(), kernels.stream[known].tolist())
    head = f'{{"name":"launch","cat":"launch","pid":{trace.rank},"id":'
    ends = zip(known.tolist(), *lanes_of, launched, started, strict=True)
    for place, thread, stream, (launch_us, launch), (start_us, start) in ends:
        both = f"{head}{trace.rank * 10**8 + place}"
        yield launch_us, f'{both},"ph":"s","tid":{lanes["thread", thread]},"ts":{launch}}}'
        yield start_us, f'{both},"ph":"f","bp":"e","tid":{lanes["stream", stream]},"ts":{start}}}'
