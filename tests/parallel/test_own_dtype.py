"""A layout in bf16 against one rank in fp32 that dictates its routing: rounding is all that is left.

The bounds are the program's own (``OWN_DTYPE_BOUNDS``). That they are not too wide is shown by mistakes, planted in
the bf16 step alone, that break them.
"""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from epbench.cells import Cell, Mode, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.records import OwnDtypeRecord, VerifyRecord
from epbench.runner import verify
from epbench.runner.verify import verify_cell
from epbench.stacks.data import batches
from epbench.stacks.protocol import World
from epbench.stacks.qwen3_moe import build
from tests.parallel.plants import PLANTS
from tests.ranks import run_on_ranks

MODEL = ModelSpec(vocab_size=128)
TRAIN = TrainSpec(seq_len=32, global_batch_size=4, micro_batch_size=1, compute_dtype="bf16")

LAYOUTS = {
    "dp4-ep2": Layout(dp_shard=4, ep=2),
    "dp2-tp2-ep2": Layout(dp_shard=2, tp=2, ep=2),
    "dp2-tp2-etp2": Layout(dp_shard=2, tp=2, etp=2),
    "cp2-tp2-ep4": Layout(cp=2, tp=2, ep=4),
}


def _cell(layout: str, mode: Mode = "eager", **train: object) -> Cell:
    return Cell(layout=LAYOUTS[layout], mode=mode, model=MODEL, train=TRAIN.model_copy(update=train))


def _verify(cell: Cell, plant: str) -> VerifyRecord:
    """``plant`` is in the ground while the step in the cell's own dtype runs, and not before."""
    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, torch.device("cpu"))
    right = verify._own_dtype

    def planted(*arguments: object, **keywords: object) -> OwnDtypeRecord | None:
        with PLANTS[plant]():
            return right(*arguments, **keywords)  # type: ignore[arg-type]

    with (
        patch("epbench.parallel.apply.compile_backend", lambda: "aot_eager"),
        patch("epbench.runner.verify._own_dtype", planted),
    ):
        return verify_cell(cell, world, tolerance=1e-5)


def _own(cell: Cell, plant: str = "nothing") -> OwnDtypeRecord:
    records: list[VerifyRecord] = run_on_ranks(cell.world_size, _verify, cell, plant)
    assert all(record == records[0] for record in records), "ranks disagree about the verdict"
    own = records[0].own_dtype
    assert own is not None and own.dtype == "bf16"
    assert records[0].passed is own.passed, "in fp32 the layout is right"
    return own


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_is_within_its_bounds(layout: str) -> None:
    own = _own(_cell(layout))
    assert own.passed, own
    assert own.grad_error is not None and own.grad_error > 1e-4, "bf16 that rounds nothing was not bf16"


@pytest.mark.parametrize(
    ("plant", "layout", "parameter"),
    [
        ("experts summed twice", "dp2-tp2-etp2", ""),  # everything is wrong, and anything may be worst
        ("gate gradient of one rank", "dp2-tp2-ep2", "router.gate"),
        ("expert gradient divided", "dp4-ep2", "experts"),
    ],
)
def test_mistake_in_the_bf16_step_alone_is_noticed(plant: str, layout: str, parameter: str) -> None:
    own = _own(_cell(layout), plant)
    assert not own.passed, own
    assert parameter in str(own.worst_parameter), own


# ---- master weights in bf16 ----


def _stored(cell: Cell) -> tuple[set[torch.dtype], set[torch.dtype], float]:
    """dtypes of parameters and of moments after a step, and the loss of the second step over that of the first."""
    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, torch.device("cpu"))
    step = build(cell, world)
    batch = batches(cell, 1, world.device)[0]
    first, second = (float(step.run(batch)) for _ in range(2))
    resident = step.resident_tensors()
    moments = {x.dtype for x in resident.optimizer if x.dim()}
    return {x.dtype for x in resident.params}, moments, second / first


@pytest.mark.parametrize("layout", ["dp4-ep2", "cp2-tp2-ep4"])  # experts within FSDP, and held alone
def test_masters_in_bf16_keep_the_bounds(layout: str) -> None:
    cell = _cell(layout, master_dtype="bf16")
    own = _own(cell)
    assert own.passed, own
    for parameters, moments, ratio in run_on_ranks(cell.world_size, _stored, cell):
        assert (parameters, moments) == ({torch.bfloat16}, {torch.bfloat16})
        assert ratio < 1, "what is learnt is not lost in rounding"


def test_mistake_in_a_step_with_bf16_masters_is_noticed() -> None:
    own = _own(_cell("dp4-ep2", master_dtype="bf16"), "expert gradient divided")
    assert not own.passed, own
    assert "experts" in str(own.worst_parameter), own
