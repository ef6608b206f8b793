"""Communication: every second of the records is in a chart or a table, beside what the same bytes take alone."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from epbench.analysis.comm import fits_of
from epbench.cells import Cell
from epbench.comm_records import OPS, WAYS, CommPoint, CommRecord, Partition, Swept
from epbench.records import CellResult, CollectiveRow, Spread
from epbench.report.comparison import Compared
from epbench.report.data import RunData
from epbench.report.figures.base import Figure
from epbench.report.figures.communication import KINDS, MESH_AXES, OTHER, Looks, collectives_figure, kind_of
from epbench.report.quantities import lost_s
from epbench.report.sections.communication import communication_section
from epbench.report.sections.communication_tables import axis_bytes, axis_table, collectives_table
from epbench.report.sections.model import Chart
from epbench.report.sections.sweep import own_sizes
from epbench.report.tables import Table
from epbench.report.text import UNKNOWN
from tests.report.sample import CP2_EP4, DP4, DP4_EP4, HOSTILE, TP2_EP4, measured_cell, unmeasured_cell, view_of
from tests.report.sample_data import sample_data

MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module")
def sample() -> Compared:
    return Compared.of(sample_data())


def call(**changes: Any) -> CollectiveRow:
    """Eight dispatches of 1 MiB, 500 us each."""
    known: dict[str, Any] = {
        "op": "all_to_all",
        "purpose": "dispatch",
        "phase": "forward",
        "axis": "ep",
        "calls_per_step": 8.0,
        "bytes": MIB,
        "bytes_mean": float(MIB),
        "bytes_per_step": 8.0 * MIB,
        "transfer_s": 4e-3,
        "wait_s": 1e-3,
        "p50_s": 500e-6,
        "p95_s": 700e-6,
        "algbw_bytes_per_s": None,
        "busbw_bytes_per_s": None,
    }
    return CollectiveRow.model_validate(known | changes)


def cell_of(*rows: CollectiveRow, cell: Cell | None = None, **changes: Any) -> CellResult:
    return measured_cell(cell or Cell(layout=DP4_EP4), 0.3, collectives=list(rows), **changes)


def compared(*cells: CellResult, comm: CommRecord | None = None) -> Compared:
    return Compared.of(RunData(view_of(list(cells)), comm=comm))


def charts(found: Compared) -> dict[str, Chart]:
    return {chart.key: chart for chart in communication_section(found).charts}


def traces(figure: Figure) -> list[dict[str, Any]]:
    return [{"name": "", **trace} for trace in json.loads(figure.json)["data"]]


def row_sums(bars: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Length of all bars of a row together."""
    sums: dict[int, float] = {}
    for bar in bars:
        for at, length in zip(bar["y"], bar["x"], strict=True):
            sums[at] = sums.get(at, 0.0) + (length or 0.0)
    return {at: total for at, total in sums.items() if total}


def column(table: Table, title: str) -> list[Any]:
    place = table.titles.index(title)
    return [row[place] for row in table.rows]


# ---------------------------------------------------------------- in the step


def test_every_transfer_and_wait_is_drawn(sample: Compared) -> None:
    cells = [cell for cell in sample.groups[0].measured if cell.collectives]
    looks = Looks.of(((kind_of(row), row.transfer_s) for cell in cells for row in cell.collectives), KINDS)
    figure = collectives_figure(sample, cells, looks)
    bars = [trace for trace in traces(figure) if trace["type"] == "bar" and trace["x"] != [None]]
    phases = json.loads(figure.json)["layout"]["yaxis"]["ticktext"]
    rows = [(cell, phase) for cell in cells for phase in ("", "forward", "backward")]
    assert phases == [phase for _, phase in rows]
    for kind, is_wait in (("transfer_s", False), ("wait_s", True)):
        drawn = row_sums(bar for bar in bars if bar["name"].endswith(", wait") == is_wait)
        for at, (cell, phase) in enumerate(rows):
            seconds = [getattr(row, kind) for row in cell.collectives if row.phase == phase]
            assert drawn.get(at, 0.0) == pytest.approx(1e3 * sum(seconds), rel=1e-3)


@pytest.mark.parametrize(
    ("exposed", "marks"),
    [((None, None), []), ((1e-3, None), [1.0]), ((1e-3, 2.5e-3), [3.5]), ((0.0, 0.0), [0.0])],
)
def test_exposed_transfer_is_marked_where_it_is_known(exposed: tuple[float | None, ...], marks: list[float]) -> None:
    rows = [call(purpose=f"p{index}", exposed_s=seconds) for index, seconds in enumerate(exposed)]
    figure = charts(compared(cell_of(*rows)))["collectives"].variants[0].figure
    (found,) = [trace for trace in traces(figure) if trace["name"] == "exposed transfer"]
    assert (found["x"], found["showlegend"]) == (marks, bool(marks))


@pytest.mark.parametrize(
    ("transfers_ms", "named", "folded"),
    [
        ({"dispatch": 9}, ["dispatch"], []),
        ({"new": 9, "dispatch": 8, "combine": 0.001}, ["dispatch", "combine", "new"], []),
        ({"dispatch": 100, "new": 6, "tiny": 4}, ["dispatch", "new"], ["tiny"]),
        ({"dispatch": 9, "a": 4, "b": 3, "c": 2}, ["dispatch", "a", "b"], ["c"]),
        ({"tiny": 1, "dispatch": 99, "least": 0.5}, ["dispatch"], ["tiny", "least"]),
    ],
)
def test_known_kinds_have_their_look_and_small_ones_that_are_not_are_folded(
    transfers_ms: dict[str, float], named: list[str], folded: list[str]
) -> None:
    rows = [call(purpose=name, transfer_s=1e-3 * value, wait_s=0.0) for name, value in transfers_ms.items()]
    variant = charts(compared(cell_of(*rows)))["collectives"].variants[0]
    names = [trace["name"] for trace in traces(variant.figure) if trace["type"] == "bar"]
    assert names == [*named, *[OTHER] * bool(folded), "wait"]
    assert all(name in variant.note for name in folded) and ("Other kinds" in variant.note) == bool(folded)
    assert len(variant.table.rows if variant.table else ()) == len(transfers_ms)


def test_every_two_kinds_differ_in_hatching() -> None:
    for looks in (KINDS, MESH_AXES):
        assert len({(look.shape, look.size) for look in looks.values()}) == len(looks)


def test_of_many_cells_the_fastest_are_drawn_and_the_table_has_all() -> None:
    cells = [
        measured_cell(Cell(layout=DP4_EP4), 0.5 - 0.001 * index, collectives=[call()]).model_copy(
            update={"cell": f"cell-{index}"}
        )
        for index in range(40)
    ]
    (variant,) = charts(compared(*cells))["collectives"].variants
    (headings,) = [trace for trace in traces(variant.figure) if trace.get("mode") == "text"]
    assert len(headings["text"]) == 24 and len(variant.table.rows if variant.table else ()) == 40
    assert "The 24 fastest of 40 cells are drawn" in variant.note


def test_the_table_says_who_came_last_and_how_much_is_exposed(sample: Compared) -> None:
    (cell,) = [cell for cell in sample.groups[0].measured if (cell.layout, cell.mode) == ("dp4", "eager")]
    table = collectives_table(sample, [cell])
    assert [value.text for value in column(table, "most often last")] == ["rank 1, 75.0 %"] * 3
    exposed = [value.sort for value in column(table, "exposed, ms/step")]
    assert exposed == [row.exposed_s for row in cell.collectives]


# ---------------------------------------------------------------- beside the same bytes alone


@pytest.mark.parametrize(
    ("alone_s", "times", "lost"), [(400e-6, "1.25", 0.8e-3), (500e-6, "1.00", 0.0), (1e-3, "0.500", -4e-3)]
)
def test_a_call_stands_beside_the_same_bytes_alone(alone_s: float, times: str, lost: float) -> None:
    row = call(isolated_s=alone_s)
    (variant,) = charts(compared(cell_of(row, call(purpose="combine"))))["in-step-vs-alone"].variants
    assert variant.table is not None
    assert [value.text for value in column(variant.table, "p50 / alone")] == [times, UNKNOWN]
    assert lost_s(row) == pytest.approx(lost)
    points = {trace.get("name"): trace for trace in traces(variant.figure)}
    assert points["the same bytes alone"]["x"] == [1e6 * alone_s] and points["in the step"]["x"] == [500]
    assert points["in the step"]["error_x"]["array"] == [200]
    assert variant.note == "Outside of the sweep: combine."


@pytest.mark.parametrize(
    ("summed", "lost"), [(8.0, 0.8e-3), (8.3, 0.8e-3), (7.7, 0.8e-3), (30.0, None), (2.0, None), (None, None)]
)
def test_what_calls_lose_is_said_only_where_the_median_call_stands_for_all(
    summed: float | None, lost: float | None
) -> None:
    row = call(isolated_s=400e-6, bytes_per_step=None if summed is None else summed * MIB)
    assert lost_s(row) == (lost if lost is None else pytest.approx(lost))


def test_without_a_sweep_the_section_says_how_to_get_one() -> None:
    section = communication_section(compared(cell_of(call())))
    assert "set comm = true under [measure]" in section.note
    assert [chart.key for chart in section.charts] == ["collectives", "bytes-per-axis"]


# ---------------------------------------------------------------- the sweep

PAIRS = Partition(world_size=4, groups=((0, 1), (2, 3)), used_by={"tp": ("dp2-tp2-ep4",), "cp": ("dp2-cp2-ep4",)})
WORLD = Partition(world_size=4, groups=((0, 1, 2, 3),), used_by={"ep": ("dp4-ep4",)})


def swept(partition: Partition, sizes: int = 5) -> Swept:
    """10 us and 100 GB/s of the buffer, half of which crosses the bus; quartiles 20 % off."""
    points = tuple(
        CommPoint(
            op=op,
            way=way,
            bytes=size,
            bus_bytes=size / 2,
            seconds=Spread(median=(t := 10e-6 + size / 1e11), low=0.8 * t, high=1.2 * t),
            repetitions=9,
        )
        for op in OPS
        for way in WAYS
        for size in (65536 * 4**k for k in range(sizes))
    )
    return Swept(partition=partition, points=points, fits=fits_of(points))


def comm(*found: Swept) -> CommRecord:
    return CommRecord(environment="e", device="cuda", dtype="bf16", data="zeros", swept=found)


@pytest.mark.parametrize(
    ("layout", "axis", "partition", "is_own"),
    [
        (TP2_EP4, "tp", PAIRS, True),
        (TP2_EP4, "ep", PAIRS, False),
        (TP2_EP4, "ep", WORLD, True),
        (CP2_EP4, "cp", PAIRS, True),
        (DP4, "fsdp", WORLD, True),
        (DP4, "unknown", WORLD, False),
    ],
)
def test_the_sizes_of_the_run_stand_at_their_groups(layout: Any, axis: str, partition: Partition, is_own: bool) -> None:
    found = own_sizes([cell_of(call(axis=axis), cell=Cell(layout=layout))], partition)
    assert [(one.kind, one.bytes, one.layouts) for one in found] == [("dispatch", MIB, (layout.slug,))] * is_own


def test_sizes_that_are_almost_alike_are_one_and_other_stacks_have_none() -> None:
    rows = [call(bytes=MIB), call(bytes=int(1.04 * MIB), phase="backward"), call(bytes=2 * MIB)]
    assert [one.bytes for one in own_sizes([cell_of(*rows)], WORLD)] == [MIB, 2 * MIB]
    assert own_sizes([cell_of(call(), layout=HOSTILE)], WORLD) == []


@pytest.mark.parametrize(
    ("mib", "note"),
    [(8.0, ""), (None, ""), (24.0, "Calls of several sizes, of which the median is marked: dispatch.")],
)
def test_a_median_that_stands_for_several_sizes_is_told(mib: float | None, note: str) -> None:
    row = call(bytes_per_step=None if mib is None else mib * MIB)
    found = charts(compared(cell_of(row), comm=comm(swept(WORLD))))
    assert [found[key].variants[0].note for key in ("latency", "bandwidth")] == [note, note]


def test_latency_and_bandwidth_have_a_panel_a_way_a_fit_and_the_sizes_of_the_run() -> None:
    found = charts(
        compared(
            cell_of(call(), call(purpose="norm", bytes=8, bytes_per_step=64)), comm=comm(swept(WORLD), swept(PAIRS))
        )
    )
    labels = ["{0, 1, 2, 3}: ep", "{0, 1} {2, 3}: tp, cp"]
    for key, expected in (("latency", 10 + 65536 / 1e5), ("bandwidth", 65536 / 2e9 / (10e-6 + 65536 / 1e11))):
        chart = found[key]
        assert (chart.picker, [variant.label for variant in chart.variants]) == ("groups", labels)
        drawn = traces(chart.variants[0].figure)
        layout = json.loads(chart.variants[0].figure.json)["layout"]
        axes = [key for key in layout if key.startswith("xaxis")]
        assert len(axes) == len(WAYS) + 1 and {layout[key]["type"] for key in axes} == {"log"}
        medians = [trace for trace in drawn if trace.get("mode") == "lines+markers"]
        fits = [trace for trace in drawn if trace["name"].startswith("fit") and trace["x"] != [None]]
        assert len(medians) == len(fits) == len(OPS) * len(WAYS)
        for trace in (*medians, *fits):
            assert trace["y"][0] == pytest.approx(expected, rel=0.01)
        (own,) = [trace for trace in drawn if trace.get("mode") == "markers+text"]
        assert (own["x"], own["text"]) == ([MIB], ["dispatch"])
        assert chart.variants[0].note == "Beyond the sizes of the sweep: norm (8 B)."
        assert chart.variants[1].note == ""


def test_the_band_is_between_the_quartiles() -> None:
    drawn = traces(charts(compared(cell_of(call()), comm=comm(swept(WORLD))))["latency"].variants[0].figure)
    band = next(trace for trace in drawn if trace["mode"] == "none")
    median_us = [10 + 65536 * 4**k / 1e5 for k in range(5)]
    assert band["y"] == pytest.approx([0.8 * t for t in median_us] + [1.2 * t for t in reversed(median_us)], rel=0.01)


def test_three_sizes_have_points_but_no_fit() -> None:
    found = compared(cell_of(call()), comm=comm(swept(WORLD, sizes=3)))
    drawn = traces(charts(found)["latency"].variants[0].figure)
    assert not [trace for trace in drawn if trace["name"].startswith("fit") and trace["x"] != [None]]
    assert communication_section(found).tables == ()


def test_the_fits_are_a_table_with_their_errors() -> None:
    (titled,) = communication_section(compared(cell_of(call()), comm=comm(swept(WORLD)))).tables
    assert len(titled.table.rows) == len(OPS) * len(WAYS)
    first = [value.text for value in titled.table.rows[0]]
    assert first[:6] == ["{0, 1, 2, 3}: ep", "all_to_all", "drained", "10.0", "100", "50.0"]


# ---------------------------------------------------------------- bytes by axis


def test_bytes_over_an_axis_are_summed_over_calls_which_may_differ_in_size() -> None:
    """Eight blocks of 1 MiB with embedding and head of 16 are 40 MiB; ten median calls would be 10."""
    blocks = {"op": "all_gather", "purpose": "fsdp", "axis": "fsdp", "calls_per_step": 10.0}
    mixed = call(**blocks, bytes_per_step=40.0 * MIB, bus_bytes=MIB / 2, bus_bytes_per_step=20.0 * MIB)
    cell = cell_of(call(), call(purpose="combine", bytes_per_step=4.0 * MIB), mixed)
    assert axis_bytes(cell) == {"ep": 12 * MIB, "fsdp": 40 * MIB}
    table = axis_table([("dp4-ep4", cell)])
    assert [value.sort for value in column(table, "buffers, GiB/step")] == [12 * MIB, 40 * MIB]
    assert [value.sort for value in column(table, "over the wires, GiB/step")] == [None, 20 * MIB]


@pytest.mark.parametrize(("older", "whose"), [((True, True), "this run"), ((False, True), "1 of 2 cells"), ((), None)])
def test_bytes_of_older_records_are_not_made_up(older: tuple[bool, ...], whose: str | None) -> None:
    modes = ("eager", "compiled")
    cells = [
        cell_of(call(**({"bytes_per_step": None} if is_older else {})), cell=Cell(layout=DP4_EP4, mode=mode))
        for is_older, mode in zip(older or (False, False), modes, strict=True)
    ]
    found = compared(*cells)
    assert ("bytes-per-axis" in charts(found)) == (whose != "this run")
    assert (f"Bytes over each axis are not known of {whose}" in communication_section(found).note) == bool(whose)


@pytest.mark.parametrize(
    ("compiled_mib", "names"), [(8.0, ["dp4-ep4"]), (8.05, ["dp4-ep4"]), (9.0, ["dp4-ep4 eager", "dp4-ep4 compiled"])]
)
def test_modes_that_move_the_same_bytes_share_a_bar(compiled_mib: float, names: list[str]) -> None:
    eager = cell_of(call())
    compiled = cell_of(call(bytes_per_step=compiled_mib * MIB), cell=Cell(layout=DP4_EP4, mode="compiled"))
    (variant,) = charts(compared(eager, compiled))["bytes-per-axis"].variants
    assert json.loads(variant.figure.json)["layout"]["yaxis"]["ticktext"] == names


# ---------------------------------------------------------------- nothing to show


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([], "No measured cell has a trace"),
        ([unmeasured_cell(Cell(layout=DP4), "oom", "out of memory")], "No measured cell has a trace"),
        ([measured_cell(Cell(layout=DP4), 0.3, collectives=[])], "No measured cell has a trace"),
        ([measured_cell(Cell(layout=DP4), 0.3, collectives=[], world_size=1)], "Every measured cell has one rank"),
    ],
)
def test_what_is_missing_is_said(cells: list[CellResult], sentence: str) -> None:
    section = communication_section(compared(*cells))
    assert section.charts == () and sentence in section.missing


def test_hostile_names_stay_names(sample: Compared) -> None:
    rows = [call(purpose=HOSTILE, phase=HOSTILE, axis=HOSTILE, isolated_s=1e-4)]
    for chart in charts(compared(cell_of(*rows, layout=HOSTILE))).values():
        for variant in chart.variants:
            assert "<script" not in variant.figure.json and "\u202e" not in f"{variant.figure.json}{variant.note}"
