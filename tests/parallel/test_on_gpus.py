"""What two GPUs must agree with: every layout on NCCL in fp32 within 1e-5, in bf16 within its bounds, compiled too.

The model has the published geometry's heads, experts and top-k on small widths, and the table is every legal layout
of two ranks, so that a machine with two GPUs proves the stack in about four minutes::

    pytest -m gpu tests/parallel/test_on_gpus.py
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from epbench.cells import PRESETS, Cell, TrainSpec
from epbench.layout import legal_layouts, parse_slug
from epbench.records import VerifyRecord
from tests.ranks import run_on_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

MODEL = PRESETS["qwen3-30b-a3b"].model_copy(update={"num_layers": 2})
TRAIN = TrainSpec(seq_len=128, global_batch_size=8, micro_batch_size=2, compute_dtype="bf16")
PACKED: dict[str, Any] = {"packing": "lognormal", "seq_len": 256}
DEEP: dict[str, Any] = {
    "scoring_func": "sigmoid",
    "n_group": 8,
    "topk_group": 4,
    "router_bias_update_rate": 1e-3,
    "routed_scaling_factor": 2.5,
    "n_shared_experts": 1,
}


def _cell(slug: str, mode: Any, checkpointing: Any, *, model: dict[str, Any] | None = None, **train: Any) -> Cell:
    return Cell(
        layout=parse_slug(slug, world_size=2),
        mode=mode,
        model=MODEL.model_copy(update=model or {}),
        train=TRAIN.model_copy(update={"activation_checkpointing": checkpointing, **train}),
    )


LAYOUTS = [layout.slug for layout in legal_layouts(2, MODEL, TRAIN)]
EAGER = {f"{slug} {how}": _cell(slug, "eager", how) for slug in LAYOUTS for how in ("none", "full", "selective")} | {
    "dp2-ep2 packed": _cell("dp2-ep2", "eager", "full", **PACKED),
    "cp2-ep2 packed": _cell("cp2-ep2", "eager", "full", **PACKED),
    "tp2-etp2 packed": _cell("tp2-etp2", "eager", "none", **PACKED),
    "dp2-ep2 router of DeepSeek": _cell("dp2-ep2", "eager", "none", model=DEEP),
    "tp2-ep2 router of DeepSeek": _cell("tp2-ep2", "eager", "none", model=DEEP),
    "tp2-etp2 router of DeepSeek": _cell("tp2-etp2", "eager", "none", model=DEEP),
    "dp2-ep2 tied": _cell("dp2-ep2", "eager", "none", model={"tie_word_embeddings": True}),
    "tp2-ep2 scores before experts": _cell("tp2-ep2", "eager", "none", model={"score_before_experts": True}),
}
COMPILED = {
    "dp2-ep2": _cell("dp2-ep2", "compiled", "none"),
    "dp2-ep2 full": _cell("dp2-ep2", "compiled", "full"),
    "dp2-ep2 selective": _cell("dp2-ep2", "compiled", "selective"),
    "tp2": _cell("tp2", "compiled", "none"),
    "tp2 selective": _cell("tp2", "compiled", "selective"),
    "cp2-ep2 selective": _cell("cp2-ep2", "compiled", "selective"),
    "tp2-ep2": _cell("tp2-ep2", "compiled", "none"),
    "dp2 selective": _cell("dp2", "compiled", "selective"),
    "tp2-etp2": _cell("tp2-etp2", "compiled", "none"),
    "dp2-ep2 packed": _cell("dp2-ep2", "compiled", "none", **PACKED),
    "tp2-ep2 router of DeepSeek": _cell("tp2-ep2", "compiled", "none", model=DEEP),
}


def _verify_all(cells: dict[str, Cell]) -> dict[str, VerifyRecord]:
    from epbench.runner.verify import verify_cell
    from epbench.stacks.protocol import World

    world = World(dist.get_rank(), 2, dist.get_rank(), torch.device("cuda", dist.get_rank()))
    records = {}
    for name, cell in cells.items():
        torch._dynamo.reset()  # dozens of models in one process would pass the limit of graphs for one function
        records[name] = verify_cell(cell, world, tolerance=1e-5)
    return records


@pytest.mark.parametrize("cells", [EAGER, COMPILED], ids=["eager", "compiled"])
def test_two_gpus_equal_one(cells: dict[str, Cell]) -> None:
    records: dict[str, VerifyRecord] = run_on_ranks(2, _verify_all, cells, backend="nccl")[0]
    wrong = {name: record for name, record in records.items() if not record.passed}
    assert not wrong, wrong
    assert len(records) == len(cells)
    assert all(record.own_dtype is not None for record in records.values()), "bf16 was compared too"
