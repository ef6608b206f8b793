"""All ranks of a launch in one chrome trace that is small enough to hand on: for https://ui.perfetto.dev.

Each rank is a process, named with its place in the mesh; its streams come first, then the threads of its host. An
arrow leads from the launch of each collective to its kernel. The profiler's own files hold every argument of every
operator and are many times as large; here are kernels, annotations and our labels, and the operators where they
are few. What was left out is counted in ``otherData``.

Times are microseconds from the first event of any rank, in order within each rank.
"""

import gzip
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from epbench.analysis.columns import Kernels, Spans
from epbench.analysis.kinds import KINDS
from epbench.analysis.trace import RankTrace, Scope
from epbench.layout import Layout

__all__ = ["MAX_EVENTS", "rank_name", "write_merged"]

MAX_EVENTS = 200_000  # of all ranks together: about 30 MB of JSON
MAX_ARROWS = 20_000
_LINES_AT_ONCE = 2_000

Event = dict[str, Any]


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

    Streamed: besides the traces only some thousand events are held at a time. The file appears under its name when
    it is whole.
    """
    zero_s = min(step.start_s for trace in traces for step in trace.steps)
    parts = [_Part.of(trace, max_events // len(traces)) for trace in traces]
    unfinished = path.with_name(path.name + ".part")
    with gzip.open(unfinished, "wb", compresslevel=4) as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        for index, (part, name) in enumerate(zip(parts, names, strict=True)):
            file.write(b",\n" if index else b"")
            _write_lines(file, part.events(name, zero_s))
        left_out = {
            "operators_left_out": sum(part.operators_left_out for part in parts),
            "kernels_left_out": sum(part.kernels_left_out for part in parts),
        }
        file.write(b'\n],"otherData":' + msgspec.json.encode(left_out) + b"}\n")
    unfinished.replace(path)


def _write_lines(file: gzip.GzipFile, events: Iterable[Event]) -> None:
    """The events one to a line, with commas between them."""
    lines: list[bytes] = []
    separator = b""
    for event in events:
        lines.append(msgspec.json.encode(event))
        if len(lines) == _LINES_AT_ONCE:
            file.write(separator + b",\n".join(lines))
            lines, separator = [], b",\n"
    if lines:
        file.write(separator + b",\n".join(lines))


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

    def events(self, name: str, zero_s: float) -> Iterator[Event]:
        """The rank's metadata, then its events in order of time."""
        trace, lanes = self.trace, self._lanes()
        yield from _metadata(trace.rank, name, lanes)
        scopes = sorted([*_annotations(trace), *trace.gloo] if not self.with_operators else trace.gloo, key=_start_s)
        sources = [
            _kernel_events(trace, self.shown, lanes, zero_s),
            _scope_events(trace.rank, scopes, lanes, zero_s),
            _operator_events(trace.rank, trace.operators, lanes, zero_s) if self.with_operators else (),
            *(_arrows(trace, self.shown, lanes, zero_s) if trace.on_cuda else ()),
        ]
        yield from heapq.merge(*sources, key=lambda event: float(event["ts"]))

    def _lanes(self) -> dict[tuple[str, int], int]:
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


def _start_s(scope: Scope) -> float:
    return scope.start_s


def _metadata(rank: int, name: str, lanes: dict[tuple[str, int], int]) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}
    for (what, number), row in lanes.items():
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": f"{what} {number}"}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": rank, "tid": row, "args": {"sort_index": row}}


def _slice(name: str, rank: int, row: int, start_s: float, end_s: float, zero_s: float) -> Event:
    times = {"ts": _microseconds(start_s, zero_s), "dur": round(max(0.0, end_s - start_s) * 1e6, 3)}
    return {"ph": "X", "name": name, "pid": rank, "tid": row, **times}


def _microseconds(time_s: float, zero_s: float) -> float:
    return round((time_s - zero_s) * 1e6, 3)


def _scope_events(
    rank: int, scopes: Iterable[Scope], lanes: dict[tuple[str, int], int], zero_s: float
) -> Iterator[Event]:
    for scope in scopes:
        yield _slice(scope.name, rank, lanes["thread", scope.thread], scope.start_s, scope.end_s, zero_s)


def _operator_events(rank: int, spans: Spans, lanes: dict[tuple[str, int], int], zero_s: float) -> Iterator[Event]:
    columns = (spans.name.tolist(), spans.start_s.tolist(), spans.end_s.tolist(), spans.thread.tolist())
    for name, start_s, end_s, thread in zip(*columns, strict=True):
        yield _slice(spans.names[name], rank, lanes["thread", thread], start_s, end_s, zero_s)


def _kernel_events(trace: RankTrace, shown: Any, lanes: dict[tuple[str, int], int], zero_s: float) -> Iterator[Event]:
    kernels = trace.kernels
    columns = (kernels.name[shown], kernels.kind[shown], kernels.start_s[shown], kernels.end_s[shown])
    streams = kernels.stream[shown].tolist()
    for name, kind, start_s, end_s, stream in zip(*(column.tolist() for column in columns), streams, strict=True):
        event = _slice(kernels.names[name], trace.rank, lanes["stream", stream], start_s, end_s, zero_s)
        yield event | {"cat": KINDS[kind]}


def _arrows(
    trace: RankTrace, shown: Any, lanes: dict[tuple[str, int], int], zero_s: float
) -> tuple[list[Event], list[Event]]:
    """Both ends of the arrows from launches to kernels that communicate; none if they are too many."""
    kernels = trace.kernels
    known = shown[kernels.communicates[shown] & ~np.isnan(kernels.launch_s[shown])]
    starts, ends = list[Event](), list[Event]()
    for place in known.tolist() if len(known) <= MAX_ARROWS else ():
        both = {"name": "launch", "cat": "launch", "id": trace.rank * 10**8 + place, "pid": trace.rank}
        thread, stream = int(kernels.thread[place]), int(kernels.stream[place])
        launched, started = float(kernels.launch_s[place]), float(kernels.start_s[place])
        starts.append({**both, "ph": "s", "tid": lanes["thread", thread], "ts": _microseconds(launched, zero_s)})
        end = {"tid": lanes["stream", stream], "ts": _microseconds(started, zero_s)}
        ends.append({**both, "ph": "f", "bp": "e", **end})
    return sorted(starts, key=_ts), sorted(ends, key=_ts)


def _ts(event: Event) -> float:
    return float(event["ts"])
