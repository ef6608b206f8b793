"""Chrome traces of the torch profiler, one per rank, reduced to what the analysis needs.

Times are seconds on the clock that all traces of a host share: an event's ``ts`` (microseconds) counts from
the trace's ``baseTimeNanoseconds``, and the bases of two ranks may differ. Of each collective a CUDA trace
holds three events: the host's annotation, the kernel, and a copy of the annotation on the device's time
line (category ``gpu_user_annotation``), which is left out here so that nothing is counted twice.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from epbench.analysis.columns import Floats, Integers, Kernels, Spans, kernel_kinds, own_time
from epbench.analysis.events import NO_CORRELATION, Arguments, Document, Event, load
from epbench.analysis.kinds import is_communication
from epbench.errors import RunError
from epbench.labels import CommLabel

__all__ = ["Group", "RankTrace", "Scope", "read_rank"]

STEP_PREFIX = "epbench:step#"
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
NO_THREAD = -1  # of a lane that has a name and no number, and of a kernel whose launch is not known
MAX_OPERATORS = 50_000  # of a rank with a device, whose operators are for looking at only
_SCOPES = {"steps": STEP_PREFIX, "labels": "comm:", "fsdp": "FSDP::", "gloo": "gloo:"}

_US = 1e-6
_By = dict[str, list[Event]]


class Scope(msgspec.Struct, frozen=True, gc=False):
    """Something that a host thread was in: an annotation, or an operator with its arguments."""

    name: str
    start_s: float
    end_s: float
    thread: int
    args: Arguments

    def later(self, by_s: float) -> "Scope":
        """The same at another time."""
        return Scope(self.name, self.start_s + by_s, self.end_s + by_s, self.thread, self.args)


@dataclass(frozen=True, slots=True)
class Group:
    """A process group that the rank belongs to."""

    description: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class RankTrace:
    """One rank's trace, everything in order of start."""

    rank: int
    base_ns: int  # what times count from, since 1970
    world_size: int | None  # as the trace has it
    host: str | None
    groups: tuple[Group, ...]
    on_cuda: bool  # whether a device's time line was recorded
    steps: tuple[Scope, ...]
    labels: tuple[tuple[Scope, CommLabel], ...]  # the collectives that the stack labelled
    fsdp: tuple[Scope, ...]  # FSDP2's own annotations
    issues: tuple[Scope, ...]  # operators c10d::*, labelled or not
    gloo: tuple[Scope, ...]  # what gloo's worker threads did
    operators: Spans  # of the host, annotations included, but for gloo's threads
    operators_left_out: int  # so many that nobody would look at them one by one
    kernels: Kernels

    def step_at(self, time_s: float) -> int | None:
        """Index of the traced step in which the host was at a time; None between and outside of steps."""
        for index, step in enumerate(self.steps):
            if step.start_s <= time_s <= step.end_s:
                return index
        return None

    def counted_from(self, base_ns: int) -> "RankTrace":
        """The same with times that count from another base."""
        by_s = (self.base_ns - base_ns) * 1e-9
        if by_s == 0:
            return self
        return replace(
            self,
            base_ns=base_ns,
            steps=tuple(scope.later(by_s) for scope in self.steps),
            labels=tuple((scope.later(by_s), label) for scope, label in self.labels),
            fsdp=tuple(scope.later(by_s) for scope in self.fsdp),
            issues=tuple(scope.later(by_s) for scope in self.issues),
            gloo=tuple(scope.later(by_s) for scope in self.gloo),
            operators=self.operators.later(by_s),
            kernels=self.kernels.later(by_s),
        )


def read_rank(path: Path, *, rank: int) -> RankTrace:
    """One rank's trace, its times counted from its own base. Raises RunError if it cannot be read."""
    document = load(path)
    distributed = document.distributed or {}
    try:
        return RankTrace(
            rank=rank,
            base_ns=document.base_ns,
            world_size=distributed.get("world_size"),
            host=document.host_name,
            groups=tuple(_groups(distributed)),
            **_sorted(document),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: an event of the trace makes no sense ({error!r}); run the cell again") from error


def _groups(distributed: dict[str, Any]) -> Iterator[Group]:
    for group in distributed.get("pg_config") or []:
        yield Group(str(group.get("pg_desc")), tuple(group.get("ranks") or ()))


def _sorted(document: Document) -> dict[str, Any]:
    """The events by what they are for, each kind in order of start."""
    found = _by_category(document)
    scopes = {kind: _scopes(found[kind]) for kind in _SCOPES}
    device = [event for category in DEVICE_WORK for event in found[category]]
    annotations = [event for kind in ("steps", "labels", "fsdp", "annotations") for event in found[kind]]
    too_many = len(found["cpu_op"]) if device and len(found["cpu_op"]) > MAX_OPERATORS else 0
    operators = _spans([*([] if too_many else found["cpu_op"]), *annotations]).in_order()
    if device:
        kernels = _kernels(device, [event for category in LAUNCHES for event in found[category]])
    else:
        names = {event.name for event in annotations}
        kernels = own_time(operators, _spans(found["gloo"]), annotations=names)
    return {
        **scopes,
        "labels": _labelled(scopes["labels"]),
        "issues": () if device else _scopes([event for event in found["cpu_op"] if event.name.startswith("c10d::")]),
        "on_cuda": bool(device),
        "operators": operators,
        "operators_left_out": too_many,
        "kernels": kernels,
    }


def _by_category(document: Document) -> _By:
    """Complete events by category; annotations by what they are for."""
    found: _By = defaultdict(list)
    for event in document.events:
        if event.ph == "X":
            found[event.cat].append(event)
    for event in found.pop("user_annotation", []):
        kind = next((kind for kind, start in _SCOPES.items() if event.name.startswith(start)), "annotations")
        found[kind].append(event)
    return found


def _scopes(events: Sequence[Event]) -> tuple[Scope, ...]:
    alike: dict[str, str] = {}  # calls of one kind have one name: once in memory, and on the way between processes
    spans = _spans(events)
    columns = (spans.start_s.tolist(), spans.end_s.tolist(), spans.thread.tolist())
    scopes = [
        Scope(alike.setdefault(event.name, event.name), start_s, end_s, thread, event.args)
        for event, start_s, end_s, thread in zip(events, *columns, strict=True)
    ]
    return tuple(sorted(scopes, key=attrgetter("start_s")))


def _labelled(scopes: Sequence[Scope]) -> tuple[tuple[Scope, CommLabel], ...]:
    """Each labelled collective once: a label within a label of its thread is the same collective again."""
    labels = {name: _label(name) for name in {scope.name for scope in scopes}}
    over_s: dict[int, float] = {}  # per thread, when its last label ends
    found = []
    for scope in scopes:
        if scope.start_s >= over_s.get(scope.thread, -np.inf):
            over_s[scope.thread] = scope.end_s
            found.append((scope, labels[scope.name]))
    return tuple(found)


def _spans(events: Sequence[Event]) -> Spans:
    names, name = _named(events)
    start_us, length_us = _column(events, "ts", np.float64), _column(events, "dur", np.float64)
    return Spans(names, name, start_us * _US, (start_us + length_us) * _US, _threads(events))


def _column(events: Sequence[Event], field: str, dtype: type[np.generic]) -> Any:
    return np.fromiter(map(attrgetter(field), events), dtype, len(events))


def _threads(events: Sequence[Event]) -> Integers:
    threads = (event.tid if isinstance(event.tid, int) else NO_THREAD for event in events)
    return np.fromiter(threads, np.int64, len(events))


def _kernels(device: Sequence[Event], launching: Sequence[Event]) -> Kernels:
    """Kernels in order of start, each with its launch; streams are the lanes of kernels."""
    spans = _spans(device)
    launch_s, thread = _launches(device, launching)
    order = np.argsort(spans.start_s, kind="stable")
    ordered = spans.taken(order)
    return Kernels(
        names=spans.names,
        kinds=kernel_kinds(spans.names),
        name=ordered.name,
        start_s=ordered.start_s,
        end_s=ordered.end_s,
        launch_s=launch_s[order],
        thread=thread[order],
        stream=ordered.thread,
        args=_about_calls(device, spans, order),
    )


def _launches(device: Sequence[Event], launching: Sequence[Event]) -> tuple[Floats, Integers]:
    """When and on which thread each kernel was launched, by its correlation id; NaN and -1 where that is not known."""
    ids, launched = (_column(events, "args.correlation", np.int64) for events in (device, launching))
    if not len(launched):
        return np.full(len(device), np.nan), np.full(len(device), NO_THREAD)
    by_id = np.argsort(launched, kind="stable")
    found = by_id[np.searchsorted(launched[by_id], ids, side="right") - 1]
    known = (ids != NO_CORRELATION) & (launched[found] == ids)
    launch_s = _column(launching, "ts", np.float64) * _US
    return np.where(known, launch_s[found], np.nan), np.where(known, _threads(launching)[found], NO_THREAD)


def _about_calls(device: Sequence[Event], spans: Spans, order: Integers) -> dict[int, Arguments]:
    """The arguments of kernels that communicate, by place in ``order``; equal ones are one object."""
    moves = np.array([is_communication(name) for name in spans.names])[spans.name[order]]
    alike: dict[bytes, Arguments] = {}
    found = {}
    for place in np.flatnonzero(moves).tolist():
        args = msgspec.structs.replace(device[order[place]].args, correlation=NO_CORRELATION)
        found[place] = alike.setdefault(msgspec.json.encode(args), args)
    return found


def _named(events: Iterable[Event]) -> tuple[tuple[str, ...], Integers]:
    """The names, each once, and per event the place of its own."""
    places: dict[str, int] = {}
    name = [places.setdefault(event.name, len(places)) for event in events]
    return tuple(places), np.array(name, dtype=np.int64)


def _label(text: str) -> CommLabel:
    label = CommLabel.parse(text)
    assert label is not None, f"{text!r} starts like a label"
    return label
