"""Three fixed pieces of work whose speed depends on the machine only: a GEMM, an all-reduce, an all-to-all.

The same work before and after a run tells whether the machine was the same machine throughout: a GPU that
throttles, a neighbour on the host or a link that renegotiated shows here, where no cell can be blamed for it. The
work is large enough to be limited by the device and not by the host (8192 x 8192 bf16 products, buffers of 128
MiB), and small on the CPU, where it only proves the path; about a second in all, start-up apart.

A repetition is over when the slowest rank is done, so the value is the median over repetitions of the maximum over
ranks, as for a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from epbench.measure.ranks import line_up, maximum_over_ranks
from epbench.measure.repetitions import back_to_back, spread_of
from epbench.parallel.communication import Axis, all_reduce_, all_to_all_even
from epbench.records import Spread

if TYPE_CHECKING:
    from epbench.stacks.protocol import World

__all__ = ["time_canary"]

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class _Size:
    """How much work; part of what is compared, so a change makes canaries of two versions incomparable."""

    gemm: int  # rows and columns of both factors
    buffer_bytes: int  # of each collective, a rank
    warm_up: int  # repetitions that are not timed; a GPU takes 0.1 s to raise its clock from idle
    repetitions: int
    dtype: torch.dtype


_SIZES = {
    "cuda": _Size(gemm=8192, buffer_bytes=128 * 2**20, warm_up=100, repetitions=60, dtype=torch.bfloat16),
    "cpu": _Size(gemm=256, buffer_bytes=2**18, warm_up=5, repetitions=25, dtype=torch.float32),
}


def time_canary(world: "World", *, on_progress: Progress) -> dict[str, Spread]:
    """Seconds of one repetition of each piece: median and quartiles. A collective: every rank calls it.

    The same result on every rank. With one rank there is nothing to communicate, and only ``gemm``.
    """
    size = _SIZES[world.device.type]
    found = {}
    for index, (name, work) in enumerate(_pieces(size, world).items()):
        found[name] = spread_of(_time(work, size, world))
        on_progress("canary", index)
    return found


def _pieces(size: _Size, world: "World") -> dict[str, Callable[[], object]]:
    """The work, on data that stays finite however often it is repeated.

    The factor is random: a product of constants draws less power, and would not meet a power limit.
    """
    random = torch.Generator(world.device).manual_seed(0)
    factor = torch.randn(size.gemm, size.gemm, generator=random, device=world.device).to(size.dtype)
    product = torch.empty_like(factor)
    pieces: dict[str, Callable[[], object]] = {"gemm": lambda: torch.mm(factor, factor, out=product)}
    if world.world_size == 1:
        return pieces
    assert dist.group.WORLD is not None, "the canary needs the launch's process group"
    axis = Axis.from_group(dist.group.WORLD, "world")
    rows = size.buffer_bytes // (factor.element_size() * world.world_size)
    buffer = torch.zeros(world.world_size, rows, dtype=size.dtype, device=world.device)
    pieces["all_reduce"] = lambda: all_reduce_(buffer, axis=axis, purpose="canary")
    pieces["all_to_all"] = lambda: all_to_all_even(buffer, axis=axis, purpose="canary")
    return pieces


def _time(work: Callable[[], object], size: _Size, world: "World") -> list[float]:
    """Seconds of each repetition on its slowest rank, back to back; a first few are not timed."""
    for _ in range(size.warm_up):
        work()
    line_up(world)
    return maximum_over_ranks(back_to_back(work, size.repetitions, world), world)
