"""Events of a time line as columns, so that a million of them cost megabytes and not gigabytes.

Times are seconds. Names are kept once: ``name`` holds indices into ``names``.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from epbench.analysis.events import Arguments
from epbench.analysis.intervals import Intervals, union
from epbench.analysis.kinds import COMMUNICATION, KINDS, OTHER, kind_of_annotation, kind_of_kernel, kind_of_operator

__all__ = ["Floats", "Integers", "Kernels", "Spans", "kernel_kinds", "own_time"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
HOST = -1  # instead of a kind: this time is not a kernel's


@dataclass(frozen=True)
class Spans:
    """Events of host threads, N of them, in order of start and the outer before the inner."""

    names: tuple[str, ...]
    name: Integers  # [N]
    start_s: Floats
    end_s: Floats
    thread: Integers

    def __len__(self) -> int:
        return len(self.name)

    def taken(self, order: Integers) -> "Spans":
        """Some of them, in the given order."""
        return Spans(self.names, self.name[order], self.start_s[order], self.end_s[order], self.thread[order])

    def later(self, by_s: float) -> "Spans":
        """The same at another time."""
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)

    def in_order(self) -> "Spans":
        """Sorted by start; of events that start together the longest first."""
        return self.taken(np.lexsort((-self.end_s, self.start_s)))


@dataclass(frozen=True)
class Kernels:
    """What a device did: kernels, copies and fills, N of them, in order of start.

    Of a CPU the operators stand for kernels, each cut into the pieces of its own time, and gloo's transfers for
    the kernels that communicate; nothing launched them.
    """

    names: tuple[str, ...]
    kinds: Integers  # [number of names]: index into KINDS
    name: Integers  # [N]
    start_s: Floats
    end_s: Floats
    launch_s: Floats  # NaN where the launch was not recorded
    thread: Integers  # that launched it, -1 where not known
    stream: Integers
    args: dict[int, Arguments] = field(default_factory=dict)  # of kernels that communicate, by place

    def __len__(self) -> int:
        return len(self.name)

    @cached_property
    def kind(self) -> Integers:
        """[N] indices into KINDS."""
        return np.asarray(self.kinds[self.name], dtype=np.int64)

    @cached_property
    def communicates(self) -> NDArray[np.bool_]:
        """[N] whether a kernel moves data between ranks."""
        return np.equal(self.kind, KINDS.index(COMMUNICATION))

    @cached_property
    def work(self) -> Intervals:
        """When the device did anything but communicate: the union over all streams."""
        return union(self.spans[~self.communicates])

    @cached_property
    def communication(self) -> Intervals:
        """When the device communicated, waiting included: the union over all streams."""
        return union(self.spans[self.communicates])

    @property
    def spans(self) -> Intervals:
        """[N, 2] start and end."""
        return np.column_stack([self.start_s, self.end_s])

    def later(self, by_s: float) -> "Kernels":
        """The same at another time."""
        start_s, end_s, launch_s = self.start_s + by_s, self.end_s + by_s, self.launch_s + by_s
        return replace(self, start_s=start_s, end_s=end_s, launch_s=launch_s)

    def seconds_by_kind(self, start_s: float, end_s: float) -> dict[str, float]:
        """Kernel seconds by kind within a window, streams added up; kinds that did not occur are left out."""
        clipped = np.clip(self.spans, start_s, end_s)
        sums = np.bincount(self.kind, weights=clipped[:, 1] - clipped[:, 0], minlength=len(KINDS))
        found = {kind: float(seconds) for kind, seconds in zip(KINDS, sums, strict=True) if seconds > 0}
        return dict(sorted(found.items(), key=lambda item: (item[0] == OTHER, -item[1])))


def kernel_kinds(names: Iterable[str]) -> Integers:
    """Index into KINDS per name of a kernel."""
    return np.array([KINDS.index(kind_of_kernel(name)) for name in names], dtype=np.int64)


def own_time(operators: Spans, transfers: Spans, *, annotations: Collection[str]) -> Kernels:
    """A CPU's time line: the operators' own time by kind, and gloo's transfers as communication.

    ``operators`` are all events of the threads that compute, among them those whose names are ``annotations``: one
    that lies within another takes its time away from it.
    """
    kinds = _operator_kinds(operators.names, annotations)
    pieces = [piece for thread in np.unique(operators.thread) for piece in _pieces(operators, thread, kinds)]
    columns = np.array(pieces, dtype=np.float64).reshape(-1, 3)
    names = (*operators.names, *transfers.names)
    name = np.concatenate([columns[:, 2].astype(np.int64), transfers.name + len(operators.names)])
    start_s = np.concatenate([columns[:, 0], transfers.start_s])
    end_s = np.concatenate([columns[:, 1], transfers.end_s])
    order = np.argsort(start_s, kind="stable")
    communicate = np.full(len(transfers.names), KINDS.index(COMMUNICATION), dtype=np.int64)
    return Kernels(
        names=names,
        kinds=np.concatenate([kinds, communicate]),
        name=name[order],
        start_s=start_s[order],
        end_s=end_s[order],
        launch_s=np.full(len(order), np.nan),
        thread=np.full(len(order), -1, dtype=np.int64),
        stream=np.full(len(order), -1, dtype=np.int64),
    )


def _operator_kinds(names: Iterable[str], annotations: Collection[str]) -> Integers:
    kinds = [kind_of_annotation(name) if name in annotations else kind_of_operator(name) for name in names]
    return np.array([HOST if kind is None else KINDS.index(kind) for kind in kinds], dtype=np.int64)


def _pieces(operators: Spans, thread: int, kinds: Integers) -> list[tuple[float, float, int]]:
    """(start, end, name) of one thread's operators without what lies within them; of kernels only."""
    on_thread = np.flatnonzero(operators.thread == thread)
    starts, ends = operators.start_s[on_thread].tolist(), operators.end_s[on_thread].tolist()
    names = operators.name[on_thread].tolist()
    computes = (kinds >= 0).tolist()
    pieces: list[tuple[float, float, int]] = []
    inside: list[tuple[float, int]] = []  # (end, name) of what the thread is in, outermost first
    at_s = 0.0

    def upto(time_s: float) -> None:
        nonlocal at_s
        if inside and time_s > at_s and computes[inside[-1][1]]:
            pieces.append((at_s, time_s, inside[-1][1]))
        at_s = max(at_s, time_s)

    for start_s, end_s, name in zip(starts, ends, names, strict=True):
        while inside and inside[-1][0] <= start_s:
            upto(inside[-1][0])
            inside.pop()
        upto(start_s)
        inside.append((min(end_s, inside[-1][0]) if inside else end_s, name))
    while inside:
        upto(inside[-1][0])
        inside.pop()
    return pieces
