"""Steps with known behaviour, and real gloo ranks whose failures reach pytest."""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from epbench.stacks.protocol import Batch, StepDescription, World

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


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))


@pytest.fixture
def run_ranks(tmp_path: Path) -> RunRanks:
    """``run_ranks(fn, world_size, *args)``: what ``fn(*args, world=...)`` returned on each gloo rank."""

    def run(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        store = str(tmp_path / "store")
        ranks = [
            context.Process(target=_rank, args=(results, rank, world_size, store, partial(fn, *args)))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        answers = [results.get() for _ in ranks]
        for process in ranks:
            process.join()
        failures = [answer for _, failed, answer in answers if failed]
        assert not failures, "\n".join(failures)
        return [answer for _, _, answer in sorted(answers, key=lambda answer: answer[0])]

    return run


def _rank(results: Any, rank: int, world_size: int, store: str, fn: Callable[..., Any]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=30),
        )
        answer = fn(world=World(rank, world_size, rank, torch.device("cpu")))
        dist.destroy_process_group()
        results.put((rank, False, answer))
    except BaseException:
        results.put((rank, True, f"rank {rank}:\n{traceback.format_exc()}"))
