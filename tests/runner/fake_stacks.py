"""Training steps that behave, or misbehave, on order; the real runner launches them.

``train.seed`` of the cell picks the rank that misbehaves, so that one function serves any rank.
"""

import os
import signal
import threading
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell
from epbench.runner.reference import reference_step
from epbench.stacks.data import batches
from epbench.stacks.protocol import Batch, StepDescription, World

MISBEHAVES_AT = 6  # within the timing pass of the tests' MeasureSpec


class FakeStep:
    """One all-reduce a step."""

    def __init__(self, cell: Cell, world: World) -> None:
        self.world = world
        self.faulty = world.rank == cell.train.seed
        self.index = 0
        self.weight = torch.ones(64, 64)

    def misbehave(self) -> None:
        return

    def run(self, batch: Batch) -> Tensor:
        self.index += 1
        if self.faulty and self.index == MISBEHAVES_AT:
            self.misbehave()
        loss = (self.weight @ self.weight).mean() + batch.tokens.float().mean()
        dist.all_reduce(loss)
        return loss / self.world.world_size

    def describe(self) -> StepDescription:
        return StepDescription(4096, 4 * 4096, 0, 0, compile_strategy="none")

    def grad_norm(self) -> Tensor | None:
        return None

    def named_full_gradients(self) -> Iterator[tuple[str, Tensor]] | None:
        return None

    def expert_ids(self) -> list[Tensor] | None:
        return None


class RaisingStep(FakeStep):
    def misbehave(self) -> None:
        raise ValueError("the planted mistake\nwith a second line")


class KilledStep(FakeStep):
    def misbehave(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class ExitingStep(FakeStep):
    def misbehave(self) -> None:
        os._exit(7)


class OutOfMemoryStep(FakeStep):
    def misbehave(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has ...")


class NotFiniteStep(FakeStep):
    def run(self, batch: Batch) -> Tensor:
        return super().run(batch) * float("nan")


class VerifiableStep(FakeStep):
    """Its first two losses are those of one plain rank: all that is asked of a stack without gradients."""

    def __init__(self, cell: Cell, world: World) -> None:
        super().__init__(cell, world)
        reference = reference_step(cell, batches(cell, 1, world.device)[0], world.device)
        self.losses = [reference.loss, reference.next_loss]

    def run(self, batch: Batch) -> Tensor:
        loss = super().run(batch)
        return torch.tensor(self.losses.pop(0)) if self.losses else loss


class VerifiableOnceStep(VerifiableStep):
    """Agrees with one rank, then fails every launch that is timed."""

    def misbehave(self) -> None:
        raise ValueError("the planted mistake")


class HangingStep(VerifiableStep):
    def misbehave(self) -> None:
        threading.Event().wait()


good = FakeStep
verifiable = VerifiableStep
verifiable_once = VerifiableOnceStep
raising = RaisingStep
killed = KilledStep
exiting = ExitingStep
out_of_memory = OutOfMemoryStep
hanging = HangingStep
not_finite = NotFiniteStep


def raising_at_build(cell: Cell, world: World) -> FakeStep:
    if world.rank == cell.train.seed:
        raise RuntimeError("cannot be built")
    return FakeStep(cell, world)
