"""A cell that starts from a checkpoint starts from what transformers computes on it, in any layout."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from epbench.cells import Cell, TrainSpec
from epbench.hf_config import model_spec
from epbench.layout import Layout
from epbench.stacks.data import batches
from tests.checkpoints import SMALL, published_model
from tests.model.compare import TOLERANCE
from tests.ranks import run_on_ranks

TRAIN = TrainSpec(seq_len=32, global_batch_size=4, max_grad_norm=0.0)
LAYOUTS = {
    "dp2-tp2-ep2": Layout(dp_shard=2, tp=2, ep=2),
    "dp2-tp2-etp2": Layout(dp_shard=2, tp=2, etp=2),
    "dp4-ep4": Layout(dp_shard=4, ep=4),
}


def _losses(directory: Path) -> dict[str, float]:
    from epbench.stacks.protocol import World
    from epbench.stacks.qwen3_moe import build

    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    losses = {}
    for name, layout in LAYOUTS.items():
        cell = Cell(layout=layout, model=model_spec(directory), train=TRAIN)
        losses[name] = float(build(cell, world).run(batches(cell, 1, world.device)[0]))
    return losses


def test_first_loss_is_that_of_transformers_on_the_same_directory(tmp_path: Path) -> None:
    theirs = published_model(tmp_path, SMALL)
    tokens, labels, *_ = batches(Cell(layout=Layout(), model=SMALL, train=TRAIN), 1, torch.device("cpu"))[0]
    with torch.no_grad():
        logits = theirs(input_ids=tokens, use_cache=False).logits
    expected = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    for losses in run_on_ranks(4, _losses, tmp_path):
        assert losses == pytest.approx(dict.fromkeys(LAYOUTS, expected), rel=TOLERANCE)
