"""Experts: the heatmap is log2 of load over the fair share, and curves join cells that differ in routing only."""

import json
from typing import Any

import pytest

from epbench.records import ExpertCopies
from epbench.report.comparison import Compared
from epbench.report.data import RunData
from epbench.report.figures.experts import color_span, load_figure
from epbench.report.sections.experts import experts_section
from epbench.report.sections.model import Chart, Section
from tests.report.gallery import RUNS
from tests.report.sample import sample_view, view_of

# Two layers of eight experts on two ep ranks. Fair share of layer 0: 100; of layer 5: 50.
EVEN = [100] * 8
UNEVEN = [200, 100, 50, 25, 25, 0, 0, 0]
COPIES = ExpertCopies(
    routing="zipf:1", layers=[0, 5], experts=[EVEN, UNEVEN], ranks=[[400, 400], [375, 25]], hot_experts=None
)


def drawn(copies: ExpertCopies) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(load_figure(copies).json)
    return found


def section_of(run: RunData) -> Section:
    found = experts_section(Compared.of(run))
    assert found is not None
    return found


def chart(section: Section, key: str) -> Chart:
    return next(chart for chart in section.charts if chart.key == key)


def texts(rows: tuple[tuple[Any, ...], ...]) -> list[list[str]]:
    return [[value.text for value in row] for row in rows]


def test_a_load_is_drawn_as_its_power_of_two_over_the_fair_share() -> None:
    shares, unused = drawn(COPIES)["data"]
    assert shares["z"] == [[0.0] * 8, [2.0, 1.0, 0.0, -1.0, -1.0, None, None, None]]
    assert shares["y"] == ["0", "5"]
    assert unused["z"] == [[None] * 8, [None] * 5 + [1, 1, 1]]


def test_an_expert_in_every_layer_used_needs_no_second_colour() -> None:
    assert len(drawn(COPIES.model_copy(update={"experts": [EVEN, EVEN[::-1]]}))["data"]) == 1


@pytest.mark.parametrize(("heaviest", "span"), [(100, 1), (198, 1), (205, 2), (793, 3)])
def test_colours_are_symmetric_about_the_fair_share_and_reach_the_heaviest(heaviest: int, span: int) -> None:
    rest, odd = divmod(800 - heaviest, 7)
    copies = COPIES.model_copy(update={"experts": [[heaviest, rest + odd, *[rest] * 6]] * 2})
    shares = drawn(copies)["data"][0]
    ticks = shares["colorbar"]
    assert color_span(copies) == span == shares["zmax"] == -shares["zmin"]
    assert max(map(max, shares["z"])) <= shares["zmax"]
    assert ticks["tickvals"] == list(range(-span, span + 1))
    assert ticks["ticktext"][span:][:2] == ["1x", "2x"]
    assert ticks["ticktext"][0] == f"1/{2**span}x or less"


def test_lines_stand_between_the_experts_of_two_ranks() -> None:
    layout = drawn(COPIES)["layout"]
    assert [shape["x0"] for shape in layout["shapes"]] == [3.5]
    assert layout["xaxis"]["tickvals"] == [1.5, 5.5]
    assert layout["xaxis"]["title"]["text"] == "ep rank, each with 4 of 8 experts"
    alone = COPIES.model_copy(update={"ranks": [[800], [400]]})
    assert drawn(alone)["layout"]["xaxis"]["title"]["text"] == "expert"


def test_the_table_has_every_layer_and_the_load_of_every_rank() -> None:
    cell = sample_view().cells[2]
    found = chart(section_of(RunData(view_of([cell]), copies={cell.cell: COPIES})), "expert-load").variants[0]
    assert found.table is not None
    assert found.table.titles[-2:] == ("rank 0", "rank 1")
    assert texts(found.table.rows) == [
        ["0", "1.00", "0", "0", "1.00", "1.00", "1.00"],
        ["5", "4.00", "0", "3", "1.88", "1.88", "0.125"],
    ]
    assert "by layer: 1.00 to 4.00" in found.note
    assert "Without a token, and purple: 3 of 16 experts" in found.note


def test_many_ranks_are_told_by_the_heaviest_and_the_lightest() -> None:
    ranks = [[10] * 30 + [40, 4]] * 2
    wide = COPIES.model_copy(update={"ranks": ranks, "experts": [[5] * 64] * 2})
    cell = sample_view().cells[2]
    table = chart(section_of(RunData(view_of([cell]), copies={cell.cell: wide})), "expert-load").variants[0].table
    assert table is not None
    assert texts(table.rows)[0][-2:] == ["3.72 (rank 30)", "0.372 (rank 31)"]


@pytest.mark.parametrize(
    "damage",
    [
        {"experts": [EVEN]},
        {"experts": [EVEN, EVEN[:4]]},
        {"experts": [EVEN, [0] * 8]},
        {"layers": [], "experts": [], "ranks": []},
        {"ranks": [[], []]},
    ],
)
def test_a_file_that_is_no_load_of_experts_is_not_drawn(damage: dict[str, Any]) -> None:
    cell = sample_view().cells[2]
    run = RunData(view_of([cell]), copies={cell.cell: COPIES.model_copy(update=damage)})
    assert experts_section(Compared.of(run)) is None


def test_48_layers_of_128_experts_are_small() -> None:
    rows = [[400 + (37 * expert + 11 * layer) % 700 for expert in range(128)] for layer in range(48)]
    ranks = [[sum(row[rank * 16 : rank * 16 + 16]) for rank in range(8)] for row in rows]
    copies = COPIES.model_copy(update={"layers": list(range(48)), "experts": rows, "ranks": ranks})
    assert len(load_figure(copies).json) < 50_000


def test_throughput_stands_over_imbalance_with_its_interval() -> None:
    section = section_of(RUNS["two-routings"]())
    (variant,) = chart(section, "imbalance").variants
    curves = json.loads(variant.figure.json)["data"]
    assert [curve["name"] for curve in curves] == ["dp4 eager", "dp4-ep4 eager", "dp2-tp2-ep4 eager"]
    assert curves[0]["x"] == [1.0, 1.0, 1.0]
    assert curves[1]["x"] == sorted(curves[1]["x"]) == [1.238, 1.525, 2.675]
    assert all(above > 0 for above in curves[1]["error_y"]["array"])
    assert variant.table is not None and len(variant.table.rows) == 9
    over_experts = json.loads(chart(section, "imbalance-experts").variants[0].figure.json)["data"]
    assert over_experts[0]["x"] == over_experts[1]["x"] == [1.9, 4.2, 13.4]
    styles = [(curve["line"]["color"], curve["marker"]["symbol"]) for curve in curves]
    assert len(set(styles)) == len(styles)


def test_one_routing_has_no_curve() -> None:
    section = experts_section(Compared.of(RUNS["one-launch"]()))
    assert section is not None
    assert [chart.key for chart in section.charts] == ["expert-load"]
    assert section.table is None
    assert experts_section(Compared.of(sample_view())) is None
