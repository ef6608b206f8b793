"""Expert load and fan-out of routings that can be counted by hand."""

import pytest
import torch

from epbench.cells import Cell, ModelSpec
from epbench.layout import Layout
from epbench.measure.routing import expert_load
from epbench.records import ExpertLoad
from epbench.stacks.protocol import World
from tests.measure.conftest import FakeStep, RunRanks


def cell(ep: int) -> Cell:
    return Cell(layout=Layout(dp_shard=ep, ep=ep), model=ModelSpec(num_experts=4, num_experts_per_tok=2))


def test_even_routing_is_one(world: World) -> None:
    step = FakeStep(experts=[torch.tensor([[0, 2], [1, 3], [2, 0], [3, 1]])])
    assert expert_load(step, cell(2), world) == ExpertLoad(max_over_mean=1, rank_max_over_mean=1, fan_out=2)


def test_the_worst_layer_is_told(world: World) -> None:
    even = torch.tensor([[0, 2], [1, 3]])
    skewed = torch.tensor([[0, 1], [0, 2]])  # counts 2 1 1 0, mean 1; ep ranks 3 1, mean 2
    load = expert_load(FakeStep(experts=[even, skewed]), cell(2), world)
    assert load.max_over_mean == 2
    assert load.rank_max_over_mean == 1.5
    assert load.fan_out == pytest.approx((2 + 2 + 1 + 2) / 4)


def test_without_expert_parallelism_there_is_one_rank_to_reach(world: World) -> None:
    load = expert_load(FakeStep(experts=[torch.tensor([[0, 3]])]), cell(1), world)
    assert (load.rank_max_over_mean, load.fan_out) == (1, 1)


def test_a_stack_that_cannot_tell_gives_none(world: World) -> None:
    assert expert_load(FakeStep(), cell(2), world) == ExpertLoad()
    assert expert_load(FakeStep(experts=[]), cell(2), world) == ExpertLoad()


def test_no_tokens_is_no_load(world: World) -> None:
    assert expert_load(FakeStep(experts=[torch.empty(0, 2, dtype=torch.int32)]), cell(2), world) == ExpertLoad()


def lopsided(world: World) -> ExpertLoad:
    ids = torch.tensor([[0, 1], [0, 1]]) if world.rank == 0 else torch.tensor([[0, 2]])
    return expert_load(FakeStep(experts=[ids]), cell(2), world)


def test_counts_are_of_the_world_not_of_a_rank(run_ranks: RunRanks) -> None:
    # counts 3 2 1 0, mean 1.5; ep ranks 5 1, mean 3; tokens reach 1, 1 and 2 ranks
    for load in run_ranks(lopsided, 2):
        assert load.max_over_mean == 2
        assert load.rank_max_over_mean == pytest.approx(5 / 3)
        assert load.fan_out == pytest.approx(4 / 3)
