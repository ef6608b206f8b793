"""Every collective of a rank's trace: what it was for, how much it moved, and when the device was at it.

The stack labels its own collectives (epbench.labels), so their meaning is read, not guessed. Those that
FSDP2 and DTensor issue carry no label of ours: their op, bytes and group come from the arguments of NCCL's
kernel, or on gloo from those of the ``c10d::`` operator, their phase from FSDP2's annotations around them.

*When* differs by device. On CUDA an annotation is host time, and the collective is the NCCL kernels
launched inside it, on the annotation's thread: matched through the launch's correlation id, and never
through the copy of the annotation on the device's time line. On gloo the transfer runs on a worker thread,
whose ``gloo:`` event is taken; the annotation stands in where there is none.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec
import numpy as np

from epbench.analysis.events import NO_ARGUMENTS, Arguments
from epbench.analysis.trace import RankTrace, Scope
from epbench.labels import CommLabel

__all__ = ["Call", "Kind", "bus_bytes", "calls_of"]

OPS = {  # how the op is spelled in names of kernels and operators, less case and underscores
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "alltoall": "all_to_all",
    "sendrecv": "all_to_all",
    "broadcast": "broadcast",
}
GLOO_EVENTS = {  # gloo's reduce-scatter is a whole all-reduce
    "reduce_scatter": ("gloo:reduce_scatter", "gloo:all_reduce"),
}
ITEM_BYTES = {  # by the names of NCCL's kernel arguments and of the profiler's input types
    **dict.fromkeys(("double", "long", "long int", "c10::complex<float>"), 8),
    **dict.fromkeys(("float", "int"), 4),
    **dict.fromkeys(("half", "bfloat16", "c10::half", "c10::bfloat16", "short", "short int"), 2),
    **dict.fromkeys(("byte", "char", "bool", "unsigned char", "signed char"), 1),
}


Span = tuple[float, float]  # start and end, seconds


FSDP_COMMUNICATES = re.compile(r"FSDP::(all_gather|post_backward_reduce|reduce_scatter|all_reduce)\b")


class Kind(NamedTuple):
    """What calls are added up by: one row of the result."""

    op: str
    purpose: str
    phase: str
    axis: str


class Call(msgspec.Struct, frozen=True, gc=False):
    """One rank's part in one collective. ``start_s`` is None if the device had nothing to do for it."""

    kind: Kind
    root: int | None  # lowest rank of the group; None if the trace does not tell the group
    size: int | None
    step: int
    issued_s: float
    start_s: float | None
    end_s: float | None
    bytes: int  # the larger of the whole buffers sent and received
    bus_bytes: float | None  # what of it crosses the bus, as nccl-tests count; None if the group is not known


def calls_of(trace: RankTrace) -> list[Call]:
    """The collectives of the traced steps, in the order in which the host issued them."""
    found = _cuda_calls(trace) if trace.on_cuda else _gloo_calls(trace)
    return sorted(found, key=lambda call: call.issued_s)


def _labelled(label: CommLabel, *, step: int, issued_s: float, spans: list[Span]) -> Call:
    return Call(
        kind=Kind(label.op, label.purpose, label.phase, label.axis),
        root=label.root,
        size=label.size,
        step=step,
        issued_s=issued_s,
        start_s=min(start_s for start_s, _ in spans) if spans else None,
        end_s=max(end_s for _, end_s in spans) if spans else None,
        bytes=(size := max(label.sent_bytes, label.received_bytes)),
        bus_bytes=bus_bytes(label.op, size, label.size) if label.kept_bytes is None else size - label.kept_bytes,
    )


def bus_bytes(op: str, size: int, ranks: int | None) -> float | None:
    """Bytes over the bus of a buffer of ``size`` bytes that is split evenly, as nccl-tests define them.

    A ring moves (n - 1) / n of the whole buffer, an all-reduce twice that; an even all-to-all keeps its own n-th.
    """
    factors = {"all_to_all": 1, "all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}
    if ranks is None or ranks < 2 or op not in factors:
        return None
    return factors[op] * size * (ranks - 1) / ranks


def _op(name: str) -> str:
    """The collective's usual name, from however a library spells it; the name itself if unknown."""
    plain = name.lower().replace("_", "")
    return next((op for part, op in OPS.items() if part in plain), name)


def _purpose(axis: str, around: list[Scope]) -> str:
    """``fsdp`` for what FSDP2 issues itself; DTensor redistributes gradients within other scopes of FSDP2."""
    if any(FSDP_COMMUNICATES.match(scope.name) for scope in around):
        return "fsdp"
    return axis if axis == "tp" else "other"


def _phase(op: str, around: list[Scope]) -> str:
    """Phase of an unlabelled collective by FSDP2's annotations around it; gradients are reduced in backward."""
    backward = op == "reduce_scatter" or any("backward" in scope.name for scope in around)
    return "backward" if backward else "forward"


class _Around:
    """Finds the scopes, given in order of start, that a host thread was in at a time."""

    def __init__(self, scopes: Iterable[Scope]) -> None:
        self.scopes = list(scopes)
        self.starts_s = [scope.start_s for scope in self.scopes]
        self.reach_s = list(accumulate((scope.end_s for scope in self.scopes), max))

    def indices(self, time_s: float, thread: int) -> list[int]:
        """Indices of the enclosing scopes, outermost first."""
        first = bisect_left(self.reach_s, time_s)  # all before have ended
        begun = range(first, bisect_right(self.starts_s, time_s))
        return [i for i in begun if self.scopes[i].thread == thread and time_s <= self.scopes[i].end_s]

    def at(self, time_s: float, thread: int) -> list[Scope]:
        """The enclosing scopes, outermost first."""
        return [self.scopes[index] for index in self.indices(time_s, thread)]


# ---------------------------------------------------------------- CUDA


def _cuda_calls(trace: RankTrace) -> Iterator[Call]:
    labelled = _Around(scope for scope, _ in trace.labels)
    spans: dict[int, list[Span]] = defaultdict(list)
    rest: list[_CommKernel] = []
    for kernel in _communicating(trace):
        owners = labelled.indices(kernel.launch_s, kernel.thread) if kernel.launched else []
        if owners:
            spans[owners[0]].append((kernel.start_s, kernel.end_s))
        else:
            rest.append(kernel)
    for index, (scope, label) in enumerate(trace.labels):
        if (step := trace.step_at(scope.start_s)) is not None:
            yield _labelled(label, step=step, issued_s=scope.start_s, spans=spans[index])
    yield from _unlabelled_kernels(trace, rest)


class _CommKernel(NamedTuple):
    """A kernel that communicates; ``launch_s`` is its start where the launch was not recorded."""

    name: str
    start_s: float
    end_s: float
    launch_s: float
    thread: int
    launched: bool
    args: Arguments


def _communicating(trace: RankTrace) -> Iterator[_CommKernel]:
    kernels = trace.kernels
    places = np.flatnonzero(kernels.communicates)
    columns = (kernels.name, kernels.start_s, kernels.end_s, kernels.launch_s, kernels.thread)
    for place, *values in zip(places.tolist(), *(column[places].tolist() for column in columns), strict=True):
        name, start_s, end_s, launch_s, thread = values
        launched = not math.isnan(launch_s)
        since_s = launch_s if launched else start_s
        args = kernels.args.get(place, NO_ARGUMENTS)
        yield _CommKernel(kernels.names[name], start_s, end_s, since_s, thread, launched, args)


def _unlabelled_kernels(trace: RankTrace, kernels: Iterable[_CommKernel]) -> Iterator[Call]:
    fsdp = _Around(trace.fsdp)
    for kernel in kernels:
        step = trace.step_at(kernel.launch_s)
        if step is None:
            continue
        around = fsdp.at(kernel.launch_s, kernel.thread)
        op = _op(str(kernel.args.collective or kernel.name))
        axis = _kernel_axis(op, str(kernel.args.group or "unknown"), around)
        on_main = kernel.thread in (-1, trace.steps[step].thread)
        yield Call(
            kind=Kind(
                op=op,
                purpose=_purpose(axis, around),
                phase=_phase(op, around) if on_main else "backward",  # autograd has a thread of its own
                axis=axis,
            ),
            root=_first_rank(kernel.args.group_ranks),
            size=(ranks := _integer(kernel.args.group_size)),
            step=step,
            issued_s=kernel.launch_s,
            start_s=kernel.start_s,
            end_s=kernel.end_s,
            bytes=(size := _kernel_bytes(kernel.args)),
            bus_bytes=bus_bytes(op, size, ranks),
        )


def _kernel_axis(op: str, group: str, around: list[Scope]) -> str:
    """Mesh axis by its process group's description; an axis that spans the world borrows the default group."""
    if group != "default_pg":
        return group.removeprefix("mesh_")
    return _fsdp_axis(op, around) if _purpose("world", around) == "fsdp" else "world"


def _kernel_bytes(args: Arguments) -> int:
    elements = max(_integer(args.sent_elements) or 0, _integer(args.received_elements) or 0)
    return elements * ITEM_BYTES.get(str(args.dtype).lower(), 0)


def _first_rank(ranks: Any) -> int | None:
    """Lowest rank of a list that NCCL writes as text, ``[0, 1]``, cut short when long."""
    numbers = re.findall(r"\d+", str(ranks))
    return min(map(int, numbers), default=None)


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) or str(value).isdecimal() else None


# ---------------------------------------------------------------- gloo


def _gloo_calls(trace: RankTrace) -> Iterator[Call]:
    transfers = _Transfers(trace.gloo)
    fsdp = _Around(trace.fsdp)
    for scope, label in _asked(trace):
        step = trace.step_at(scope.start_s)
        if step is None:
            continue
        if label is not None:
            event = transfers.take(label.op, scope.start_s, scope.end_s) or scope
            spans = [(event.start_s, event.end_s)]
            yield _labelled(label, step=step, issued_s=scope.start_s, spans=spans)
        else:
            event = transfers.take(_op(scope.name), scope.start_s, trace.steps[step].end_s) or scope
            around = fsdp.at(scope.start_s, scope.thread)
            yield _unlabelled_operator(trace, scope, event, step=step, around=around)


def _asked(trace: RankTrace) -> list[tuple[Scope, CommLabel | None]]:
    """What the host asked for, in order: labelled collectives, and operators outside of any label."""
    labelled = _Around(scope for scope, _ in trace.labels)
    operators = _Around(trace.issues)
    asked: list[tuple[Scope, CommLabel | None]] = list(trace.labels)
    for scope in trace.issues:
        nested = len(operators.indices(scope.start_s, scope.thread)) > 1
        if not nested and not labelled.indices(scope.start_s, scope.thread):
            asked.append((scope, None))
    return sorted(asked, key=lambda pair: pair[0].start_s)


class _Transfers:
    """The worker threads' events, each to be given to one call."""

    def __init__(self, events: Iterable[Scope]) -> None:
        self.left: dict[str, list[Scope]] = defaultdict(list)
        for event in events:
            self.left[event.name].append(event)

    def take(self, op: str, not_before_s: float, not_after_s: float) -> Scope | None:
        """The first event of this op that starts in the window, which nobody else then gets."""
        fitting = [
            event
            for name in GLOO_EVENTS.get(op, (f"gloo:{op}",))
            for event in self.left[name]
            if not_before_s <= event.start_s <= not_after_s
        ]
        if not fitting:
            return None
        first = min(fitting, key=lambda event: event.start_s)
        self.left[first.name].remove(first)
        return first


def _unlabelled_operator(trace: RankTrace, operator: Scope, event: Scope, *, step: int, around: list[Scope]) -> Call:
    op = _op(operator.name.removeprefix("c10d::"))
    axis = _gloo_axis(op, around)
    buffers = _buffer_elements(operator.args)
    size = max(buffers) // min(buffers) if op in ("all_gather", "reduce_scatter") and min(buffers) else None
    ranks = _ranks_on(trace, axis, size)
    moved = max(buffers) * (_item_bytes(operator.args) or _item_bytes(event.args))
    return Call(
        kind=Kind(op, _purpose(axis, around), _phase(op, around), axis),
        root=min(ranks) if ranks else None,
        size=len(ranks) if ranks else size,
        step=step,
        issued_s=operator.start_s,
        start_s=event.start_s,
        end_s=event.end_s,
        bytes=moved,
        bus_bytes=bus_bytes(op, moved, len(ranks) if ranks else size),
    )


def _gloo_axis(op: str, around: list[Scope]) -> str:
    """Mesh axis by what FSDP2 does with it and by the name of the module that it does it for."""
    if _purpose("unknown", around) != "fsdp":
        return "unknown"
    return _fsdp_axis(op, around)


def _fsdp_axis(op: str, around: list[Scope]) -> str:
    """Replicas are reduced over; which of the two meshes is sharded over tells the name of FSDP2's module."""
    if op == "all_reduce":
        return "dp_replicate"
    return "efsdp" if any("expert" in scope.name for scope in around) else "fsdp"


def _ranks_on(trace: RankTrace, axis: str, size: int | None) -> tuple[int, ...] | None:
    """Ranks of this rank's group on an axis, if the trace lists the group or it can only be the world."""
    named = [group.ranks for group in trace.groups if group.description == f"mesh_{axis}"]
    fitting = [ranks for ranks in named if ranks and size in (None, len(ranks))]
    if fitting:
        return fitting[0]
    return tuple(range(size)) if size is not None and size == trace.world_size else None


def _buffer_elements(args: Arguments) -> list[int]:
    """Elements of the operator's tensor arguments, at least one entry."""
    shapes = [shape for shape in args.dims or [] if shape]
    return [_elements(shape) for shape in shapes] or [0]


def _elements(shape: list[Any]) -> int:
    """Elements of one shape, or of a list of shapes together."""
    if shape and isinstance(shape[0], list):
        return sum(map(_elements, shape))
    return math.prod(shape)


def _item_bytes(args: Arguments) -> int:
    """Bytes of one element; 0 where the type is not told, as for a list of tensors."""
    types = args.types or [""]
    return ITEM_BYTES.get(str(types[0]).lower(), 0)
