"""Our stack as a step: what one batch asks for is not left over for the next."""

from typing import Any

import pytest
import torch

from epbench.cells import Cell, TrainSpec
from epbench.layout import Layout
from epbench.stacks.data import batches
from epbench.stacks.protocol import World
from epbench.stacks.qwen3_moe import build
from tests.ranks import run_on_ranks

TRAIN = TrainSpec(seq_len=16, global_batch_size=4, micro_batch_size=2, lr=0.0)
CPU = torch.device("cpu")


def _choices(routing: str) -> list[list[Any]]:
    """Per layer, of one batch, of the same with all copies of every token on expert 3, and of the first again."""
    cell = Cell(layout=Layout(), routing=routing, train=TRAIN)
    step, (batch,) = build(cell, World(0, 1, 0, CPU)), batches(cell, 1, CPU)
    ids = torch.full((*batch.tokens.shape, cell.model.num_experts_per_tok), 3)
    chosen = []
    for each in (batch, batch._replace(expert_ids=(ids,) * cell.model.num_moe_layers), batch):
        step.run(each)
        chosen.append([layer.tolist() for layer in step.expert_ids()])
    return chosen


@pytest.mark.parametrize("routing", ["natural", "round_robin"])
def test_a_dictated_routing_ends_with_its_batch(routing: str) -> None:
    ((before, dictated, after),) = run_on_ranks(1, _choices, routing)
    assert all(ids == [3, 3] for layer in dictated for ids in layer)
    assert before == after != dictated
