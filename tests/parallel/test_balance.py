"""Correction biases: the load of the whole step, counted once, moves them alike on every rank and in every layout."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.model.moe import count
from epbench.model.router import Router, zero_biases
from epbench.parallel.balance import Balance
from epbench.parallel.communication import Axis
from epbench.parallel.mesh import ParallelDims
from epbench.runner.reference import Reference
from epbench.stacks.data import batches
from epbench.stacks.protocol import World
from epbench.stacks.qwen3_moe import build
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
STEPS, RATE = 2, 0.01
MODEL = ModelSpec(scoring_func="sigmoid", n_group=4, topk_group=2, router_bias_update_rate=RATE)
TRAIN = TrainSpec(seq_len=32, global_batch_size=8, micro_batch_size=2)  # two micro-batches of each of two data ranks
LAYOUTS = {
    "dp2-tp2-ep2": Layout(dp_shard=2, tp=2, ep=2),  # tp ranks route different tokens
    "dp2-tp2-etp2": Layout(dp_shard=2, tp=2, etp=2),  # tp ranks route the same tokens
    "dp2-cp2-ep4": Layout(dp_shard=2, cp=2, ep=4),
}


def _world_axis() -> Axis:
    return ParallelDims.build(Layout(dp_shard=dist.get_world_size()), device=CPU).axis("world")


# ---- one update, by hand ----


def _by_hand() -> list[list[float]]:
    """Two routers on two ranks: three experts, two micro-batches of three tokens, one expert each."""
    spec = ModelSpec(hidden_size=4, num_experts=3, num_experts_per_tok=1, router_bias_update_rate=0.5)
    routers = [Router(spec), Router(spec)]
    balance = Balance(routers, rate=0.5, world=_world_axis())
    chosen = {0: ([0, 0, 1], [0, 1, 0]), 1: ([0, 1, 2], [2, 2, 2])}[dist.get_rank()]  # together 5, 3 and 4
    for micro_batch in chosen:
        routers[0].last_ids = torch.tensor(micro_batch).unsqueeze(1)
        routers[1].last_ids = 2 - routers[0].last_ids
        balance.observe()
    balance.update()
    balance.update()  # nothing was observed since: every load is the mean
    return [router.e_score_correction_bias.tolist() for router in routers if router.e_score_correction_bias is not None]


def test_by_hand_the_bias_rises_below_the_mean_and_falls_above_it() -> None:
    assert run_on_ranks(2, _by_hand) == [[[-0.5, 0.5, 0.0], [0.0, 0.5, -0.5]]] * 2


# ---- layouts and recomputation, against one rank ----


def _loads_and_biases(cell: Cell) -> tuple[list[Tensor], list[Tensor]]:
    """Per step the load of all ranks [layers, experts], and the biases of the layers after the last step."""
    loads: list[Tensor] = []
    update = Balance.update

    def recorded(self: Balance) -> None:
        loads.append(self.load_LE.clone())
        dist.all_reduce(loads[-1])
        update(self)

    with patch.object(Balance, "update", recorded):
        step = build(cell, World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), CPU))
    for batch in batches(cell, STEPS, CPU):
        step.run(batch)
    modules = (module for module in step.model.modules() if isinstance(module, Router))
    return loads, [router.e_score_correction_bias for router in modules if router.e_score_correction_bias is not None]


def _expected(cell: Cell) -> tuple[list[Tensor], list[Tensor]]:
    reference, loads = Reference(cell, CPU), []
    for batch in batches(cell, STEPS, CPU):
        reference.step(batch)
        chosen = [router.last_ids for router in reference.routers if router.last_ids is not None]
        loads.append(torch.stack([count(ids, cell.model.num_experts) for ids in chosen]))
    return loads, [router.bias for router in reference.routers]


def _check_layout(cell: Cell) -> None:
    """Exactly: loads are integers and biases a few equal steps."""
    loads, biases = _loads_and_biases(cell)
    expected_loads, expected_biases = _expected(cell)
    where = f"{cell.layout.slug}, checkpointing {cell.train.activation_checkpointing}"
    assert len(loads) == STEPS, f"{where}: one update a step"
    for load, expected in zip(loads, expected_loads, strict=True):
        assert torch.equal(load, expected * cell.layout.etp), f"{where}: load {load}"
    assert len(biases) == cell.model.num_moe_layers
    for bias, expected in zip(biases, expected_biases, strict=True):
        assert torch.equal(bias, expected), f"{where}: bias {bias}"
        assert bias.abs().max() == pytest.approx(STEPS * RATE), f"{where}: the case moves no bias twice the same way"


def _check_layouts(cells: list[Cell]) -> None:
    for cell in cells:
        _check_layout(cell)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_loads_and_biases_are_those_of_one_rank(checkpointing: Any) -> None:
    train = TRAIN.model_copy(update={"activation_checkpointing": checkpointing})
    run_on_ranks(4, _check_layouts, [Cell(layout=layout, model=MODEL, train=train) for layout in LAYOUTS.values()])


# ---- what it is for ----


def _balanced_over(steps: int) -> list[float]:
    """Largest load over the mean load in every step of a router that prefers two of sixteen experts."""
    generator = torch.Generator().manual_seed(3)
    spec = ModelSpec(hidden_size=16, num_experts=16, scoring_func="sigmoid", router_bias_update_rate=0.01)
    router = Router(spec)
    zero_biases(router)
    with torch.no_grad():
        router.gate.weight.copy_(0.1 * torch.randn(16, 16, generator=generator))
        router.gate.weight[:2] += 0.1
    router.last_ids = torch.zeros((512, 2), dtype=torch.int64)
    balance = Balance([router], rate=0.01, world=_world_axis())
    skews = []
    for _ in range(steps):
        ids, _ = router(1 + torch.randn(512, 16, generator=generator))
        router.record(ids)
        balance.observe()
        skews.append(float(balance.load_LE.max() / balance.load_LE.float().mean()))
        balance.update()
    return skews


def test_a_skewed_router_becomes_balanced() -> None:
    (skews,) = run_on_ranks(1, _balanced_over, 50)
    assert skews[0] > 4, "the router was to be skewed"
    assert max(skews[-10:]) < 2, skews
