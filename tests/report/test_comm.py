"""Collectives in a terminal: beside the same bytes alone, what is doubtful, and the sweep with its models."""

import re

import pytest

from epbench.analysis.comm import fits_of
from epbench.cells import Cell
from epbench.comm_records import OPS, WAYS, CommPoint, CommRecord, Partition, Swept
from epbench.records import CellResult, Spread
from epbench.report.comm import render_collectives, render_comm, size_text
from epbench.report.comparison import Compared
from epbench.report.sections.communication_tables import collectives_table
from tests.report.sample import DP4_EP4, HOSTILE, measured_cell, sample_view, view_of

PAIRS = Partition(
    world_size=4,
    groups=((0, 1), (2, 3)),
    used_by={"tp": ("dp2-tp2", "dp2-tp2-ep2", "dp2-tp2-ep4"), "ep": ("rep2-dp2-ep2",)},
)


def swept(sizes: int) -> Swept:
    """10 us and 100 GB/s of the buffer, in every way and for every op."""
    points = tuple(
        CommPoint(
            op=op,
            way=way,
            bytes=size,
            bus_bytes=size / 2,
            seconds=Spread(median=(t := 10e-6 + size / 1e11), low=t, high=t),
            repetitions=9,
        )
        for op in OPS
        for way in WAYS
        for size in (65536 * 4**k for k in range(sizes))
    )
    return Swept(partition=PAIRS, points=points, fits=fits_of(points))


def record(*found: Swept, **changes: object) -> CommRecord:
    known: dict[str, object] = {"environment": "e", "device": "cuda", "dtype": "bf16", "data": "zeros", "swept": found}
    return CommRecord.model_validate(known | changes)


def beside(factor: float) -> CellResult:
    """A cell whose rows reach ``factor`` of the ceiling."""
    cell = measured_cell(Cell(layout=DP4_EP4), 0.3)
    rows = [
        row.model_copy(
            update={"isolated_s": 123e-6, "ceiling_busbw_bytes_per_s": (row.busbw_bytes_per_s or 0.0) / factor}
        )
        for row in cell.collectives
    ]
    return cell.model_copy(update={"collectives": rows, "all_to_all": rows})


def test_a_step_stands_beside_isolation() -> None:
    text = render_collectives(view_of([beside(0.5)]))
    (line,) = [line for line in text.splitlines() if "dispatch" in line and "forward" in line]
    cell = beside(0.5)
    row = next(row for row in cell.collectives if row.purpose == "dispatch" and row.phase == "forward")
    assert row.busbw_bytes_per_s is not None
    numbers = [f"{row.busbw_bytes_per_s / 1e9:.0f}", f"{row.busbw_bytes_per_s / 0.5e9:.0f}"]
    assert line.split()[-2:] == numbers
    assert line.split()[-3] == "123"
    assert "128 MiB" in line
    assert "warning" not in text


def test_what_beats_the_wires_is_a_warning() -> None:
    text = render_collectives(view_of([beside(1.5)]))
    assert text.count("warning: ") == len(beside(1.5).collectives)
    assert "warning: all_to_all dispatch forward on ep: 1.50 times the isolated ceiling" in text


def test_without_a_sweep_it_says_how_to_get_one() -> None:
    text = render_collectives(sample_view())
    assert "set comm = true under [measure]" in text
    assert "No cell of this run has a trace" in render_collectives(view_of([]))


def test_the_page_has_both_columns() -> None:
    cell = beside(0.5)
    table = collectives_table(Compared.of(view_of([cell])), [cell])
    places = [table.titles.index(title) for title in ("alone, µs", "ceiling, GB/s")]
    for shown, row in zip(table.rows, cell.all_to_all, strict=True):
        assert [shown[place].sort for place in places] == [row.isolated_s, row.ceiling_busbw_bytes_per_s]


def test_a_sweep_is_a_table_and_its_models() -> None:
    text = render_comm(record(swept(4)))
    assert text.startswith("Collectives alone on cuda: bf16, zeros.")
    assert "2 groups of 2 ranks, {0, 1} {2, 3}: tp of dp2-tp2, dp2-tp2-ep2, dp2-tp2-ep4; ep of rep2-dp2-ep2" in text
    assert max(map(len, text.splitlines())) <= 120
    (first, *_) = [line.split() for line in text.splitlines() if line.startswith("all_to_all_v")]
    assert first == ["all_to_all_v", "64", "KiB", *["10.7", "6.15", "3.08"] * 3]
    model = "all_gather traced: 10.0 us + bytes / 100 GB/s (bus 50.0); off by 0.0 % in the median, 0.0 % at worst"
    assert f"{model}, of 4 sizes" in text
    short = render_comm(record(swept(4)), whole=False)
    assert f"{model}, of 4 sizes" in short
    assert "drained" not in short


def test_three_sizes_have_no_fit_and_warnings_come_last() -> None:
    text = render_comm(record(swept(3), warnings=("ranks 2, 3 are slow", HOSTILE)))
    assert "all_reduce chained: no fit over so few sizes (4 are needed)" in text
    assert re.search(r"\n\nwarning: ranks 2, 3 are slow\nwarning: .*\n$", text)
    assert "\u202e" not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(8, "8 B"), (1000, "0.977 KiB"), (65536, "64 KiB"), (1048480, "1 MiB"), (2**29, "512 MiB"), (2**30, "1 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


def test_names_of_a_sweep_are_cleaned() -> None:
    axes = Partition(world_size=4, groups=((0, 1), (2, 3)), used_by={"\x1b[1m": ("\u202edp4",)})
    text = render_comm(record(Swept(partition=axes, points=(), fits=()), dtype="\u202e"))
    assert not {"\x1b", "\u202e"} & set(text)
