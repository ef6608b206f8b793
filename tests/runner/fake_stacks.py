"""Training steps that behave, or misbehave, on order; the real runner launches them.

``train.seed`` of the cell picks the rank that misbehaves, so that one function serves any rank. What it does and in
which phase is in the stack's name: ``killed_in_trace``, ``raising_in_build``. A file can end all faults, as a person
would who has found the cause: then the same stack behaves.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell
from epbench.runner.processes import stat_of
from epbench.runner.reference import reference_step
from epbench.stacks.data import batches
from epbench.stacks.protocol import Batch, StepDescription, World

CURED = "EPBENCH_TEST_CURED"  # variable: the file whose presence ends all faults
PARENT = "EPBENCH_TEST_PARENT"  # variable: the process that ``epbench run`` stands for


class FakeStep:
    """One all-reduce a step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.weight = torch.ones(64, 64, device=world.device)

    def run(self, batch: Batch) -> Tensor:
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


class NotFiniteStep(FakeStep):
    def run(self, batch: Batch) -> Tensor:
        return super().run(batch) * float("nan")


class VerifiableStep(FakeStep):
    """Its first two losses are those of one plain rank: all that is asked of a stack without gradients."""

    def __init__(self, cell: Cell, world: World) -> None:
        super().__init__(world)
        self.losses: list[float] = []
        if phase(world.rank).startswith("verify"):
            reference = reference_step(cell, batches(cell, 1, world.device)[0], world.device)
            self.losses = [reference.loss, reference.next_loss]

    def run(self, batch: Batch) -> Tensor:
        loss = super().run(batch)
        return torch.full_like(loss, self.losses.pop(0)) if self.losses else loss


class FaultyStep(VerifiableStep):
    """Does what one rank should not, in the first step that it is asked for in a phase."""

    def __init__(self, cell: Cell, world: World, *, fault: Callable[[int], None], when: str) -> None:
        self.faulty = world.rank == cell.train.seed and not Path(os.environ[CURED]).exists()
        self.fault, self.when = fault, when
        self.misbehave(world)
        super().__init__(cell, world)

    def misbehave(self, world: World) -> None:
        if self.faulty and phase(world.rank) == self.when:
            self.faulty = False
            self.fault(world.rank)

    def run(self, batch: Batch) -> Tensor:
        if self.when != "build":
            self.misbehave(self.world)
        return super().run(batch)


def log_of(rank: int) -> tuple[int, Path]:
    """The descriptor and the path of this rank's log."""
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and (target := link.readlink()).name == f"rank-{rank}.jsonl":
            return int(link.name), target
    raise AssertionError("a rank has its log open")


def phase(rank: int) -> str:
    """The phase that this rank is in, as it told its parent."""
    lines = map(json.loads, log_of(rank)[1].read_text().splitlines())
    return str([line["phase"] for line in lines if line["kind"] == "phase"][-1])


def raise_one(_: int) -> None:
    raise ValueError("the planted mistake\nwith a second line")


def be_killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_: int) -> None:
    os._exit(7)


def lack_gpu_memory(_: int) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has ...")


def lack_host_memory(_: int) -> None:
    torch.empty(2**50)


def spin(_: int) -> None:
    while True:
        pass


def wait_for_ever(_: int) -> None:
    threading.Event().wait()


def stop(_: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fill_the_log(rank: int) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log_of(rank)[0])


def fill_a_file(_: int) -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def scribble(rank: int) -> None:
    os.write(log_of(rank)[0], b"\0\0\0 not a record\n")


def kill_the_server(_: int) -> None:
    agent = stat_of(os.getppid())
    assert agent is not None
    os.kill(int(agent[1]), signal.SIGKILL)
    wait_for_ever(_)


def interrupt(_: int) -> None:
    os.kill(int(os.environ[PARENT]), signal.SIGINT)
    wait_for_ever(_)


FAULTS = {
    "raising": raise_one,
    "killed": be_killed,
    "exiting": leave,
    "out_of_memory": lack_gpu_memory,
    "out_of_host_memory": lack_host_memory,
    "spinning": spin,
    "hanging": wait_for_ever,
    "stopped": stop,
    "full_log": fill_the_log,
    "full_disk": fill_a_file,
    "scribbling": scribble,
    "server_killed": kill_the_server,
    "interrupted": interrupt,
}


def good(_: Cell, world: World) -> FakeStep:
    return FakeStep(world)


def not_finite(_: Cell, world: World) -> FakeStep:
    return NotFiniteStep(world)


verifiable = VerifiableStep


def __getattr__(name: str) -> Callable[[Cell, World], FakeStep]:
    fault, _, when = name.partition("_in_")
    if fault not in FAULTS or not when:
        raise AttributeError(f"no stack is named {name}")
    return partial(FaultyStep, fault=FAULTS[fault], when=when)
