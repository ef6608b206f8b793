"""Ranks and experts with unequal work, and with none: still what one rank computes.

The routing is dictated (``Batch.expert_ids``) and labels are taken away (-100), so that an expert, a rank's experts
or a rank's tokens count for nothing. Forward, every gradient and the norm within 1e-5 of one plain rank.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.records import VerifyRecord
from epbench.runner.verify import shrink, verify_batch
from epbench.stacks.data import batches
from epbench.stacks.protocol import Batch, World
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
TOLERANCE = 1e-5
MODEL = ModelSpec(vocab_size=128)
TRAIN = TrainSpec(seq_len=16, global_batch_size=4, micro_batch_size=1)
E, K = MODEL.num_experts, MODEL.num_experts_per_tok

Ids = Callable[[Tensor], Tensor]


def _one_idle(position: Tensor) -> Tensor:
    """Nobody visits expert 0."""
    return 1 + position % (E - 1)


def _first_half_idle(position: Tensor) -> Tensor:
    """The ranks of the first half of the experts get no token."""
    return E // 2 + position % (E // 2)


def _two_experts(position: Tensor) -> Tensor:
    """All copies of all tokens go to the last two experts: one rank's, wherever there are at least two a rank."""
    return E - 2 + position % 2


ROUTINGS: dict[str, Ids] = {
    "an expert without tokens": _one_idle,
    "ranks without tokens": _first_half_idle,
    "all tokens on one rank": _two_experts,
}


def _all(labels: Tensor, layout: Layout) -> Tensor:
    return labels


def _counts_that_differ(labels: Tensor, layout: Layout) -> Tensor:
    """Row r loses its first 3 r + 1 labels."""
    lost = 3 * torch.arange(labels.shape[0]).unsqueeze(1) + 1
    return labels.masked_fill(torch.arange(labels.shape[1]) < lost, -100)


def _ranks_without(labels: Tensor, layout: Layout) -> Tensor:
    """The first data rank has no label; if it is the only one, the first chunk of the sequence has none."""
    silent = labels.clone()
    if layout.data_ranks > 1:
        silent[: labels.shape[0] // layout.data_ranks] = -100
    else:
        silent[:, : labels.shape[1] // layout.cp] = -100
    return silent


Take = Callable[[Tensor, Layout], Tensor]
LABELS: dict[str, Take] = {
    "all labels": _all,
    "label counts that differ": _counts_that_differ,
    "ranks without a label": _ranks_without,
}

LAYOUTS = {
    "dp4-ep4": Layout(dp_shard=4, ep=4),
    "dp2-tp2-ep2": Layout(dp_shard=2, tp=2, ep=2),
    "dp2-tp2-etp2": Layout(dp_shard=2, tp=2, etp=2),
    "dp2-cp2-ep4": Layout(dp_shard=2, cp=2, ep=4),
    "cp4-ep4": Layout(cp=4, ep=4),
}
CASES = [
    pytest.param(Cell(layout=layout, model=MODEL, train=TRAIN), id=slug) for slug, layout in LAYOUTS.items()
] + [
    pytest.param(
        Cell(
            layout=LAYOUTS["dp2-cp2-ep4"],
            mode=mode,
            model=MODEL,
            train=TRAIN.model_copy(update={"activation_checkpointing": checkpointing}),
        ),
        id=f"dp2-cp2-ep4, {mode}, {checkpointing}",
    )
    for mode, checkpointing in (("eager", "selective"), ("compiled", "full"))
]  # fmt: skip


def _batch(cell: Cell, routing: Ids, take: Take) -> Batch:
    batch = batches(shrink(cell), 1, CPU)[0]
    shape = batch.tokens.shape
    first = routing(torch.arange(shape.numel())).view(shape)
    second = routing(torch.arange(shape.numel()) + 1).view(shape)
    ids = torch.stack([first, second], dim=2)
    return batch._replace(labels=take(batch.labels, cell.layout), expert_ids=(ids,) * cell.model.num_moe_layers)


def _verify_all(cell: Cell, backend: str) -> dict[tuple[str, str], VerifyRecord]:
    """All routings in turn, each with other labels, and the last with all of them, in one world."""
    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, CPU)
    pairs = [*zip(ROUTINGS, LABELS, strict=True), ("all tokens on one rank", "all labels")]
    if cell.mode == "compiled":
        pairs = pairs[1:3]  # ranks with nothing to do; each compiles anew, which takes the time of ten eager ones
    records = {}
    with patch("epbench.parallel.apply.compile_backend", lambda: backend):
        for pair in pairs:
            torch._dynamo.reset()  # a built step is compiled for itself, and their number has a limit
            batch = _batch(cell, ROUTINGS[pair[0]], LABELS[pair[1]])
            records[pair] = verify_batch(cell, world, batch, tolerance=TOLERANCE)
    return records


@pytest.mark.parametrize("cell", CASES)
def test_unequal_work_equals_one_rank(cell: Cell) -> None:
    records: list[dict[Any, VerifyRecord]] = run_on_ranks(4, _verify_all, cell, "aot_eager")
    wrong = {pair: record for pair, record in records[0].items() if record.scope != "full" or not record.passed}
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("routing", "experts"),
    [("an expert without tokens", 7), ("ranks without tokens", 4), ("all tokens on one rank", 2)],
)
def test_routings_are_as_unequal_as_they_say(routing: str, experts: int) -> None:
    batch = _batch(Cell(layout=LAYOUTS["dp4-ep4"], model=MODEL, train=TRAIN), ROUTINGS[routing], _all)
    ids, _ = batch.expert_ids or ()
    assert ids.unique().numel() == experts
    assert bool((ids[..., 0] != ids[..., 1]).all()), "a token visits an expert once"


@pytest.mark.parametrize(
    ("labels", "layout", "valid"),
    [
        ("all labels", "dp4-ep4", [16, 16, 16, 16]),
        ("label counts that differ", "dp4-ep4", [15, 12, 9, 6]),
        ("ranks without a label", "dp4-ep4", [0, 16, 16, 16]),
        ("ranks without a label", "dp2-cp2-ep4", [0, 0, 16, 16]),
        ("ranks without a label", "cp4-ep4", [12, 12]),
    ],
)
def test_labels_are_as_unequal_as_they_say(labels: str, layout: str, valid: list[int]) -> None:
    batch = _batch(Cell(layout=LAYOUTS[layout], model=MODEL, train=TRAIN), _one_idle, LABELS[labels])
    assert (batch.labels != -100).sum(1).tolist() == valid
