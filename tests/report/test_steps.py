"""Where the step goes: parts that sum to the traced step, per layout and per rank, and what is said without a trace."""

import json
from typing import Any

import pytest

from epbench.cells import Cell
from epbench.records import Breakdown, CellResult, Idle, RunView
from epbench.report.comparison import Compared
from epbench.report.figures.steps import kernels_figure
from epbench.report.sections.model import Chart, Section
from epbench.report.sections.steps import steps_section
from epbench.report.step_parts import PARTS, has_parts, traced_s
from epbench.report.text import UNKNOWN
from tests.report.sample import DP4, DP4_EP4, measured_cell, sample_view, unmeasured_cell, view_of
from tests.report.sample_data import data_of, sample_data


def section_of(cells: list[CellResult]) -> Section:
    return steps_section(Compared.of(view_of(cells)))


def chart_of(section: Section, key: str) -> Chart:
    return next(chart for chart in section.charts if chart.key == key)


def figure_of(chart: Chart, variant: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(chart.variants[variant].figure.json)
    return found


def texts_of(chart: Chart, variant: int = 0) -> list[list[str]]:
    table = chart.variants[variant].table
    assert table is not None
    return [[value.text for value in row] for row in table.rows]


def parts(compute_ms: float, exposed_ms: float, host_ms: float, rank: int = 0) -> Breakdown:
    """Of a traced step in which 10 ms overlap and the device waits 5 ms for itself."""
    step_ms = compute_ms + exposed_ms + host_ms + 15
    return Breakdown(
        rank=rank,
        step_s=step_ms / 1e3,
        compute=compute_ms / 1e3,
        overlapped=0.010,
        exposed=exposed_ms / 1e3,
        idle=Idle(host=host_ms / 1e3, kernel=0.005),
    )


def traced(breakdown: Breakdown, step_ms: float = 200, mode: str = "eager", **fields: Any) -> CellResult:
    cell = Cell.model_validate({"layout": DP4, "mode": mode})
    return measured_cell(cell, step_ms / 1e3, sign=0, breakdown_s=breakdown, **fields)


@pytest.fixture(scope="module")
def section() -> Section:
    return steps_section(Compared.of(sample_data()))


# ---------------------------------------------------------------- parts


def test_a_row_states_the_timed_and_the_traced_step_and_all_parts() -> None:
    (row,) = texts_of(chart_of(section_of([traced(parts(150, 45, 20, rank=1))]), "step-parts"))
    assert row == [
        "dp4 eager", "200.0 [195.1, 205.0]", "230.0", "15.0 %", "1",
        "150.0", "10.00", "45.00", "20.00", "5.000", "19.6 %",
    ]  # fmt: skip


def test_the_bars_of_a_layout_sum_to_its_traced_step(section: Section) -> None:
    compared = Compared.of(sample_data())
    figure = figure_of(chart_of(section, "step-parts"))
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert [bar["name"] for bar in bars] == list(PARTS)
    cells = {compared.naming.arm(cell): cell for cell in compared.groups[0].measured}
    for at, name in enumerate(figure["layout"]["yaxis"]["ticktext"]):
        assert sum(bar["x"][at] for bar in bars) == pytest.approx(1e3 * (cells[name].breakdown_s.step_s or 0), rel=1e-3)


def test_layouts_stand_by_their_timed_step_which_is_marked(section: Section) -> None:
    figure = figure_of(chart_of(section, "step-parts"))
    (timed,) = [trace for trace in figure["data"] if trace["type"] == "scatter"]
    assert timed["x"] == sorted(timed["x"]) and len(timed["x"]) == len(figure["layout"]["yaxis"]["ticktext"])
    assert timed["name"] == "timed step" and len(timed["error_x"]["array"]) == len(timed["x"])


def test_each_rank_has_its_row_and_the_critical_one_is_named() -> None:
    ranks = [parts(150, 45, 20, rank=0), parts(155, 30, 30, rank=1)]
    chart = chart_of(section_of([traced(ranks[1], breakdown_per_rank_s=ranks)]), "step-parts-per-rank")
    assert chart.picker == "cell" and [variant.label for variant in chart.variants] == ["dp4 eager"]
    assert figure_of(chart)["layout"]["yaxis"]["ticktext"] == ["rank 0", "rank 1, critical"]
    assert [row[:4] for row in texts_of(chart)] == [["0", "no", "230.0", "150.0"], ["1", "yes", "230.0", "155.0"]]


def test_what_a_device_cannot_split_has_no_bar_and_no_number() -> None:
    on_cpu = Breakdown(rank=0, step_s=0.2, compute=0.15, overlapped=0.0, exposed=0.02, idle=Idle(host=0.03))
    chart = chart_of(section_of([traced(on_cpu)]), "step-parts")
    bars = [trace["name"] for trace in figure_of(chart)["data"] if trace["type"] == "bar"]
    assert bars == ["compute only", "exposed communication", "idle, host"]
    assert texts_of(chart)[0][5:] == ["150.0", "0", "20.00", "30.00", UNKNOWN, "10.0 %"]


def test_a_record_without_its_traced_step_has_the_sum_of_the_parts() -> None:
    old = parts(150, 45, 20).model_copy(update={"step_s": None, "rank": None})
    assert traced_s(old) == pytest.approx(0.230)
    assert traced_s(Breakdown()) is None and not has_parts(traced(Breakdown()))
    assert texts_of(chart_of(section_of([traced(old)]), "step-parts"))[0][2:5] == ["230.0", "15.0 %", UNKNOWN]


# ---------------------------------------------------------------- kernels and device work


def test_kernels_stand_by_kind_the_largest_first_with_the_share_of_unknown_ones() -> None:
    cells = [
        traced(parts(150, 45, 20), kernels_s={"gemm": 0.1, "grouped_gemm": 0.02}, unclassified_share=0.03),
        traced(parts(150, 45, 20), 180, "compiled", kernels_s={"gemm": 0.05}, unclassified_share=0.0),
    ]
    chart = chart_of(section_of(cells), "kernels")
    table = chart.variants[0].table
    assert table is not None and table.titles == ("cell", "gemm, ms", "grouped gemm, ms", "sum, ms", "of no known kind")
    assert texts_of(chart) == [
        ["dp4 compiled", "50.00", UNKNOWN, "50.00", "0.0 %"],
        ["dp4 eager", "100.0", "20.00", "120.0", "3.0 %"],
    ]
    assert chart.variants[0].note == "More than 1 % of the kernel time is of no known kind: dp4 eager (3.0 %)."


def test_a_kind_looks_the_same_in_every_chart_and_like_no_other() -> None:
    def looks(kernels_s: dict[str, float]) -> dict[str, str]:
        data = json.loads(kernels_figure([("a", kernels_s)]).json)["data"]
        return {trace["name"]: json.dumps(trace["marker"], sort_keys=True) for trace in data}

    kinds = {"communication", "copy", "attention", "grouped_gemm", "optimizer", "gemm", "norm", "index", "other", "new"}
    found = looks(dict.fromkeys(sorted(kinds), 0.01))
    assert len(set(found.values())) == len(kinds)
    assert looks({"norm": 0.2, "gemm": 0.1}) == {name: found[name] for name in ("norm", "gemm")}


def test_device_work_stands_beside_the_step_with_both_intervals_and_the_union_in_the_table() -> None:
    known: dict[str, Any] = {
        "device_work_s": 0.15,
        "device_work_s_low": 0.149,
        "device_work_s_high": 0.152,
        "kernel_union_s": 0.19,
    }
    chart = chart_of(section_of([traced(parts(150, 45, 20), **known)]), "device-work")
    assert texts_of(chart) == [["dp4 eager", "200.0 [195.1, 205.0]", "150.0 [149.0, 152.0]", "75.0 %", "190.0"]]
    work, step = figure_of(chart)["data"]
    assert (work["x"], step["x"]) == ([150.0], [200.0])
    assert (work["error_x"]["array"], work["error_x"]["arrayminus"]) == ([2.0], [1.0])


# ---------------------------------------------------------------- the section


def test_every_chart_of_a_traced_run_has_its_table(section: Section) -> None:
    assert [chart.key for chart in section.charts] == ["step-parts", "step-parts-per-rank", "kernels", "device-work"]
    for chart in section.charts:
        assert all(variant.table is not None and variant.table.rows for variant in chart.variants)


def test_the_time_around_the_steps_is_a_table_for_each_kind_of_launch(section: Section) -> None:
    titles = ["Where the time of a measured launch goes", "Where the time of a verification goes"]
    assert [table.title for table in section.tables] == titles


CPU = data_of(sample_view("cpu")).view
UNTRACED = [
    ("failures only", view_of([unmeasured_cell(Cell(layout=DP4), "oom", "out of memory")]), []),
    ("no trace", view_of([measured_cell(Cell(layout=DP4_EP4), 0.3)]), []),
    ("parts of one rank", view_of([traced(parts(150, 45, 20))]), ["step-parts"]),
    (
        "no device work",
        CPU.model_copy(update={"cells": [cell.model_copy(update={"device_work_s": None}) for cell in CPU.cells]}),
        ["step-parts", "step-parts-per-rank", "kernels"],
    ),
]


@pytest.mark.parametrize(("view", "charts"), [case[1:] for case in UNTRACED], ids=[case[0] for case in UNTRACED])
def test_what_was_not_traced_has_no_chart(view: RunView, charts: list[str]) -> None:
    found = steps_section(Compared.of(view))
    assert [chart.key for chart in found.charts] == charts
    assert bool(found.missing) == (not charts)
