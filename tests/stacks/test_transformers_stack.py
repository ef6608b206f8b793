"""transformers under FSDP2 computes what one plain rank of ours computes: one world, one table, one assertion.

The check is the one that every cell passes before it is timed: loss, every gradient under our names, the norm and
the loss after one AdamW step, each within 1e-5 in fp32, with experts 8 times larger than published.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest.mock import patch

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
    "rep4": {"layout": Layout(dp_replicate=4), "train": {"max_grad_norm": 0.0}},
    "dp2-cp2": {"layout": Layout(dp_shard=2, cp=2)},
    "cp4, kv heads repeated": {"layout": Layout(cp=4), "model": {"num_key_value_heads": 2}},
    "packed documents": {"train": {"packing": "lognormal", "seq_len": 64}},
    "packed documents, dp2-cp2, forced routing, scores as they are, compiled and recomputed": {
        "layout": Layout(dp_shard=2, cp=2),
        "mode": "compiled",
        "routing": "zipf:1.2",
        "model": {"norm_topk_prob": False},
        "train": {
            "packing": "lognormal",
            "seq_len": 64,
            "micro_batch_size": 2,
            "activation_checkpointing": "full",
        },
    },
    "a dense first layer": {"model": {"mlp_only_layers": (0,)}},
    "fewer experts than ranks": {"model": {"num_experts": 3}},
    "bf16, dp2-cp2": {
        "layout": Layout(dp_shard=2, cp=2),
        "train": {"compute_dtype": "bf16", "master_dtype": "bf16"},
    },
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


def _gate_and_up_swapped() -> AbstractContextManager[object]:
    from epbench.stacks import transformers_model

    return patch.object(transformers_model, "_START", {"w1": 1, "w3": 0, "w2": 0})


def _gradients_averaged() -> AbstractContextManager[object]:
    from torch.distributed.fsdp import FSDPModule

    return patch.object(FSDPModule, "set_gradient_divide_factor", lambda *_: None)


def _rotary_lost() -> AbstractContextManager[object]:
    """The frequencies are left as ``to_empty`` made them."""
    return patch("epbench.stacks.transformers.rebuild_rotary", lambda *_: None)


PLANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "gate and up swapped": _gate_and_up_swapped,
    "gradients averaged": _gradients_averaged,
    "rotary frequencies lost": _rotary_lost,
}


class Outcome(NamedTuple):
    cases: dict[str, VerifyRecord]
    plants: dict[str, VerifyRecord]
    graph_breaks: int


def _verify_all() -> Outcome:
    from epbench.measure.counters import CompileCounters
    from epbench.runner.verify import verify_cell
    from epbench.stacks.protocol import World

    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, torch.device("cpu"))

    def verify(case: dict[str, Any]) -> VerifyRecord:
        return verify_cell(_cell(case), world, tolerance=TOLERANCE)

    with patch("epbench.stacks.transformers.compile_backend", lambda: "aot_eager"):
        cases = {name: verify(case) for name, case in CASES.items()}
        breaks = CompileCounters.read().graph_breaks
    planted = {}
    for name, plant in PLANTS.items():
        with plant():
            planted[name] = verify({})
    return Outcome(cases, planted, breaks)


@pytest.fixture(scope="module")
def verified() -> Outcome:
    outcomes: list[Outcome] = run_on_ranks(4, _verify_all)
    assert all(outcome == outcomes[0] for outcome in outcomes), "ranks disagree about the verdict"
    return outcomes[0]


@pytest.mark.parametrize("case", CASES)
def test_layout_equals_one_rank(verified: Outcome, case: str) -> None:
    record = verified.cases[case]
    assert record.scope == "full"
    assert (record.own_dtype is not None) == ("bf16" in case)
    assert record.passed, record


def test_a_compiled_decoder_layer_is_one_graph(verified: Outcome) -> None:
    assert verified.graph_breaks == 0


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_mistake_is_noticed(verified: Outcome, plant: str) -> None:
    assert verified.plants[plant].passed is False, f"{plant} went unnoticed: {verified.plants[plant]}"
