"""What the measuring passes need of other ranks: one answer for all, one moment to start, a drained device.

Every decision that changes how many steps run (warm-up over, enough steps timed) is taken from numbers that
all ranks share, or the ranks part ways and hang. None of this runs inside a timed step.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from epbench.stacks.protocol import World

__all__ = ["drain", "line_up", "maximum_over_ranks", "sum_over_ranks_"]


def drain(world: "World") -> None:
    """Waits until the device has finished everything it was given; on the CPU nothing is ever queued."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def line_up(world: "World") -> None:
    """Returns on all ranks within about one message's time of each other, with their devices drained."""
    maximum_over_ranks([0.0], world)


def maximum_over_ranks(values: Sequence[float], world: "World") -> list[float]:
    """Entry by entry the largest value of any rank. A collective: the same length on every rank."""
    drain(world)
    if world.world_size == 1:
        return list(values)
    buffer = torch.tensor(values, dtype=torch.float64, device=world.device)
    dist.all_reduce(buffer, op=dist.ReduceOp.MAX)
    return [float(value) for value in buffer.tolist()]


def sum_over_ranks_(values: torch.Tensor, world: "World") -> torch.Tensor:
    """Adds ``values`` of any shape over all ranks, in place. A collective."""
    if world.world_size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values
