"""Memory: parts that add up to the peak, an envelope that stays exact when it is thinned, and honest predictions."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.cells import Cell
from epbench.memory_records import MemoryBytes, MemoryDetail, MemoryTimeline
from epbench.records import CellResult, Predicted
from epbench.report.comparison import Compared
from epbench.report.data import RunData
from epbench.report.figures.base import Figure
from epbench.report.figures.memory import PARTS, thinned, timeline_figure
from epbench.report.figures.units import Unit
from epbench.report.quantities import peak_bytes
from epbench.report.sections.memory import memory_section
from epbench.report.sections.model import Chart, Variant
from tests.report.sample import DP4, DP4_EP4, HOSTILE, measured_cell, unmeasured_cell, view_of
from tests.report.sample_data import sample_data

GIB = 2**30
IN_GIB = Unit("GiB", GIB)


@pytest.fixture(scope="module")
def sample() -> Compared:
    return Compared.of(sample_data())


def charts(found: Compared) -> dict[str, Chart]:
    return {chart.key: chart for chart in memory_section(found).charts}


def only(cell: CellResult, key: str, timeline: MemoryTimeline | None = None) -> Variant:
    data = RunData(view_of([cell]), timelines={cell.cell: timeline} if timeline else {})
    (variant,) = charts(Compared.of(data))[key].variants
    return variant


def traces(figure: Figure) -> dict[str, dict[str, Any]]:
    return {trace.get("name", ""): trace for trace in json.loads(figure.json)["data"]}


def cell_of(peak: float, reserved: float | None = None, **changes: Any) -> CellResult:
    """A cell with peaks in GiB."""
    peaks = {
        "peak_allocated_bytes": int(peak * GIB),
        "peak_reserved_bytes": None if reserved is None else int(reserved * GIB),
        "memory_bytes": MemoryBytes(),
    }
    return measured_cell(Cell(layout=DP4_EP4), 0.3, **(peaks | changes))


def timeline(values: Sequence[tuple[int, int]], *, step_s: float = 1.0, **changes: Any) -> MemoryTimeline:
    """(low, high) at even distances."""
    known: dict[str, Any] = {
        "rank": 1,
        "step_s": step_s,
        "time_s": [step_s * at / len(values) for at in range(len(values))],
        "low_bytes": [low for low, _ in values],
        "high_bytes": [high for _, high in values],
        "backward_s": [],
        "peak_allocated_bytes_per_rank": [],
    }
    return MemoryTimeline.model_validate(known | changes)


# ---------------------------------------------------------------- at the peak


def test_the_bars_of_a_cell_add_up_to_its_peak_and_to_what_is_reserved(sample: Compared) -> None:
    (variant, _) = charts(sample)["memory-parts"].variants
    drawn, layout = traces(variant.figure), json.loads(variant.figure.json)["layout"]
    cells = {sample.naming.arm(cell): cell for cell in sample.groups[0].measured}
    assert layout["yaxis"]["ticktext"] == sorted(cells, key=lambda name: cells[name].peak_reserved_bytes or 0)
    for at, name in enumerate(layout["yaxis"]["ticktext"]):
        lengths = {part: dict(zip(bar["y"], bar["x"], strict=True)).get(at, 0.0) for part, bar in drawn.items()}
        cell = cells[name]
        assert cell.peak_allocated_bytes is not None and cell.peak_reserved_bytes is not None
        assert sum(lengths[part] for part in PARTS) == pytest.approx(cell.peak_allocated_bytes / GIB, rel=1e-3)
        unused = (cell.peak_reserved_bytes - cell.peak_allocated_bytes) / GIB
        assert lengths["reserved, not allocated"] == pytest.approx(unused, rel=1e-3)


@pytest.mark.parametrize("recorded", [138, 105], ids=["of all ranks", "older, of rank 0"])
def test_a_rank_that_reserves_most_need_not_be_the_one_that_is_drawn(recorded: int) -> None:
    ranks = MemoryDetail(
        rank=0,
        peak_allocated_bytes_per_rank=[100 * GIB, 99 * GIB],
        peak_reserved_bytes_per_rank=[105 * GIB, 138 * GIB],
    )
    cell = cell_of(100, recorded, memory=ranks)
    variant = only(cell, "memory-parts")
    assert traces(variant.figure)["reserved, not allocated"]["x"] == [5]
    assert variant.note == "Another rank than the one that is drawn reserves most: dp4-ep4 eager (138 GiB)."
    assert variant.table is not None
    told = dict(zip(variant.table.titles, (value.text for value in variant.table.rows[0]), strict=True))
    assert (told["peak reserved, GiB"], told["reserved, not allocated, GiB"]) == ("138", "5.00")
    assert peak_bytes(cell, Compared.of(RunData(view_of([cell])))) == 138 * GIB


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, {"not told apart": 40}),
        ({"params": 10, "optimizer": 20}, {"params": 10, "optimizer": 20, "not told apart": 10}),
        ({"params": 10, "grads": 0, "optimizer": 20, "activations": 9, "other": 1}, {"params": 10, "activations": 9}),
    ],
)
def test_what_is_not_told_apart_is_a_part_of_its_own(parts: dict[str, int], expected: dict[str, int]) -> None:
    known = MemoryBytes.model_validate({part: count * GIB for part, count in parts.items()})
    drawn = traces(only(cell_of(40, memory_bytes=known), "memory-parts").figure)
    assert {part: drawn[part]["x"] for part in expected} == {part: [count] for part, count in expected.items()}
    assert "grads" not in drawn and ("not told apart" in drawn) == ("not told apart" in expected)


@pytest.mark.parametrize(
    ("peak", "in_parts", "in_timeline"), [(20, False, False), (60, True, False), (120, True, True)]
)
def test_the_capacity_is_a_line_where_it_presses_nothing_aside(peak: int, in_parts: bool, in_timeline: bool) -> None:
    """Of 141 GiB."""
    found = timeline([(GIB, peak * GIB)])
    for key, is_drawn in (("memory-parts", in_parts), ("memory-timeline", in_timeline)):
        layout = json.loads(only(cell_of(peak), key, found).figure.json)["layout"]
        texts = [note["text"] for note in layout.get("annotations", ())]
        assert texts == ["capacity 141 GiB"] * is_drawn


def test_the_table_has_only_columns_that_some_cell_fills() -> None:
    on_cpu = only(cell_of(40), "memory-parts").table
    detail = MemoryDetail(
        rank=2, peak_allocated_bytes_per_rank=[38 * GIB, 39 * GIB, 40 * GIB], fragmentation=0.064, alloc_retries=3
    )
    on_gpu = only(cell_of(40, 44, memory=detail), "memory-parts").table
    assert on_cpu is not None and on_gpu is not None
    assert on_cpu.titles == ("cell", "peak allocated, GiB")
    assert dict(zip(on_gpu.titles, (value.text for value in on_gpu.rows[0]), strict=True)) == {
        "cell": "dp4-ep4 eager",
        "peak allocated, GiB": "40.0",
        "peak reserved, GiB": "44.0",
        "reserved, not allocated, GiB": "4.00",
        "fragmentation": "6.4 %",
        "retries": "3",
        "worst rank": "2",
        "allocated of each rank, GiB": "38.0 to 40.0",
    }


@pytest.mark.parametrize(
    ("requested", "sentence"),
    [
        (None, "Out of memory: dp4-ep4 compiled."),
        (10 * GIB, "Out of memory: dp4-ep4 compiled (asked for 10.0 GiB more)."),
    ],
)
def test_cells_that_had_too_little_memory_are_named(requested: int | None, sentence: str) -> None:
    failed = unmeasured_cell(Cell(layout=DP4_EP4, mode="compiled"), "oom", "no memory", requested_bytes=requested)
    (variant,) = charts(Compared.of(view_of([cell_of(40), failed])))["memory-parts"].variants
    assert variant.note == sentence


# ---------------------------------------------------------------- over one step


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted).map(tuple), min_size=1, max_size=80),
    st.integers(1, 40),
)
def test_thinning_keeps_every_extreme(values: list[tuple[int, int]], times: int) -> None:
    """Each interval of the thinned envelope reaches what its entries reached, and nothing else."""
    whole = timeline(values)
    thin = thinned(whole, times)
    assert len(thin.time_s) <= times and set(thin.time_s) <= set(whole.time_s) and thin.time_s[0] == 0.0
    for at, begin in enumerate(thin.time_s):
        end = thin.time_s[at + 1] if at + 1 < len(thin.time_s) else whole.step_s
        own = [pair for time_s, pair in zip(whole.time_s, values, strict=True) if begin <= time_s < end]
        assert thin.low[at] == min(low for low, _ in own) and thin.high[at] == max(high for _, high in own)


def test_the_largest_timeline_is_small_on_the_page() -> None:
    values = [(GIB * (20 + at % 37) + 12345, GIB * (30 + at % 41) + 54321) for at in range(1000)]
    found = timeline(values, step_s=1.2345678, backward_s=[(at / 700, (at + 0.5) / 700) for at in range(600)])
    figure = timeline_figure(found, IN_GIB, phase="backward", capacity=80 * GIB)
    assert len(figure.json) < 15_000


@pytest.mark.parametrize(
    ("peak_at", "phase", "text", "place"),
    [
        (1, "forward", "peak 50 GiB, forward", "top right"),
        (8, "optimizer", "peak 50 GiB, optimizer", "top left"),
        (8, None, "peak 50 GiB", "top left"),
    ],
)
def test_the_peak_is_marked_with_its_phase(peak_at: int, phase: str | None, text: str, place: str) -> None:
    values = [(10 * GIB, (50 if at == peak_at else 20) * GIB) for at in range(10)]
    cell = cell_of(50, memory=MemoryDetail.model_validate({"peak_phase": phase}))
    mark = traces(only(cell, "memory-timeline", timeline(values, step_s=0.5)).figure)["peak"]
    assert (mark["x"], mark["y"], mark["text"], mark["textposition"]) == ([50 * peak_at], [50], [text], place)


@pytest.mark.parametrize(
    ("spans", "boxes_ms"),
    [
        ([], None),
        ([(0.2, 0.4)], [200, 400]),
        ([(0.2, 0.3), (0.5, 0.6)], [200, 300, 500, 600]),
        ([(0.2, 0.3), (0.301, 0.6)], [200, 600]),
    ],
)
def test_each_backward_is_shaded(spans: list[tuple[float, float]], boxes_ms: list[float] | None) -> None:
    found = only(cell_of(40), "memory-timeline", timeline([(GIB, 40 * GIB)] * 4, backward_s=spans))
    box = traces(found.figure).get("backward")
    assert (box and sorted({x for x in box["x"] if x is not None})) == boxes_ms


def test_the_moments_of_a_step_are_its_table() -> None:
    values = [(10 * GIB, 11 * GIB), (12 * GIB, 30 * GIB), (5 * GIB, 20 * GIB), (10 * GIB, 10 * GIB)]
    table = only(cell_of(30), "memory-timeline", timeline(values, backward_s=[(0.25, 0.6)])).table
    assert table is not None
    assert [[value.text for value in row] for row in table.rows] == [
        ["begin of the step", "0", "10.0", "11.0"],
        ["begin of the first backward", "250", "12.0", "30.0"],
        ["end of the last backward", "600", "5.00", "20.0"],
        ["highest", "250", "12.0", "30.0"],
        ["lowest", "500", "5.00", "20.0"],
        ["end of the step", "1,000", "10.0", "10.0"],
    ]


# ---------------------------------------------------------------- predicted


def test_a_prediction_stands_beside_what_was_measured() -> None:
    variant = only(cell_of(40, predicted=Predicted(peak_bytes=50 * GIB)), "predicted-memory")
    drawn = traces(variant.figure)
    assert (drawn["predicted"]["x"], drawn["measured"]["x"]) == ([50], [40])
    assert variant.table is not None
    assert [value.text for value in variant.table.rows[0]] == ["dp4-ep4 eager", "50.0", "40.0", "+25.0 %"]
    assert variant.note == "Furthest off: dp4-ep4 eager, by +25.0 % of what was measured."


# ---------------------------------------------------------------- nothing to show


def test_what_is_not_there_is_no_chart() -> None:
    assert list(charts(Compared.of(view_of([cell_of(40)])))) == ["memory-parts"]
    empty = timeline([(0, 1)], time_s=[], low_bytes=[], high_bytes=[])
    cell = cell_of(40)
    assert list(charts(Compared.of(RunData(view_of([cell]), timelines={cell.cell: empty})))) == ["memory-parts"]


@pytest.mark.parametrize(
    "cells", [[], [unmeasured_cell(Cell(layout=DP4), "oom", "no memory")], [cell_of(40, peak_allocated_bytes=None)]]
)
def test_without_a_peak_the_section_says_so(cells: list[CellResult]) -> None:
    section = memory_section(Compared.of(view_of(cells)))
    assert section.charts == () and section.missing == "No measured cell has a peak of memory."


def test_a_small_model_is_shown_in_mib_and_hostile_names_stay_names() -> None:
    cell = cell_of(0.01, layout=HOSTILE, memory=MemoryDetail(note=HOSTILE))
    data = RunData(view_of([cell], device="cpu"), timelines={cell.cell: timeline([(GIB // 200, GIB // 100)])})
    for chart in charts(Compared.of(data)).values():
        for variant in chart.variants:
            assert "MiB" in variant.figure.json and "GiB" not in variant.figure.json
            assert "<script" not in variant.figure.json and "\u202e" not in f"{variant.figure.json}{variant.note}"
