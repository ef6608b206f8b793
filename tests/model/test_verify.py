"""What verification runs: a shrunk cell that is still the case that is measured, judged by what matters."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from epbench.cells import PRESETS, Cell, ModelSpec, TrainSpec
from epbench.layout import Layout, legal_layouts, violations
from epbench.records import VerifyRecord
from epbench.runner import verify
from epbench.runner.verify import EXPERT_SCALE, OWN_DTYPE_BOUNDS, shrink, verify_cell
from epbench.stacks.protocol import BuildStack, Step, World, load_stack
from tests.ranks import run_on_ranks

TRAIN = TrainSpec(seq_len=4096, global_batch_size=256, micro_batch_size=1, compute_dtype="bf16")
KEPT = (
    "num_experts",
    "num_experts_per_tok",
    "num_attention_heads",
    "num_key_value_heads",
    "norm_topk_prob",
    "scoring_func",
    "routed_scaling_factor",
    "n_group",
    "topk_group",
    "router_bias_update_rate",
    "n_shared_experts",
    "score_before_experts",
    "decoder_sparse_step",
    "mlp_only_layers",
    "rope_theta",
    "rms_norm_eps",
)


def _rules_broken(cell: Cell) -> list[str]:
    return violations(cell.layout, world_size=cell.world_size, model=cell.model, train=cell.train)


@pytest.mark.parametrize("preset", ["tiny", "qwen3-30b-a3b", "qwen3-235b-a22b", "qwen3-coder-480b-a35b"])
@pytest.mark.parametrize("world_size", [1, 2, 8, 64, 256])
def test_every_legal_layout_stays_legal(world_size: int, preset: str) -> None:
    model = PRESETS[preset]
    layouts = legal_layouts(world_size, model, TRAIN)
    assert layouts, "a world without legal layouts tests nothing"
    for layout in layouts:
        small = shrink(Cell(layout=layout, model=model, train=TRAIN))
        assert _rules_broken(small) == [], layout.slug
        assert small.layout == layout
        assert shrink(small) == small, f"{layout.slug}: shrinking again changes nothing"


@pytest.mark.parametrize("preset", ["tiny", "qwen3-30b-a3b", "qwen3-coder-480b-a35b"])
def test_what_decides_the_routing_and_the_heads_is_kept(preset: str) -> None:
    cell = Cell(layout=Layout(dp_shard=4, tp=2, ep=4), model=PRESETS[preset], train=TRAIN, routing="round_robin")
    small = shrink(cell)
    assert {name: getattr(small.model, name) for name in KEPT} == {name: getattr(cell.model, name) for name in KEPT}
    assert (small.mode, small.routing, small.layout) == (cell.mode, cell.routing, cell.layout)


def test_the_published_model_becomes_small_and_fp32() -> None:
    small = shrink(Cell(layout=Layout(dp_shard=2, ep=2), model=PRESETS["qwen3-30b-a3b"], train=TRAIN))
    sizes = (small.model.num_layers, small.model.hidden_size, small.model.moe_intermediate_size, small.model.head_dim)
    assert sizes == (2, 64, 32, 16)
    assert (small.model.vocab_size, small.train.seq_len) == (512, 128)
    assert (small.train.compute_dtype, small.train.reduce_dtype) == ("fp32", "fp32")
    assert small.model.expert_initializer_scale == EXPERT_SCALE
    assert (small.num_micro_batches, small.micro_batch_size) == (2, 1), "accumulation is verified too"


def test_tiny_stays_tiny() -> None:
    cell = Cell(layout=Layout(dp_shard=4, ep=4))
    small = shrink(cell)
    assert small.model == cell.model.model_copy(update={"expert_initializer_scale": EXPERT_SCALE})
    assert small.tokens_per_step == cell.tokens_per_step
    assert (small.micro_batch_size, small.num_micro_batches) == (cell.micro_batch_size, cell.num_micro_batches)


def test_what_is_smaller_than_the_bound_is_never_enlarged() -> None:
    model = ModelSpec(hidden_size=32, moe_intermediate_size=16, head_dim=8, vocab_size=100, intermediate_size=64)
    cell = Cell(layout=Layout(dp_shard=2, ep=2), model=model, train=TrainSpec(seq_len=20, global_batch_size=2))
    small = shrink(cell)
    assert small.model == model.model_copy(update={"expert_initializer_scale": EXPERT_SCALE})
    assert small.train.seq_len == 20


@pytest.mark.parametrize(
    ("changes", "num_layers"),
    [({}, 2), ({"mlp_only_layers": (0, 1, 2)}, 4), ({"decoder_sparse_step": 3}, 3), ({"mlp_only_layers": (5,)}, 6)],
)
def test_layers_are_kept_until_every_kind_of_block_is_there(changes: dict[str, object], num_layers: int) -> None:
    model = PRESETS["qwen3-30b-a3b"].model_copy(update=changes)
    small = shrink(Cell(layout=Layout(dp_shard=2, ep=2), model=model, train=TRAIN)).model
    assert small.num_layers == num_layers
    assert small.num_moe_layers > 0


def test_a_sequence_stays_divisible_by_odd_degrees() -> None:
    """24 ranks share a sequence: 144 positions are the fewest above 128 that they share evenly."""
    train = TRAIN.model_copy(update={"seq_len": 3072})
    cell = Cell(layout=Layout(cp=24), model=PRESETS["qwen3-coder-480b-a35b"], train=train)
    assert _rules_broken(cell) == []
    small = shrink(cell)
    assert _rules_broken(small) == []
    assert small.train.seq_len == 144


def test_experts_cut_on_their_width_are_still_cut() -> None:
    """256 ranks, 128 experts, ep 4: efsdp 64 needs widths that are multiples of 64, also when small."""
    layout = Layout(dp_shard=256, ep=4)
    assert layout.efsdp * layout.ep > 128
    small = shrink(Cell(layout=layout, model=PRESETS["qwen3-30b-a3b"], train=TRAIN)).model
    assert small.hidden_size % layout.efsdp == 0
    assert small.moe_intermediate_size % layout.efsdp == 0


def test_shared_experts_stay_divisible_by_tp() -> None:
    """Three ranks share the width of the shared experts: 48 is the least above 32 that they share evenly."""
    model = ModelSpec(num_key_value_heads=3, num_attention_heads=12, vocab_size=513 * 3, n_shared_experts=1)
    cell = Cell(layout=Layout(tp=3), model=model.model_copy(update={"moe_intermediate_size": 768}))
    cell = cell.model_copy(update={"train": TrainSpec(seq_len=96)})
    assert _rules_broken(cell) == []
    small = shrink(cell)
    assert _rules_broken(small) == []
    assert small.model.moe_intermediate_size == 48


def _verify(cell: Cell) -> VerifyRecord:
    rank = dist.get_rank()
    return verify_cell(cell, World(rank, dist.get_world_size(), rank, torch.device("cpu")), tolerance=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_gradient_that_is_nothing_but_rounding_is_not_an_error(normalise: bool) -> None:
    """One expert per token and normalised scores: each score is 1, so the gate's true gradient is zero."""
    model = ModelSpec(num_experts_per_tok=1, norm_topk_prob=normalise)
    cell = Cell(layout=Layout(dp_shard=2, ep=2), model=model, train=TrainSpec(seq_len=32))
    for record in run_on_ranks(2, _verify, cell):
        assert record.passed, record


def _verified_dtypes(cell: Cell) -> list[tuple[str, str]]:
    """(compute, reduction) of the steps that verification builds."""
    dtypes: list[tuple[str, str]] = []

    def recorded(name: str) -> BuildStack:
        def build(built: Cell, world: World) -> Step:
            dtypes.append((built.train.compute_dtype, built.train.reduce_dtype))
            return load_stack(name)(built, world)

        return build

    with patch.object(verify, "load_stack", recorded):
        _verify(cell)
    return dtypes


def test_the_cell_is_verified_in_fp32_and_in_both_of_its_own_dtypes() -> None:
    train = TrainSpec(seq_len=32, compute_dtype="bf16", reduce_dtype="bf16")
    cell = Cell(layout=Layout(dp_shard=2), train=train)
    assert run_on_ranks(2, _verified_dtypes, cell) == [[("fp32", "fp32"), ("bf16", "bf16")]] * 2


def _worst_of_two() -> verify._Errors:
    """Rank 0 is a little off in a gradient, which is allowed; rank 1 in the loss, which is not."""
    mine = verify._Errors(loss=0.0, step=None, norm=None, gradient=3e-2, worst="gate")
    theirs = verify._Errors(loss=5e-3, step=None, norm=None, gradient=1e-2, worst="norm")
    return verify._worst_over_ranks(theirs if dist.get_rank() else mine)


def test_an_error_that_is_allowed_hides_none_of_another_rank_that_is_not() -> None:
    for worst in run_on_ranks(2, _worst_of_two):
        assert worst == verify._Errors(loss=5e-3, step=None, norm=None, gradient=3e-2, worst="gate")
        assert not worst.within(**OWN_DTYPE_BOUNDS)
