"""Expert load and fan-out of routings that can be counted by hand; recordings that replay under another layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.errors import ScenarioError
from epbench.layout import Layout
from epbench.measure.routing import RoutingRecorder, expert_copies, expert_load
from epbench.records import ExpertCopies, ExpertLoad
from epbench.routing_file import check_routing_file, open_routing
from epbench.stacks.data import batches
from epbench.stacks.protocol import World, load_stack
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


def lopsided_copies(world: World) -> ExpertCopies | None:
    ids = torch.tensor([[0, 1], [0, 1]]) if world.rank == 0 else torch.tensor([[0, 2], [3, 0]])
    return expert_copies(FakeStep(experts=[ids]), cell(2).model_copy(update={"routing": "hot_rank:0.75"}), world)


def test_copies_are_counted_by_expert_and_by_rank(run_ranks: RunRanks) -> None:
    for copies in run_ranks(lopsided_copies, 2):
        assert (copies.experts, copies.ranks) == ([[4, 2, 1, 1]], [[6, 2]])
        assert (copies.routing, copies.hot_experts) == ("hot_rank:0.75", 2)


def test_tokens_that_tp_ranks_share_are_counted_once(run_ranks: RunRanks) -> None:
    for copies in run_ranks(shared, 2):
        assert (copies.layers, copies.experts) == ([1], [[1, 2, 1, 0]])


def shared(world: World) -> ExpertCopies | None:
    sizes = ModelSpec(num_experts=4, num_experts_per_tok=2, decoder_sparse_step=2)
    step = FakeStep(experts=[torch.tensor([[0, 1], [2, 1]])])
    return expert_copies(step, Cell(layout=Layout(tp=2, etp=2), model=sizes), world)


def test_a_stack_that_cannot_tell_has_no_copies(world: World) -> None:
    assert expert_copies(FakeStep(), cell(2), world) is None


# ---- recording ----

SIZES = ModelSpec(vocab_size=128, num_layers=3, mlp_only_layers=(1,))
TRAIN = TrainSpec(seq_len=32, global_batch_size=8, micro_batch_size=1)
RECORDED = Layout(dp_shard=4, ep=4)
REPLAYED = {
    "ep borrows tp": Layout(dp_shard=2, tp=2, ep=2),
    "tp ranks route alike": Layout(dp_shard=2, tp=2, ep=2, etp=2),
    "chunks of the sequence": Layout(dp_replicate=2, cp=2),
    "other weights": RECORDED,  # whose own choice is another
}


def record(path: Path, cell: Cell, world: World) -> float:
    """The loss of the first step; its routing goes to ``path``, that of the second nowhere."""
    step = load_stack(cell.train.stack)(cell, world)
    recorder = RoutingRecorder(step, cell)
    loss, _ = (float(step.run(batch)) for batch in batches(cell, 2, world.device))
    recorder.write(path, world)
    return loss


def record_and_replay(directory: Path, *, world: World) -> dict[str, float]:
    natural = Cell(layout=RECORDED, model=SIZES, train=TRAIN)
    losses = {"natural": record(directory / "natural.npy", natural, world)}
    torch.distributed.barrier()
    for name, layout in REPLAYED.items():
        routing = f"replay:{directory / 'natural.npy'}"
        train = TRAIN.model_copy(update={"seed": 1}) if name == "other weights" else TRAIN
        replay = natural.model_copy(update={"layout": layout, "routing": routing, "train": train})
        losses[name] = record(directory / f"{name}.npy", replay, world)
    return losses


def test_a_recorded_routing_replays_under_other_layouts(tmp_path: Path, run_ranks: RunRanks) -> None:
    losses = run_ranks(record_and_replay, 4, tmp_path)[0]
    check_routing_file(tmp_path / "natural.npy", SIZES, TRAIN)
    recorded = open_routing(tmp_path / "natural.npy")
    assert (recorded.shape, recorded.dtype) == ((2, 8, 32, 2), np.uint8)
    assert len(np.unique(recorded)) == 8, "a natural routing of random tokens meets every expert"
    for name in REPLAYED:
        assert np.array_equal(open_routing(tmp_path / f"{name}.npy"), recorded), name
        assert (losses[name] == pytest.approx(losses["natural"], rel=1e-5)) is (name != "other weights"), name


def test_a_stack_that_does_not_say_when_a_micro_batch_is_over_is_refused() -> None:
    with pytest.raises(ScenarioError, match="stack qwen3_moe has no on_micro_batch to record by"):
        RoutingRecorder(FakeStep(), cell(2))
