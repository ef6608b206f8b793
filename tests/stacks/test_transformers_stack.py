"""transformers under FSDP2 computes what one plain rank of ours computes: one world, one table, one assertion.

The check is the one that every cell passes before it is timed: loss, every gradient under our names, the norm and
the loss after one AdamW step, each within 1e-5 in fp32, with experts 8 times larger than published.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.records import VerifyRecord
from tests.ranks import run_on_ranks

TOLERANCE = 1e-5
DP4 = Layout(dp_shard=4)
CASES: dict[str, dict[str, Any]] = {
    "dp4": {},
    "dp4, everything recomputed": {"train": {"activation_checkpointing": "full"}},
    "dp4, compiled": {"mode": "compiled"},
    "rep2-dp2": {"layout": Layout(dp_replicate=2, dp_shard=2)},
    "rep4": {"layout": Layout(dp_replicate=4), "train": {"max_grad_norm": 0.0}},
    "rep2-dp2, compiled and recomputed": {
        "layout": Layout(dp_replicate=2, dp_shard=2),
        "mode": "compiled",
        "train": {"activation_checkpointing": "full"},
    },
    "forced routing": {"routing": "round_robin"},
    "forced routing, compiled, scores as they are": {
        "routing": "round_robin",
        "mode": "compiled",
        "model": {"norm_topk_prob": False},
    },
    "a dense first layer": {"model": {"mlp_only_layers": (0,)}},
    "fewer experts than ranks": {"model": {"num_experts": 3}},
    "weights kept after forward, two sequences at once": {
        "train": {"reshard_after_forward": False, "micro_batch_size": 2}
    },
}


def _cell(case: dict[str, Any]) -> Cell:
    return Cell(
        layout=case.get("layout", DP4),
        mode=case.get("mode", "eager"),
        routing=case.get("routing", "natural"),
        model=ModelSpec().model_copy(update=case.get("model", {})),
        train=TrainSpec(
            **{"stack": "transformers", "seq_len": 32, "global_batch_size": 8, "micro_batch_size": 1}
            | case.get("train", {})
        ),
    )


def _verify_all() -> dict[str, VerifyRecord]:
    from unittest.mock import patch

    from epbench.runner.verify import verify_cell
    from epbench.stacks.protocol import World

    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, torch.device("cpu"))
    records = {}
    with patch("epbench.stacks.transformers.compile_backend", lambda: "aot_eager"):
        for name, case in CASES.items():
            records[name] = verify_cell(_cell(case), world, tolerance=TOLERANCE)
    return records


@pytest.fixture(scope="module")
def verified() -> dict[str, VerifyRecord]:
    records: list[dict[str, VerifyRecord]] = run_on_ranks(4, _verify_all)
    assert all(record == records[0] for record in records), "ranks disagree about the verdict"
    return records[0]


@pytest.mark.parametrize("case", CASES)
def test_layout_equals_one_rank(verified: dict[str, VerifyRecord], case: str) -> None:
    assert verified[case].scope == "full"
    assert verified[case].passed, verified[case]
