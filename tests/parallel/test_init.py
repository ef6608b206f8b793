"""Every rank's shard is its part of the one-rank parameter, bit for bit, in every kind of layout.

The parts are put together by DTensor's own ``full_tensor``, which knows nothing of the generator.
"""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout, violations
from epbench.model.decoder import Decoder
from epbench.model.init import init_weights, shard_box
from epbench.parallel.apply import parallelize
from epbench.parallel.mesh import ParallelDims
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
SEED, STD, EXPERT_SCALE = 7, 0.02, 8.0
SPEC = ModelSpec(num_layers=2, mlp_only_layers=(0,), vocab_size=64)
# layout, number of experts; the comment says what is special about it
CASES = {
    "dp4": (Layout(dp_shard=4), 8),
    "dp4, ranks without an expert": (Layout(dp_shard=4), 6),  # 2 + 2 + 2 + 0
    "tp4": (Layout(tp=4), 8),
    "dp4-ep4": (Layout(dp_shard=4, ep=4), 8),
    "dp2-cp2-ep2": (Layout(dp_shard=2, cp=2, ep=2), 8),
    "dp2-tp2-ep2": (Layout(dp_shard=2, tp=2, ep=2), 8),
    "dp2-tp2-etp2": (Layout(dp_shard=2, tp=2, etp=2), 8),
    "cp2-tp2-ep2-etp2": (Layout(cp=2, tp=2, ep=2, etp=2), 8),
    "rep2-dp2-ep2": (Layout(dp_replicate=2, dp_shard=2, ep=2), 8),
    "rep2-tp2": (Layout(dp_replicate=2, tp=2), 8),
    "dp4-ep2, one expert cut by FSDP": (Layout(dp_shard=4, ep=2), 2),
    "dp2-tp2-etp2, one expert cut by both": (Layout(dp_shard=2, tp=2, etp=2), 1),
}


def _cell(case: str) -> Cell:
    layout, num_experts = CASES[case]
    sizes = {"num_experts": num_experts, "num_experts_per_tok": min(2, num_experts)}
    return Cell(layout=layout, model=SPEC.model_copy(update=sizes), train=TrainSpec(global_batch_size=4))


def _fill(model: Decoder) -> dict[str, Tensor]:
    init_weights(model, seed=SEED, std=STD, expert_scale=EXPERT_SCALE)
    return dict(model.named_parameters())


def _check_shards(cell: Cell, where: str) -> int:
    """Compares every parameter; returns how many numbers this rank holds."""
    with torch.device("meta"):
        model = Decoder(cell.model)
    parallelize(model, ParallelDims.build(cell.layout, device=CPU), cell)
    sharded, whole = _fill(model.to_empty(device=CPU)), _fill(Decoder(cell.model))
    assert sharded.keys() == whole.keys(), where
    held = 0
    for name, param in sharded.items():
        expected = whole[name].detach()
        shard, full = (param.to_local(), param.full_tensor()) if isinstance(param, DTensor) else (param, param)
        part = tuple(slice(start, start + length) for start, length in shard_box(param))
        assert torch.equal(shard, expected[part]), f"{where}: {name} on rank {dist.get_rank()}"
        assert torch.equal(full, expected), f"{where}: {name}, put together"
        held += shard.numel()
    return held


def _check_all() -> dict[str, int]:
    return {case: _check_shards(_cell(case), case) for case in CASES}


def test_shards_of_every_layout_are_parts_of_one_model() -> None:
    held = run_on_ranks(4, _check_all)
    for case, (layout, _) in CASES.items():
        copies = sum(rank[case] for rank in held) / _cell(case).model.total_parameters
        assert copies >= layout.dp_replicate, f"{case}: parts are missing"
        assert copies < layout.dp_replicate + 0.05, f"{case}: no layout holds more than its replicas (and norms)"


def test_one_rank_holds_the_whole_model() -> None:
    cell = Cell(layout=Layout(), model=SPEC)
    assert run_on_ranks(1, _check_shards, cell, "dp1") == [SPEC.total_parameters]


@pytest.mark.parametrize("case", CASES)
def test_the_layouts_are_legal(case: str) -> None:
    cell = _cell(case)
    assert violations(cell.layout, world_size=4, model=cell.model, train=cell.train) == []


def test_some_experts_are_cut_on_their_width() -> None:
    """More ranks than experts: otherwise the two cases above would not test what they say."""
    cut = [case for case, (layout, num_experts) in CASES.items() if layout.efsdp * layout.ep > num_experts]
    assert cut == ["dp4-ep2, one expert cut by FSDP", "dp2-tp2-etp2, one expert cut by both"]
