"""What each kind of activation checkpointing computes again, how often, and what it saves.

Collectives are counted by their labels in a profile of one step of two MoE layers: eager with cp 2, tp 2 and ep 4,
where every layer has a count exchange, a dispatch, a combine and one Ulysses all-to-all each way, and tp scatters
the sequence after attention; compiled without cp, on half the ranks, since compiling is what takes the time.
"""

import gc
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from epbench.cells import Cell, Mode, ModelSpec, TrainSpec
from epbench.labels import CommLabel
from epbench.layout import Layout
from epbench.measure.memory import memory_pass
from epbench.measure.memory_events import cpu_storages
from epbench.stacks.data import batches
from epbench.stacks.protocol import World
from epbench.stacks.qwen3_moe import Qwen3MoeStep, build
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
LAYERS = 2
KINDS = ("none", "full", "selective")
MODES: tuple[Mode, ...] = ("eager", "compiled")
LAYOUTS: dict[Mode, Layout] = {"eager": Layout(cp=2, tp=2, ep=4), "compiled": Layout(tp=2, ep=2)}
ROWS_MOVED: dict[Mode, tuple[str, ...]] = {
    "eager": ("dispatch", "combine", "ulysses_in", "ulysses_out"),
    "compiled": ("dispatch", "combine"),
}


def _cell(
    layout: Layout, kind: str, mode: Mode = "eager", *, model: ModelSpec | None = None, seq_len: int = 16
) -> Cell:
    train = TrainSpec(seq_len=seq_len, global_batch_size=2, micro_batch_size="auto")
    return Cell(
        layout=layout,
        mode=mode,
        model=model or ModelSpec(vocab_size=64),
        train=train.model_copy(update={"activation_checkpointing": kind}),
    )


def _built(cell: Cell) -> tuple[Qwen3MoeStep, World]:
    torch._dynamo.reset()
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), CPU)
    with patch("epbench.parallel.apply.compile_backend", lambda: "aot_eager"):
        return build(cell, world), world


# ---- how often ----

Counts = Counter[tuple[str, str]]  # of (purpose of an all-to-all or other op, phase)


class _Topks(TorchDispatchMode):
    """Counts the calls that are computed: modes of checkpointing, entered later, answer the others first."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is torch.ops.aten.topk.default
        return func(*args, **(kwargs or {}))


def _counts(kind: str, mode: Mode) -> Counts:
    cell = _cell(LAYOUTS[mode], kind, mode)
    step, _ = _built(cell)
    (batch,) = batches(cell, 1, CPU)
    step.run(batch)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step.run(batch)
    labels = filter(None, (CommLabel.parse(event.name) for event in profiler.events() or ()))
    counts = Counter((it.purpose if it.op == "all_to_all" else it.op, it.phase) for it in labels)
    if mode == "eager":  # a dispatch mode would keep the compiler out
        with _Topks() as topks:  # type: ignore[no-untyped-call]
            step.run(batch)
        counts["topk", "any"] = topks.calls
    return counts


def _all_counts(mode: Mode) -> dict[str, Counts]:
    return {kind: _counts(kind, mode) for kind in KINDS}


@pytest.fixture(scope="module")
def counts() -> dict[Mode, dict[str, Counts]]:
    found = {}
    for mode in MODES:
        of_ranks: list[dict[str, Counts]] = run_on_ranks(LAYOUTS[mode].world_size, _all_counts, mode)
        assert all(each == of_ranks[0] for each in of_ranks), "ranks communicate alike"
        found[mode] = of_ranks[0]
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_move_once_forward_and_once_backward(counts: Any, kind: str, mode: Mode) -> None:
    found, moved = counts[mode][kind], ROWS_MOVED[mode]
    assert {purpose: found[purpose, "forward"] for purpose in moved} == dict.fromkeys(moved, LAYERS)
    assert {purpose: found[purpose, "backward"] for purpose in moved} == dict.fromkeys(moved, LAYERS)
    assert found["count_exchange", "forward"] == LAYERS
    assert found["count_exchange", "backward"] == 0


@pytest.mark.parametrize(
    ("kind", "mode", "rows", "count_exchange"),
    [
        ("none", "eager", 0, 0),
        ("none", "compiled", 0, 0),
        ("full", "eager", LAYERS, 0),  # the choice is kept, and so are its counts
        ("full", "compiled", LAYERS, LAYERS),  # the same graph runs twice on the same inputs
        ("selective", "eager", 0, 0),
        ("selective", "compiled", 0, 0),
    ],
)
def test_what_is_communicated_again(counts: Any, kind: str, mode: Mode, rows: int, count_exchange: int) -> None:
    found, moved = counts[mode][kind], ROWS_MOVED[mode]
    assert {purpose: found[purpose, "recompute"] for purpose in moved} == dict.fromkeys(moved, rows)
    assert found["count_exchange", "recompute"] == count_exchange
    assert found["reduce_scatter", "recompute"] == rows


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_chosen_once(counts: Any, kind: str) -> None:
    assert counts["eager"][kind]["topk", "any"] == LAYERS


# ---- how much ----


def _residents(cell: Cell) -> tuple[int, int]:
    """Bytes of living tensors after steps 5 to 7 and 48 to 50, the fewest: gloo's threads let go of a scalar late."""
    step, _ = _built(cell)
    data = batches(cell, 5, CPU)
    after = {}
    for number in range(1, 51):
        step.run(data[number % 5])
        if number in (5, 6, 7, 48, 49, 50):
            gc.collect()
            after[number] = sum(cpu_storages().values())
    return min(after[number] for number in (5, 6, 7)), min(after[number] for number in (48, 49, 50))


def _all_residents() -> dict[tuple[str, Mode], tuple[int, int]]:
    model = ModelSpec(vocab_size=64, num_layers=1)
    layout = Layout(dp_shard=2, ep=2)
    cases: list[tuple[str, Mode]] = [*((kind, "eager") for kind in KINDS), ("selective", "compiled")]
    return {(kind, mode): _residents(_cell(layout, kind, mode, model=model)) for kind, mode in cases}


def test_memory_does_not_grow_over_fifty_steps() -> None:
    for of_rank in run_on_ranks(2, _all_residents):
        assert {case: last - first for case, (first, last) in of_rank.items()} == dict.fromkeys(of_rank, 0)


def _peaks() -> list[int]:
    """Bytes that a step adds at its worst, for the kinds in turn."""
    model = ModelSpec(num_layers=4, hidden_size=64, moe_intermediate_size=64, vocab_size=64)
    peaks = []
    for kind in KINDS:
        cell = _cell(Layout(dp_shard=2, ep=2), kind, model=model, seq_len=256)
        step, world = _built(cell)
        activations = memory_pass(step, batches(cell, 1, CPU)[0], world).memory.memory_bytes.activations
        assert activations is not None, "the profiler sees a CPU's allocations"
        peaks.append(activations)
    return peaks


def test_full_needs_less_than_selective_and_selective_less_than_none() -> None:
    for none, full, selective in run_on_ranks(2, _peaks):
        assert full < 0.9 * selective, (none, full, selective)
        assert selective < 0.9 * none, (none, full, selective)
