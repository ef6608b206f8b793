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

from epbench.analysis.columns import Kernels, Spans, kernel_kinds, own_time
from epbench.analysis.events import Arguments, Document, Event, load
from epbench.analysis.kinds import is_communication
from epbench.errors import RunError
from epbench.labels import CommLabel

__all__ = ["Group", "RankTrace", "Scope", "read_rank"]

STEP_PREFIX = "epbench:step#"
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
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
        "issues": () if device else _scopes(event for event in found["cpu_op"] if event.name.startswith("c10d::")),
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


def _scopes(events: Iterable[Event]) -> tuple[Scope, ...]:
    alike: dict[Any, Any] = {}  # calls of one kind have one name: once in memory, and on the way between processes
    scopes = [
        Scope(
            alike.setdefault(event.name, event.name),
            event.ts * _US,
            (event.ts + _duration(event)) * _US,
            _thread(event.tid),
            event.args,
        )
        for event in events
    ]
    return tuple(sorted(scopes, key=lambda scope: scope.start_s))


def _labelled(scopes: Sequence[Scope]) -> tuple[tuple[Scope, CommLabel], ...]:
    labels = {name: _label(name) for name in {scope.name for scope in scopes}}
    return tuple((scope, labels[scope.name]) for scope in scopes)


def _spans(events: Sequence[Event]) -> Spans:
    names, name = _named(events)
    start_us = np.array([event.ts for event in events], dtype=np.float64)
    length_us = np.array([_duration(event) for event in events], dtype=np.float64)
    thread = np.array([_thread(event.tid) for event in events], dtype=np.int64)
    return Spans(names, name, start_us * _US, (start_us + length_us) * _US, thread)


def _kernels(device: Sequence[Event], launching: Sequence[Event]) -> Kernels:
    """Kernels in order of start, each with the launch that its correlation id names."""
    device = sorted(device, key=attrgetter("ts"))
    launched: dict[int | None, Event] = {event.args.correlation: event for event in launching}
    launched.pop(None, None)
    launches = [launched.get(event.args.correlation) for event in device]
    spans = _spans(device)
    return Kernels(
        names=spans.names,
        kinds=kernel_kinds(spans.names),
        name=spans.name,
        start_s=spans.start_s,
        end_s=spans.end_s,
        launch_s=np.array([np.nan if one is None else one.ts * _US for one in launches], dtype=np.float64),
        thread=np.array([-1 if one is None else _thread(one.tid) for one in launches], dtype=np.int64),
        stream=spans.thread,  # the lane of a kernel is its stream
        args=_about_calls(device, spans),
    )


def _about_calls(device: Sequence[Event], spans: Spans) -> dict[int, Arguments]:
    """The arguments of kernels that communicate, by place; equal ones are one object."""
    moves = [is_communication(name) for name in spans.names]
    alike: dict[bytes, Arguments] = {}
    found = {}
    for place, name in enumerate(spans.name.tolist()):
        if moves[name]:
            args = msgspec.structs.replace(device[place].args, correlation=None)
            found[place] = alike.setdefault(msgspec.json.encode(args), args)
    return found


def _named(events: Iterable[Event]) -> tuple[tuple[str, ...], Any]:
    """The names, each once, and per event the place of its own."""
    places: dict[str, int] = {}
    name = [places.setdefault(event.name, len(places)) for event in events]
    return tuple(places), np.array(name, dtype=np.int64)


def _duration(event: Event) -> float:
    if event.dur is None:
        raise ValueError(f"{event.name!r} has no duration")
    return event.dur


def _thread(tid: int | str) -> int:
    """Thread or stream; a lane that has a name and no number holds nothing that a thread did."""
    return tid if isinstance(tid, int) else -1


def _label(text: str) -> CommLabel:
    label = CommLabel.parse(text)
    assert label is not None, f"{text!r} starts like a label"
    return label
