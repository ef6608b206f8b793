"""The canary on two gloo ranks and on one: each piece is timed, alike on all ranks, and its result is right."""

import pytest
import torch

from epbench.measure import canary
from epbench.measure.canary import time_canary
from epbench.measure.repetitions import spread_of
from epbench.records import Spread
from epbench.stacks.protocol import World
from tests.measure.conftest import RunRanks


def on_a_rank(*, world: World) -> tuple[dict[str, Spread], list[tuple[str, int]]]:
    said: list[tuple[str, int]] = []
    return time_canary(world, on_progress=lambda phase, index: said.append((phase, index))), said


def test_two_ranks_agree_on_three_pieces(run_ranks: RunRanks) -> None:
    (first, said), (second, _) = run_ranks(on_a_rank, 2)
    assert first == second
    assert list(first) == ["gemm", "all_reduce", "all_to_all"]
    assert all(0 < spread.low <= spread.median <= spread.high for spread in first.values())
    assert said == [("canary", 0), ("canary", 1), ("canary", 2)]


def test_one_rank_has_nothing_to_communicate(world: World) -> None:
    found, _ = on_a_rank(world=world)
    assert list(found) == ["gemm"]


def test_every_repetition_counts_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])  # repetitions of 1, 2, 3, 4 and 5 seconds
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    runs: list[int] = []
    size = canary._Size(gemm=8, buffer_bytes=64, warm_up=2, repetitions=5, dtype=torch.float32)
    times = canary._time(lambda: runs.append(1), size, world)
    assert spread_of(times) == Spread(median=3.0, low=2.0, high=4.0)
    assert len(runs) == 2 + 5


def test_the_same_work_every_time(world: World) -> None:
    size = canary._Size(gemm=8, buffer_bytes=64, warm_up=1, repetitions=1, dtype=torch.float32)
    first, second = (canary._pieces(size, world)["gemm"]() for _ in range(2))
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert torch.equal(first, second)
    assert first.isfinite().all()
