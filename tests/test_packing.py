"""Where documents end: bounds that hold for every row, and the attention that they cost, by hand."""

from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.cells import Cell, TrainSpec
from epbench.flops import flops_per_token
from epbench.layout import Layout
from epbench.packing import NUM_BATCHES, attended_length, cumulative_lengths, document_lengths, max_documents
from epbench.records import LaunchValue
from epbench.runner.aggregate import cell_result
from epbench.runner.launched import LaunchRecord
from epbench.store import CellEntry
from tests.report.sample import environment

ROWS = {"seq_len": st.integers(1, 100_000), "seed": st.integers(0), "step": st.integers(0), "row": st.integers(0)}


@given(**ROWS)
def test_documents_fill_the_row_within_their_bounds(seq_len: int, seed: int, step: int, row: int) -> None:
    lengths = document_lengths(seq_len=seq_len, seed=seed, step=step, row=row)
    assert sum(lengths) == seq_len
    assert min(lengths) >= min(16, seq_len)
    assert len(lengths) <= max_documents(seq_len)
    assert lengths == document_lengths(seq_len=seq_len, seed=seed, step=step, row=row)


@given(**ROWS)
def test_ends_are_the_running_sum_in_a_list_of_one_length(seq_len: int, seed: int, step: int, row: int) -> None:
    lengths = document_lengths(seq_len=seq_len, seed=seed, step=step, row=row)
    ends = cumulative_lengths(lengths, seq_len=seq_len)
    assert len(ends) == max_documents(seq_len) + 1
    cuts = [after - before for before, after in pairwise(ends)]
    assert cuts == lengths + [0] * (max_documents(seq_len) - len(lengths))


def test_these_are_the_documents_everywhere() -> None:
    """A change here changes what packed cells measure: it needs another PROTOCOL_VERSION."""
    assert document_lengths(seq_len=4096, seed=0, step=0, row=0) == [
        160,
        358,
        222,
        27,
        248,
        20,
        34,
        253,
        2259,
        180,
        55,
        182,
        98,
    ]
    assert document_lengths(seq_len=128, seed=1, step=2, row=3) == [57, 71]


def test_seed_step_and_row_each_matter() -> None:
    first = document_lengths(seq_len=4096, seed=0, step=0, row=0)
    assert first != document_lengths(seq_len=4096, seed=1, step=0, row=0)
    assert first != document_lengths(seq_len=4096, seed=0, step=1, row=0)
    assert first != document_lengths(seq_len=4096, seed=0, step=0, row=1)


def test_lengths_are_many_short_ones_and_a_few_long_ones() -> None:
    rows = [document_lengths(seq_len=4096, seed=0, step=0, row=row) for row in range(1000)]
    lengths = [length for row in rows for length in row]
    assert 200 <= median(lengths) <= 300, "a sixteenth of the row, less what the ends of rows cut"
    assert 8 <= len(lengths) / len(rows) <= 12
    assert max(lengths) >= 2000, "the tail is heavy"


def test_attention_costs_the_squares_of_the_documents() -> None:
    train = TrainSpec(seq_len=64, global_batch_size=2, packing="lognormal", seed=3)
    rows = [document_lengths(seq_len=64, seed=3, step=step, row=row) for step in range(NUM_BATCHES) for row in range(2)]
    pairs = sum(1 for row in rows for length in row for _query in range(length) for _key in range(length))
    assert attended_length(train) == pairs / (NUM_BATCHES * 2 * 64)
    assert 16 < attended_length(train) < 64
    assert attended_length(train.model_copy(update={"packing": "none"})) == 64


def test_speed_in_flops_counts_what_was_attended_to() -> None:
    """One launch of one second a step: TFLOP/s are the step's own."""
    cell = Cell(layout=Layout(), train=TrainSpec(packing="lognormal"))
    value = LaunchValue(index=0, order=0, step_s=1.0)
    launch = LaunchRecord(
        cell=cell.id, kind="measure", index=0, order=0, environment="", protocol="", outcome="ok", reason=None,
        elapsed_s=9.0, value=value,
    )  # fmt: skip
    entry = CellEntry(order=0, cell=cell, skip_reason=None, world_size=1, varied=[])
    row = cell_result(entry, [launch], asked=1, environment=environment())
    flops = flops_per_token(cell.model, seq_len=attended_length(cell.train))
    assert row.tflops_full == pytest.approx(cell.tokens_per_step * flops.full / 1e12)
    assert flops.full < flops_per_token(cell.model, seq_len=cell.train.seq_len).full
