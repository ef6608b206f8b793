"""Steps with known behaviour, and real gloo ranks whose failures reach pytest."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from epbench.stacks.protocol import Batch, StepDescription, World
from tests.ranks import run_on_ranks

RunRanks = Callable[..., list[Any]]


class FakeStep:
    """A step whose work is the function it is given, and whose loss counts the steps."""

    def __init__(self, work: Callable[[], Any] = lambda: None, *, experts: list[Tensor] | None = None) -> None:
        self.work, self.experts, self.runs = work, experts, 0
        self.description = StepDescription(0, 0, 0, 0)

    def run(self, batch: Batch) -> Tensor:
        self.work()
        self.runs += 1
        return torch.tensor(float(self.runs))

    def describe(self) -> StepDescription:
        return self.description

    def grad_norm(self) -> Tensor | None:
        return None

    def named_full_gradients(self) -> Iterator[tuple[str, Tensor]] | None:
        return None

    def expert_ids(self) -> list[Tensor] | None:
        return self.experts


@pytest.fixture
def world() -> World:
    return World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def batch() -> Batch:
    return Batch(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))


@pytest.fixture(scope="session")
def run_ranks() -> RunRanks:
    """``run_ranks(fn, world_size, *args)``: what ``fn(*args, world=...)`` returned on each gloo rank."""

    def run(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        return run_on_ranks(world_size, _in_its_world, fn, *args)

    return run


def _in_its_world(fn: Callable[..., Any], *args: Any) -> Any:
    rank = dist.get_rank()
    return fn(*args, world=World(rank, dist.get_world_size(), rank, torch.device("cpu")))
