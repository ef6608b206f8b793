"""What collectives reach alone: each op over sizes, on groups of ranks that all communicate at the same time.

A collective of a step can be slow because the wires are, or because of the step around it. This is the measurement
that tells the two apart: the same ranks, the same labelled calls (:mod:`epbench.parallel.communication`), and nothing
else going on. It is taken in three ways:

- **drained**: one call on an idle device, from when its stream gets there until it is done, the host's launch
  included, on the rank that came last. The latency of a call that nothing hides.
- **chained**: calls back to back, device events between them. Throughput; for small sizes, how fast a host can issue.
- **traced**: the transfer as rows of steps have it, from the profiler. The one to hold a step's collectives against,
  for the duration of a kernel has no launch in it.

``all_to_all_v`` sends the first rank of each group ten times as much as any other. That rank has the most bytes, and
its size is what is stated: as much crosses the bus to it as of an even exchange of that size, but one way only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.analysis.calls import bus_bytes
from epbench.comm_records import CommPoint, Op, Partition, Way, axis_name
from epbench.measure.capture import trace_runs
from epbench.measure.ranks import maximum_over_ranks
from epbench.measure.repetitions import Work, back_to_back, one_by_one, spread_of
from epbench.parallel.communication import (
    Axis,
    all_gather_into,
    all_reduce_,
    all_to_all_into,
    reduce_scatter_into,
)
from epbench.rank_groups import Groups

if TYPE_CHECKING:
    from epbench.stacks.protocol import World

__all__ = ["Case", "SweepTimes", "of_the_last", "prepare", "repetitions_of", "sweep"]

Progress = Callable[[str, int], None]

DATA = "normal random numbers; zeros where the all-reduce sums in place"
UNEVEN = 10  # rows for the first rank of a group, to one for any other
FEW_ABOVE_BYTES, FEW = 512 * 2**20, 5  # larger calls take long and scatter little


@dataclass(frozen=True)
class _Effort:
    """How much is measured."""

    smallest_bytes: int
    largest_bytes: int
    step: int  # from one size to the next, a factor
    warm_up: int
    repetitions: int  # drained, and as many chained; of large calls fewer
    traced: int
    dtype: torch.dtype
    dtype_name: str


_EFFORTS = {
    "cuda": _Effort(2**10, 2**31, 2, 5, 30, 10, torch.bfloat16, "bf16"),
    "cpu": _Effort(2**12, 2**20, 4, 1, 5, 5, torch.float32, "fp32"),
}


@dataclass(frozen=True)
class Case:
    """One op of one size, ready to be called; ``bytes`` is the whole buffer of the rank that has most."""

    op: Op
    bytes: int
    run: Work


@dataclass(frozen=True)
class SweepTimes:
    """What a rank tells; the same on every rank. ``points`` are drained and chained, partition by partition."""

    dtype: str
    data: str
    points: list[list[CommPoint]]
    traced_steps: int
    warnings: list[str]


def sweep(partitions: Sequence[Partition], world: "World", *, directory: Path, on_progress: Progress) -> SweepTimes:
    """Times every partition, then traces all of them into ``directory``, where labels have ``axis_name(index)``.

    A collective: every rank calls it with the same partitions. ``on_progress`` must not synchronise.
    """
    effort = _EFFORTS[world.device.type]
    largest_bytes = _affordable(effort.largest_bytes, world)
    cases = prepare(partitions, world, largest_bytes=largest_bytes)
    beats = count()
    points: list[list[CommPoint]] = []
    for partition, own in zip(partitions, cases, strict=True):
        points.append([])
        for case in own:
            points[-1] += _timed(case, partition, effort, world)
            on_progress("comm", next(beats))

    def once(_index: int) -> None:
        for own in cases:
            for case in own:
                case.run()
            on_progress("comm", next(beats))

    trace_runs(once, world, steps=effort.traced, directory=directory)
    warnings = []
    if largest_bytes < effort.largest_bytes:
        warnings.append(
            f"the sweep of collectives ends at {largest_bytes >> 20} MiB: the devices have no memory for more"
        )
    return SweepTimes(effort.dtype_name, DATA, points, effort.traced, warnings)


def _affordable(wanted_bytes: int, world: "World") -> int:
    """The largest size: an eighth of the memory that is free on every rank, three buffers of it being needed."""
    if world.device.type == "cpu":
        return wanted_bytes
    free_bytes, _ = torch.cuda.mem_get_info(world.device)
    (least,) = maximum_over_ranks([-float(free_bytes)], world)
    largest = wanted_bytes
    while largest > -least / 8 and largest > 1:
        largest //= 2
    return largest


# ---------------------------------------------------------------- what is called


def prepare(partitions: Sequence[Partition], world: "World", *, largest_bytes: int | None = None) -> list[list[Case]]:
    """The cases of each partition, from the largest size, which wakes the device, to the smallest. A collective."""
    effort = _EFFORTS[world.device.type]
    largest = effort.largest_bytes if largest_bytes is None else largest_bytes
    sizes = [effort.smallest_bytes]
    while sizes[-1] * effort.step <= largest:
        sizes.append(sizes[-1] * effort.step)
    buffers = _Buffers.of(largest, effort.dtype, world.device)
    axes = [_axis(partition, index, world) for index, partition in enumerate(partitions)]
    return [[case for size in reversed(sizes) for case in _cases(axis, buffers, size)] for axis in axes]


@dataclass(frozen=True)
class _Buffers:
    """Flat, of the largest size each; every case takes what it needs from the start."""

    sent: Tensor
    received: Tensor
    summed: Tensor

    @classmethod
    def of(cls, size: int, dtype: torch.dtype, device: torch.device) -> "_Buffers":
        count = size // dtype.itemsize
        sent = torch.empty(count, dtype=dtype, device=device).normal_()
        return cls(sent, torch.empty_like(sent), torch.zeros_like(sent))


def _axis(partition: Partition, index: int, world: "World") -> Axis:
    """This rank's group; all ranks make all groups of a partition, in one order."""
    if len(partition.groups) == 1:
        assert dist.group.WORLD is not None, "a sweep needs the launch's process group"
        return Axis.from_group(dist.group.WORLD, axis_name(index))
    made = [(ranks, dist.new_group(list(ranks))) for ranks in partition.groups]
    own = next(group for ranks, group in made if world.rank in ranks)
    return Axis.from_group(own, axis_name(index))


def _cases(axis: Axis, buffers: _Buffers, size: int) -> Iterator[Case]:
    """All ops with buffers of ``size`` bytes, or what of it can be split evenly; none if it is not enough for all."""
    n, item = axis.size, buffers.sent.element_size()
    rows = size // (item * n)
    if rows == 0:
        return
    sent, received, summed = (buffer[: rows * n] for buffer in (buffers.sent, buffers.received, buffers.summed))
    part_sent, part_received = sent[:rows], received[:rows]  # cut once: a cut costs the host 4 us, and that is timed
    purpose = "sweep"

    def even() -> None:
        all_to_all_into(received, sent, axis=axis, purpose=purpose)

    def gather() -> None:
        all_gather_into(received, part_sent, axis=axis, purpose=purpose)

    def scatter() -> None:
        reduce_scatter_into(part_received, sent, axis=axis, purpose=purpose)

    def reduce() -> None:
        all_reduce_(summed, axis=axis, purpose=purpose)

    size = rows * n * item
    if rows >= UNEVEN:
        yield _uneven(axis, buffers, rows // UNEVEN)
    yield from (
        Case("all_to_all", size, even),
        Case("all_gather", size, gather),
        Case("reduce_scatter", size, scatter),
        Case("all_reduce", size, reduce),
    )


def _uneven(axis: Axis, buffers: _Buffers, rows: int) -> Case:
    """The first rank of the group gets ``UNEVEN`` x ``rows`` from every rank, any other ``rows``."""
    n = axis.size
    splits = [UNEVEN * rows, *[rows] * (n - 1)], [rows * (1 if axis.rank else UNEVEN)] * n
    sent, received = buffers.sent[: sum(splits[0])], buffers.received[: sum(splits[1])]

    def run() -> None:
        all_to_all_into(received, sent, axis=axis, purpose="sweep_uneven", splits=splits)

    return Case("all_to_all_v", UNEVEN * rows * n * sent.element_size(), run)


# ---------------------------------------------------------------- how it is timed


def _timed(case: Case, partition: Partition, effort: _Effort, world: "World") -> list[CommPoint]:
    """Drained and chained. The ranks line up once a case, when they agree on its times."""
    for _ in range(effort.warm_up):
        case.run()
    crossing = bus_bytes(case.op.removesuffix("_v"), case.bytes, partition.group_size)
    assert crossing is not None, "a partition has groups of two ranks or more"
    repetitions = repetitions_of(case.bytes, effort.repetitions)
    drained = one_by_one(case.run, repetitions, world)
    chained = back_to_back(case.run, repetitions, world)
    by_rank = _of_every_rank([*drained, *chained], world)
    ways: tuple[tuple[Way, list[float]], ...] = (
        ("drained", of_the_last([times[:repetitions] for times in by_rank], partition.groups)),
        ("chained", list(map(max, *(times[repetitions:] for times in by_rank)))),
    )
    return [
        CommPoint(
            op=case.op,
            way=way,
            bytes=case.bytes,
            bus_bytes=crossing,
            seconds=spread_of(seconds),
            repetitions=repetitions,
        )
        for way, seconds in ways
    ]


def repetitions_of(size: int, usual: int) -> int:
    """How often a call of ``size`` bytes is repeated."""
    return min(usual, FEW) if size > FEW_ABOVE_BYTES else usual


def of_the_last(by_rank: Sequence[Sequence[float]], groups: Groups) -> list[float]:
    """Of times by rank and repetition, per repetition that of the rank that came last, in the slowest group.

    The rank of a group that came last has the least: the others' time has their wait for it in it.
    """
    return [max(min(times[rank] for rank in ranks) for ranks in groups) for times in zip(*by_rank, strict=True)]


def _of_every_rank(own: Sequence[float], world: "World") -> list[list[float]]:
    """The positive numbers of every rank, in order of rank. A collective."""
    rows = [list(own) if rank == world.rank else [0.0] * len(own) for rank in range(world.world_size)]
    flat = maximum_over_ranks([value for row in rows for value in row], world)
    return [flat[first : first + len(own)] for first in range(0, len(flat), len(own))]
