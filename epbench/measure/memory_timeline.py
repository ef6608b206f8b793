"""What was alive when: allocations and frees of one step, replayed into lifetimes, levels, the peak and its parts.

One stream for all devices (:mod:`epbench.measure.memory_events` makes it), and no torch here. A *moment* counts
events: 0 is the beginning of the step, n is right after the n-th event.

A block that is alive after the step and whose address is a gradient's then *is* that gradient, from the moment when
it was allocated; so gradients count at the peak as far as they exist at the peak. The same holds for parameters and
optimizer state. What lives from before the step and is none of these is ``other``; all the rest are ``activations``:
saved activations, gathered weights, communication buffers, temporaries.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from epbench.memory_records import MemoryBytes, Phase

__all__ = ["Envelope", "MemoryEvent", "Parts", "Recording", "Replay", "phase_at", "split_peak"]

MAX_POINTS = 2000  # of an envelope, low and high counted apart
Parts = Mapping[int, str]  # address -> params, grads or optimizer
Array = np.ndarray[Any, Any]


class MemoryEvent(NamedTuple):
    """One block allocated (``size`` > 0) or freed."""

    time_s: float  # from the beginning of the step
    address: int
    size: int  # bytes


class Block(NamedTuple):
    """A block from the moment when it was allocated to the one when it was freed; None: it outlives the step."""

    address: int
    size: int
    born: int
    died: int | None


@dataclass(frozen=True)
class Recording:
    """One step of one rank. ``before`` and ``after`` are the blocks alive then: address -> bytes."""

    events: Sequence[MemoryEvent]
    before: Mapping[int, int]
    after: Mapping[int, int]
    step_s: float
    backward_s: tuple[tuple[float, float], ...] = ()


class Envelope(NamedTuple):
    """Lowest and highest level from each time to the next one."""

    time_s: list[float]
    low_bytes: list[int]
    high_bytes: list[int]


class Replay:
    """A recording as lifetimes and levels."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.blocks = list(_lifetimes(recording))
        self.times_s: Array = np.array([0.0, *(event.time_s for event in recording.events)])
        self.levels: Array = _levels(self.blocks, len(recording.events))

    @cached_property
    def peak(self) -> int:
        """The first moment at which most was allocated."""
        return int(self.levels.argmax())

    @property
    def peak_bytes(self) -> int:
        """What was allocated then."""
        return int(self.levels[self.peak])

    def alive(self, moment: int) -> list[Block]:
        """The blocks of a moment, which sum to its level."""
        return [one for one in self.blocks if one.born <= moment and (one.died is None or moment < one.died)]

    def parts(self, *, before: Parts, after: Parts, peak_bytes: int) -> MemoryBytes:
        """What was alive at the peak, by what it was; ``before`` and ``after`` name residents of these two times.

        ``peak_bytes`` is the peak as it was measured; where it differs from the replay's (blocks are rounded up by
        up to a megabyte and transient ones are known by their request), activations take the difference.
        """
        held: Counter[str] = Counter()
        for block in self.alive(self.peak):
            held[_part(block, before, after)] += block.size
        return split_peak(peak_bytes, **{part: held[part] for part in ("params", "grads", "optimizer", "other")})

    def envelope(self, *, max_points: int = MAX_POINTS) -> Envelope:
        """The levels in at most ``max_points`` values, without losing an extreme; exact if there are few events.

        A bucket begins with the level that the one before left behind.
        """
        buckets = max_points // 2
        if len(self.levels) <= buckets:
            exact = self.levels.tolist()
            return Envelope(self.times_s.tolist(), exact, exact)
        starts_s = np.linspace(0, max(self.recording.step_s, self.times_s[-1]), buckets, endpoint=False)
        first = np.searchsorted(self.times_s, starts_s)
        ends = np.append(first[1:], len(self.levels))
        slices = [self.levels[max(start - 1, 0) : end] for start, end in zip(first, ends, strict=True)]
        return Envelope(starts_s.tolist(), [int(one.min()) for one in slices], [int(one.max()) for one in slices])

    def fragmentation(self, segments: Mapping[int, int]) -> float | None:
        """Share of the reserved memory that is free at the peak but cannot be returned to the driver.

        ``segments`` is what the allocator got from the driver: address -> bytes. A segment can only be returned
        whole, so all that is free in a segment with a live block is stuck: "inactive, non-releasable memory" of
        PyTorch's documentation of ``torch.cuda.memory_stats``. None without segments.
        """
        reserved = sum(segments.values())
        if not reserved:
            return None
        starts = sorted(segments)
        used: Counter[int] = Counter()
        for block in self.alive(self.peak):
            place = bisect_right(starts, block.address) - 1
            if place >= 0:
                used[starts[place]] += block.size
        return sum(max(0, segments[start] - size) for start, size in used.items()) / reserved


def _lifetimes(recording: Recording) -> Iterator[Block]:
    """Every block of the step, those included that lived before it.

    Freed at an address that was never seen before: it lived from the beginning. Allocated where another is still
    alive, or gone after the step though nobody saw it freed: a thread that is not profiled freed it, as gloo's do with
    the buffers of a transfer that is over, so it lived for a moment only.
    """
    alive = {address: Block(address, size, 0, None) for address, size in recording.before.items()}
    known = set(alive)
    for moment, (_, address, size) in enumerate(recording.events, start=1):
        old = alive.pop(address, None)
        if size > 0:
            alive[address] = Block(address, size, moment, None)
            if old is not None:
                yield old._replace(died=old.born + 1 if old.born else moment)
        elif old is not None:
            yield old._replace(died=moment)
        elif address not in known:
            yield Block(address, -size, 0, moment)
        known.add(address)
    for block in alive.values():
        kept = recording.after.get(block.address)
        if kept is not None or not block.born:
            yield block if kept is None else block._replace(size=kept)
        else:
            yield block._replace(died=block.born + 1)


def _levels(blocks: Sequence[Block], num_events: int) -> Array:
    """Allocated bytes at each moment, [num_events + 1] int64."""
    changes = np.zeros(num_events + 2, dtype=np.int64)  # a block may live for one moment after the last event
    for block in blocks:
        changes[block.born] += block.size
        if block.died is not None:
            changes[block.died] -= block.size
    return changes.cumsum()[:-1]


def _part(block: Block, before: Parts, after: Parts) -> str:
    if block.died is None and block.address in after:
        return after[block.address]
    return "activations" if block.born else before.get(block.address, "other")


def split_peak(peak_bytes: int, *, params: int, grads: int, optimizer: int, other: int) -> MemoryBytes:
    """Five parts that sum to the peak, activations being the rest.

    Claims larger than what was measured give way, the later ones first.
    """
    left, held = peak_bytes, {}
    for part, claimed in (("params", params), ("grads", grads), ("optimizer", optimizer), ("other", other)):
        held[part] = max(0, min(claimed, left))
        left -= held[part]
    return MemoryBytes(**held, activations=left)


def phase_at(time_s: float, backward_s: Sequence[tuple[float, float]]) -> Phase | None:
    """Phase of a time of the step by its marked backwards; clipping and update follow the last of them."""
    if not backward_s:
        return None
    if any(start <= time_s <= end for start, end in backward_s):
        return "backward"
    return "optimizer" if time_s > max(end for _, end in backward_s) else "forward"
