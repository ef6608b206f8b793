"""Blocks compile whole, and what was compiled serves every routing: no graph break, no recompile.

Steps with other tokens and dictated routings of very different balance, down to ranks that get no row, in both ways
of compiling: whole blocks, and woven around the experts' FSDP hooks where FSDP2 takes one mesh a unit (torch 2.11).
"""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.measure.counters import CompileCounters
from epbench.stacks.data import batches
from epbench.stacks.protocol import Batch, World
from epbench.stacks.qwen3_moe import build
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
MODEL = ModelSpec(vocab_size=64)
E, K = MODEL.num_experts, MODEL.num_experts_per_tok
TRAIN = TrainSpec(seq_len=16, global_batch_size=4)
GRAPHS = {"whole": 1, "woven": 3}  # blocks of one kind share them


def _ids(shape: torch.Size, experts: range) -> Tensor:
    """Every copy to one of ``experts``, in turn; [B, S, K] int64."""
    turn = torch.arange(shape.numel() * K).view(*shape, K)
    return experts.start + turn % len(experts)


BUSY = [range(E), range(1, E), range(3, 6), range(2, 5), range(E)]  # every rank of ep 2 gets rows, more or fewer
IDLE = [range(E), range(2), range(E - 2, E), range(E)]  # one rank gets all rows and the other none, in turn


def _batches(cell: Cell, spans: list[range]) -> list[Batch]:
    """A batch for each span, its routing dictated."""
    return [
        batch._replace(expert_ids=(_ids(batch.tokens.shape, span),) * MODEL.num_moe_layers)
        for batch, span in zip(batches(cell, len(spans), CPU), spans, strict=True)
    ]


def _run(cell: Cell, spans: list[range], parameter_meshes: bool) -> tuple[list[CompileCounters], str | None]:
    """The compiler's counters after each step, and how the blocks were compiled."""
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), CPU)
    with (
        patch("epbench.parallel.apply.compile_backend", lambda: "aot_eager"),
        patch("epbench.parallel.compat.has_parameter_meshes", lambda: parameter_meshes),
    ):
        step = build(cell, world)
    after = []
    for batch in _batches(cell, spans):
        step.run(batch)
        after.append(CompileCounters.read())
    return after, step.describe().compile_strategy


STRATEGY = {"whole": "whole block", "woven": "woven around the experts' FSDP hooks"}
FSDP_EP = Layout(dp_shard=4, ep=2)
WOVEN_IDLE = pytest.mark.xfail(
    strict=True,
    reason="pieces between the experts' hooks are compiled once more for no rows: their dim is marked dynamic",
)


@pytest.mark.parametrize(
    ("kind", "layout", "checkpointing", "spans"),
    [
        pytest.param("whole", FSDP_EP, "selective", BUSY + IDLE, id="whole, a mesh per parameter"),
        pytest.param("woven", FSDP_EP, "none", BUSY, id="woven"),
        pytest.param("woven", FSDP_EP, "none", IDLE, id="woven, ranks without rows", marks=WOVEN_IDLE),
    ],
)
def test_counts_that_change_recompile_nothing(
    kind: str, layout: Layout, checkpointing: str, spans: list[range]
) -> None:
    train = TRAIN.model_copy(update={"activation_checkpointing": checkpointing})
    cell = Cell(layout=layout, mode="compiled", model=MODEL, train=train)
    ranks = run_on_ranks(layout.world_size, _run, cell, spans, kind == "whole")
    assert [strategy for _, strategy in ranks] == [STRATEGY[kind]] * layout.world_size
    assert [counters.graph_breaks for after, _ in ranks for counters in after[-1:]] == [0] * layout.world_size
    for after, _ in ranks:
        assert [counters.graphs for counters in after] == [GRAPHS[kind]] * len(spans)
