"""Every layout computes what one rank computes: one table, one assertion (facts 4, 10).

Loss, every gradient against its largest entry, the norm, and the loss after one AdamW step, each within 1e-5
relative of one plain rank in fp32, with expert weights 8 times larger than published.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.records import VerifyRecord
from tests.parallel.plants import PLANTS
from tests.ranks import run_on_ranks

TOLERANCE = 1e-5
TRAIN = TrainSpec(seq_len=32, global_batch_size=8, micro_batch_size=1)

LAYOUTS = {
    "dp4": Layout(dp_shard=4),
    "dp4-ep4": Layout(dp_shard=4, ep=4),
    "dp4-ep2": Layout(dp_shard=4, ep=2),
    "dp2-tp2": Layout(dp_shard=2, tp=2),
    "tp4": Layout(tp=4),
    "dp2-cp2": Layout(dp_shard=2, cp=2),
    "cp4": Layout(cp=4),
    "dp2-tp2-ep2": Layout(dp_shard=2, tp=2, ep=2),
    "dp2-tp2-ep4": Layout(dp_shard=2, tp=2, ep=4),
    "dp2-cp2-ep2": Layout(dp_shard=2, cp=2, ep=2),
    "dp2-cp2-ep4": Layout(dp_shard=2, cp=2, ep=4),
    "cp2-tp2-ep4": Layout(cp=2, tp=2, ep=4),
    "dp2-tp2-etp2": Layout(dp_shard=2, tp=2, etp=2),
    "dp2-tp2-ep2-etp2": Layout(dp_shard=2, tp=2, ep=2, etp=2),
    "rep2-dp2-ep2": Layout(dp_replicate=2, dp_shard=2, ep=2),
    "rep2-tp2": Layout(dp_replicate=2, tp=2),
    "cp2-tp2-ep2-etp2": Layout(cp=2, tp=2, ep=2, etp=2),
    "tp4-ep4": Layout(tp=4, ep=4),
}

SIGMOID: dict[str, Any] = {
    "scoring_func": "sigmoid",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "router_bias_update_rate": 0.05,
}

PACKED: dict[str, Any] = {"seq_len": 96, "packing": "lognormal", "micro_batch_size": 2}

VARIANTS: dict[str, dict[str, Any]] = {
    "kv heads repeated beyond cp": {"layout": "cp4", "model": {"num_key_value_heads": 2}},
    "experts cut on their width by FSDP": {"layout": "dp4-ep2", "model": {"num_experts": 2}},
    "a dense first layer": {"layout": "dp2-tp2-ep2", "model": {"mlp_only_layers": (0,)}},
    "batches of two sequences": {"layout": "cp2-tp2-ep4", "train": {"micro_batch_size": 2}},
    "forced routing": {"layout": "dp2-tp2-ep2-etp2", "routing": "round_robin"},
    "no clipping": {"layout": "dp4-ep4", "train": {"max_grad_norm": 0.0}},
    "weights kept after forward": {"layout": "dp2-cp2-ep2", "train": {"reshard_after_forward": False}},
    "sigmoid scores, groups and a moving bias": {"layout": "dp2-tp2-ep4", "model": SIGMOID},
    "a moving bias where tp ranks route the same tokens": {"layout": "dp2-tp2-ep2-etp2", "model": SIGMOID},
    "shared experts beside sequence-sharded tokens": {"layout": "dp2-tp2-ep2", "model": {"n_shared_experts": 2}},
    "shared experts summed with split ones": {"layout": "dp2-tp2-ep2-etp2", "model": {"n_shared_experts": 1}},
    "shared experts under cp": {"layout": "dp2-cp2-ep4", "model": {"n_shared_experts": 1}},
    "a moving bias, groups and shared experts, compiled": {
        "layout": "dp2-tp2-ep2-etp2",
        "mode": "compiled",
        "model": {**SIGMOID, "n_shared_experts": 1},
    },
    "scores before experts": {"layout": "dp4-ep4", "model": {"score_before_experts": True}},
    "scores before split experts, forced": {
        "layout": "dp2-tp2-ep2-etp2",
        "routing": "round_robin",
        "model": {"score_before_experts": True},
    },
    "all of it, repeated in backward": {
        "layout": "cp2-tp2-ep4",
        "model": {**SIGMOID, "n_shared_experts": 2, "score_before_experts": True},
        "train": {"micro_batch_size": 2, "activation_checkpointing": "full"},
    },
    "packed documents over chunks of the sequence": {
        "layout": "cp4",
        "model": {"num_key_value_heads": 2},
        "train": PACKED,
    },
    "packed documents under tp and ep": {"layout": "dp2-tp2-ep4", "train": PACKED},
    "packed documents, repeated in backward": {
        "layout": "cp2-tp2-ep4",
        "train": {**PACKED, "activation_checkpointing": "full"},
    },
    "packed documents, compiled": {"layout": "dp2-cp2-ep2", "mode": "compiled", "train": PACKED},
}


def _cell(layout: str, **changes: Any) -> Cell:
    model = ModelSpec().model_copy(update=changes.get("model", {}))
    train = TRAIN.model_copy(update=changes.get("train", {}))
    return Cell(
        layout=LAYOUTS[layout],
        mode=changes.get("mode", "eager"),
        routing=changes.get("routing", "natural"),
        model=model,
        train=train,
    )


def _verify(cell: Cell, plant: str, backend: str) -> VerifyRecord:
    from unittest.mock import patch

    from epbench.runner.verify import verify_cell
    from epbench.stacks.protocol import World

    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, torch.device("cpu"))
    with PLANTS[plant](), patch("epbench.parallel.apply.compile_backend", lambda: backend):
        return verify_cell(cell, world, tolerance=TOLERANCE)


def _parity(cell: Cell, *, plant: str = "nothing", backend: str = "aot_eager") -> VerifyRecord:
    records: list[VerifyRecord] = run_on_ranks(4, _verify, cell, plant, backend)
    assert all(record == records[0] for record in records), "ranks disagree about the verdict"
    assert records[0].scope == "full"
    return records[0]


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_rank(layout: str, checkpointing: str) -> None:
    cell = _cell(layout, train={"activation_checkpointing": checkpointing})
    record = _parity(cell)
    assert record.passed, record


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_equals_one_rank(variant: str) -> None:
    record = _parity(_cell(**VARIANTS[variant]))
    assert record.passed, record


@pytest.mark.parametrize("layout", ["dp4-ep4", "dp2-cp2-ep2", "dp2-tp2-ep2-etp2"])
def test_compiled_layout_equals_one_rank(layout: str) -> None:
    """Whole graphs, through AOTAutograd; what inductor makes of them is the next test's."""
    record = _parity(_cell(layout, mode="compiled", train={"activation_checkpointing": "full"}))
    assert record.passed, record


@pytest.mark.timeout(600)
def test_inductor_equals_one_rank() -> None:
    record = _parity(_cell("cp2-tp2-ep4", mode="compiled"), backend="inductor")
    assert record.passed, record


@pytest.mark.parametrize(
    ("plant", "layout", "parameter"),
    [
        ("experts summed twice", "dp2-tp2-etp2", None),
        ("gate gradient of one rank", "dp2-tp2-ep2", "router.gate"),
        ("gate gradient of one rank", "dp2-tp2-etp2", "router.gate"),
        ("norm counts replicas", "dp2-tp2", None),
    ],
)
def test_planted_mistake_is_noticed(plant: str, layout: str, parameter: str | None) -> None:
    record = _parity(_cell(layout), plant=plant)
    assert record.passed is False, f"{plant} went unnoticed: {record}"
    assert parameter is None or parameter in str(record.worst_parameter), record


@pytest.mark.parametrize(
    ("plant", "layout", "model"),
    [
        ("shared experts of one rank", "dp2-tp2-ep2", {"n_shared_experts": 1}),
        ("bias of one rank", "dp2-cp2-ep4", SIGMOID),
    ],
)
def test_mistake_in_the_moe_layer_is_noticed(plant: str, layout: str, model: dict[str, Any]) -> None:
    record = _parity(_cell(layout, model=model), plant=plant)
    assert record.passed is False, f"{plant} went unnoticed: {record}"


def test_documents_that_see_each_other_are_noticed() -> None:
    record = _parity(_cell("dp2-cp2", train=PACKED), plant="documents see each other")
    assert record.passed is False, f"it went unnoticed: {record}"
