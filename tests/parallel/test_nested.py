"""Experts that are an FSDP unit of their own inside the block's: what torch 2.11 does wherever ep leaves a rest.

A newer torch shards them over their own mesh in the block's unit, so the table of layouts does not come here. FSDP's
hooks then run in the middle of a block, and again, otherwise, when activation checkpointing runs the block again.
"""

from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import VerifyRecord
from epbench.runner.verify import verify_cell
from epbench.stacks.protocol import World
from tests.parallel.layouts import SIGMOID, Row
from tests.ranks import run_on_ranks

SHARED: dict[str, Any] = {"n_shared_experts": 1, "mlp_only_layers": (0,), "tie_word_embeddings": True}
CELLS = (
    Row("plain", Layout(dp_shard=4, ep=2)).cell("eager", "selective"),
    Row("HSDP", Layout(dp_replicate=2, dp_shard=2, ep=2), SIGMOID).cell("eager", "full"),
    Row("ep borrows tp", Layout(dp_shard=2, tp=2, ep=2), SHARED).cell("eager", "selective"),
    Row("woven graphs", Layout(dp_shard=4, ep=2)).cell("compiled", "full"),
)


def _verify(cells: tuple[Cell, ...]) -> list[VerifyRecord]:
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    with (
        patch("epbench.parallel.apply.compile_backend", lambda: "aot_eager"),
        patch("epbench.parallel.compat.has_parameter_meshes", lambda: False),
    ):
        return [verify_cell(cell, world, tolerance=1e-5) for cell in cells]


def test_nested_experts_equal_one_rank() -> None:
    records = run_on_ranks(4, _verify, CELLS)[0]
    wrong = {cell.id: record for cell, record in zip(CELLS, records, strict=True) if not record.passed}
    assert not wrong
