"""Every layout computes what one rank computes: one table, one assertion (facts 4, 10).

Loss, every gradient against its largest entry, the norm, and the loss after one AdamW step, each within 1e-5
relative of one plain rank in fp32, with expert weights 8 times larger than published.

``pytest --all-layouts`` runs the whole table and draws more layouts. Compiled cases have a world each, which keeps
compiled code of one out of the next. Eager ones share theirs with a few others, since half of the time of a small step
is what eight ranks do for the first time; if that world breaks, each of them gets its own and answers for itself.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout, legal_layouts, violations
from epbench.parallel.compilation import compile_backend
from epbench.records import VerifyRecord
from epbench.runner.verify import verify_cell
from epbench.stacks.protocol import World
from tests.parallel.layouts import MODEL, PACKED, ROWS, SIGMOID, TRAIN, WORLD_SIZE, Case, Row, complete, sample
from tests.parallel.plants import PLANTS
from tests.ranks import run_on_ranks

TOLERANCE = 1e-5
SHARE_A_WORLD = 6  # eager cases; what a case leaves behind of its process groups is bounded by this

Asked = Sequence[tuple[Cell, str]]  # what is verified one after the other, each with a plant


def _cases(config: pytest.Config) -> list[Case]:
    return complete() if config.getoption("all_layouts") else sample()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _cases(metafunc.config), ids=str)


def _verify_each(asked: Asked, backend: str | None) -> list[VerifyRecord]:
    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, torch.device("cpu"))
    chosen = backend or compile_backend()
    records = []
    for cell, plant in asked:
        with PLANTS[plant](), patch("epbench.parallel.apply.compile_backend", lambda: chosen):
            records.append(verify_cell(cell, world, tolerance=TOLERANCE))
    return records


def _parities(asked: Asked, *, backend: str | None = "aot_eager") -> list[VerifyRecord]:
    """Compiled cases make whole graphs through AOTAutograd; None is a cell's own way: inductor, ranks in turn."""
    (size,) = {cell.world_size for cell, _ in asked}
    of_ranks: list[list[VerifyRecord]] = run_on_ranks(size, _verify_each, asked, backend)
    assert all(records == of_ranks[0] for records in of_ranks), "ranks disagree about the verdict"
    assert {record.scope for record in of_ranks[0]} == {"full"}
    return of_ranks[0]


def _parity(cell: Cell, *, backend: str | None = "aot_eager") -> VerifyRecord:
    (record,) = _parities([(cell, "nothing")], backend=backend)
    return record


@pytest.fixture(scope="module")
def verdict(pytestconfig: pytest.Config) -> Callable[[Case], VerifyRecord]:
    """The verdict on a case, which is verified together with its neighbours in the table when the first one asks."""
    eager = [case for case in _cases(pytestconfig) if case.mode == "eager"]
    found: dict[str, VerifyRecord] = {}
    apart: set[str] = set()  # cases of a world that broke

    def share(first: Case) -> None:
        start = [str(case) for case in eager].index(str(first))
        together = eager[start : start + SHARE_A_WORLD]
        try:
            records = _parities([(case.cell, "nothing") for case in together])
            found.update(zip(map(str, together), records, strict=True))
        except AssertionError:
            apart.update(map(str, together))

    def of(case: Case) -> VerifyRecord:
        if case.mode == "eager" and str(case) not in found.keys() | apart:
            share(case)
        return found[str(case)] if str(case) in found else _parity(case.cell)

    return of


# ---- the table ----


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.layout.slug}, {row.special}")
def test_row_is_legal(row: Row) -> None:
    cell = row.cell()
    assert violations(row.layout, world_size=WORLD_SIZE, model=cell.model, train=cell.train) == []


def test_the_table_is_wide_and_says_what_each_row_is_for() -> None:
    assert len({row.layout for row in ROWS}) >= 22
    assert len({row.special for row in ROWS}) == len(ROWS)
    assert len({row.cell().id for row in ROWS}) == len(ROWS), "no row is there twice"


def test_the_sample_has_every_mode_and_checkpointing_and_twenty_layouts() -> None:
    assert len({case.row.layout for case in sample()}) >= 20
    assert Counter((case.mode, case.checkpointing) for case in sample()).keys() == {
        (case.mode, case.checkpointing) for case in complete()
    }
    assert {str(case) for case in sample()} <= {str(case) for case in complete()}


@pytest.mark.timeout(600)
def test_layout_equals_one_rank(case: Case, verdict: Callable[[Case], VerifyRecord]) -> None:
    record = verdict(case)
    assert record.passed, record


@pytest.mark.timeout(600)
def test_inductor_equals_one_rank() -> None:
    record = _parity(Row("all axes", Layout(cp=2, tp=2, ep=4)).cell("compiled"), backend=None)
    assert record.passed, record


# ---- layouts that nobody thought of ----


@st.composite
def drawn_cells(draw: st.DrawFn) -> Cell:
    """A legal layout of a small model on 4 or 8 ranks, eager, with any checkpointing."""
    world_size = draw(st.sampled_from([8, 4]))
    num_experts = draw(st.sampled_from([8, 12, 6, 4, 2]))
    heads, kv_heads = draw(st.sampled_from([(8, 4), (8, 2), (8, 8), (4, 1), (16, 4)]))
    model = MODEL.model_copy(
        update={
            "num_experts": num_experts,
            "num_experts_per_tok": draw(st.integers(1, min(3, num_experts))),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "moe_intermediate_size": draw(st.sampled_from([32, 64])),
            "norm_topk_prob": draw(st.booleans()),
            "n_shared_experts": draw(st.sampled_from([0, 1])),
            "mlp_only_layers": draw(st.sampled_from([(), (0,), (1,)])),
            "tie_word_embeddings": draw(st.booleans()),
            "scoring_func": draw(st.sampled_from(["softmax", "sigmoid"])),
        }
    )
    train = TRAIN.model_copy(update={"activation_checkpointing": draw(st.sampled_from(["full", "selective", "none"]))})
    layout = draw(st.sampled_from(legal_layouts(world_size, model, train)))
    return Cell(layout=layout, model=model, train=train)


@pytest.mark.timeout(1800)
def test_drawn_layout_equals_one_rank(pytestconfig: pytest.Config) -> None:
    """The same few every time, so that a failure is a finding and not the weather; more with ``--all-layouts``."""

    @settings(
        max_examples=60 if pytestconfig.getoption("all_layouts") else 3,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # shrinking would take minutes, and the cell that failed is printed
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(drawn_cells())
    def equals_one_rank(cell: Cell) -> None:
        record = _parity(cell)
        assert record.passed, record

    equals_one_rank()


# ---- planted mistakes ----

PACKED_TRAIN = TRAIN.model_copy(update=PACKED)
FULL = TRAIN.model_copy(update={"activation_checkpointing": "full"})


def _planted(layout: Layout, train: TrainSpec = TRAIN, **model: Any) -> Cell:
    return Cell(layout=layout, model=ModelSpec(**model), train=train)


PLANTED = (
    ("experts summed twice", _planted(Layout(dp_shard=2, tp=2, etp=2)), ""),
    ("gate gradient of one rank", _planted(Layout(dp_shard=2, tp=2, ep=2)), "router.gate"),
    ("gate gradient of one rank", _planted(Layout(dp_shard=2, tp=2, etp=2)), "router.gate"),
    ("scores without gradient", _planted(Layout(dp_shard=4, ep=4)), "router.gate"),
    ("expert gradient divided", _planted(Layout(dp_shard=4, ep=2)), "experts"),
    ("norm counts replicas", _planted(Layout(dp_shard=2, tp=2)), ""),
    ("shared experts of one rank", _planted(Layout(dp_shard=2, tp=2, ep=2), n_shared_experts=1), ""),
    ("another choice in recompute", _planted(Layout(dp_shard=4, ep=4), FULL), ""),
    ("bias of one rank", _planted(Layout(dp_shard=2, cp=2, ep=4), **SIGMOID), ""),
    ("bias moved twice", _planted(Layout(dp_shard=4, ep=4), FULL, **SIGMOID), ""),
    ("documents see each other", _planted(Layout(dp_shard=2, cp=2), PACKED_TRAIN), ""),
)


@pytest.fixture(scope="module")
def planted() -> list[VerifyRecord]:
    """Of every mistake in turn, in one world; the last has none."""
    return _parities([(cell, plant) for plant, cell, _ in PLANTED] + [(PLANTED[-2][1], "nothing")])


@pytest.mark.parametrize(
    "index", range(len(PLANTED)), ids=[f"{plant}-{cell.layout.slug}" for plant, cell, _ in PLANTED]
)
def test_planted_mistake_is_noticed(planted: list[VerifyRecord], index: int) -> None:
    (plant, _, parameter), record = PLANTED[index], planted[index]
    assert record.passed is False, f"{plant} went unnoticed: {record}"
    assert parameter in str(record.worst_parameter), record


def test_every_plant_is_planted(planted: list[VerifyRecord]) -> None:
    """What follows them in their world, without a mistake, is right: what is noticed is the mistake."""
    assert planted[-1].passed, planted[-1]
