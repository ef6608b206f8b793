"""MoE sizes: the same layout and mode with different models, side by side, one chart for each routing."""

import json
from typing import Any

from epbench.cells import Cell, ModelSpec
from epbench.layout import Layout
from epbench.records import CellResult, RunView
from epbench.report.comparison import Compared
from epbench.report.sections.model import Section, Variant
from epbench.report.sections.sizes import sizes_section
from epbench.report.text import UNKNOWN
from tests.report.sample import DP4, DP4_EP4, FEW, TP4, TRAIN, WIDE, measured_cell, sample_view, view_of

SIZES = (WIDE, FEW)


def cell(layout: Layout, model: ModelSpec, step_s: float, mode: str = "eager", routing: str = "natural") -> CellResult:
    what = Cell.model_validate({"layout": layout, "mode": mode, "model": model, "train": TRAIN, "routing": routing})
    return measured_cell(what, step_s)


def section_of(view: RunView) -> Section:
    found = sizes_section(Compared.of(view))
    assert found is not None
    return found


def rows_of(variant: Variant) -> list[list[str]]:
    assert variant.table is not None
    return [[value.text for value in row] for row in variant.table.rows]


def figure_of(variant: Variant) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(variant.figure.json)
    return found


def test_each_routing_has_its_chart_and_a_layout_of_one_size_is_in_none() -> None:
    cells = [cell(DP4, model, 0.3, routing=routing) for routing in ("natural", "round_robin") for model in SIZES]
    (chart,) = section_of(view_of([*cells, cell(TP4, WIDE, 0.2)])).charts
    assert [variant.label for variant in chart.variants] == ["natural routing", "round_robin routing"]
    assert [figure_of(variant)["layout"]["yaxis"]["ticktext"] for variant in chart.variants] == [["dp4 eager"]] * 2


def test_the_best_layout_comes_first_with_its_modes_together() -> None:
    steps = {(DP4, "eager"): 0.33, (DP4_EP4, "eager"): 0.34, (DP4, "compiled"): 0.32, (DP4_EP4, "compiled"): 0.30}
    cells = [cell(layout, model, step, mode) for (layout, mode), step in steps.items() for model in SIZES]
    (chart,) = section_of(view_of(cells)).charts
    names = figure_of(chart.variants[0])["layout"]["yaxis"]["ticktext"]
    assert names == ["dp4-ep4 compiled", "dp4-ep4 eager", "dp4 compiled", "dp4 eager"]


def test_equal_throughputs_of_two_sizes_do_not_cover_each_other() -> None:
    (chart,) = section_of(view_of([cell(DP4, model, 0.3) for model in SIZES])).charts
    wide, few = figure_of(chart.variants[0])["data"]
    assert wide["x"] == few["x"] and few["y"][0] - wide["y"][0] > 0.5
    assert wide["marker"]["symbol"] != few["marker"]["symbol"]


def test_the_table_has_what_a_token_costs_and_the_throughput_against_the_first_size() -> None:
    (chart,) = section_of(view_of([cell(DP4, WIDE, 0.33), cell(DP4, FEW, 0.30)])).charts
    first, second = rows_of(chart.variants[0])
    assert first[:5] == ["dp4 eager", "128 / 8 / 768", "5.61", "1.08", "5.40"]
    assert (first[-1], second[-1]) == ("first", "+10.0 % [10.0, 10.0]")


def test_a_foreign_model_has_no_costs() -> None:
    foreign = [
        made.model_copy(update={"model": {"preset": "mine", "num_experts": count}})
        for count, made in ((8, cell(DP4, WIDE, 0.33)), (16, cell(DP4, FEW, 0.3)))
    ]
    (chart,) = section_of(view_of(foreign)).charts
    assert rows_of(chart.variants[0])[0][1:5] == ["8 / ? / ?", UNKNOWN, UNKNOWN, UNKNOWN]


def test_sizes_that_share_no_layout_are_said_and_one_size_is_no_section() -> None:
    assert section_of(view_of([cell(DP4, WIDE, 0.3), cell(TP4, FEW, 0.3)])).missing
    assert sizes_section(Compared.of(view_of([cell(DP4, WIDE, 0.3)]))) is None
    assert section_of(sample_view()).charts
