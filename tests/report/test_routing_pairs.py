"""Cells that differ in routing only stand together, in the terminal and on the page."""

import re

import pytest

from epbench.cells import Cell, Mode
from epbench.layout import Layout
from epbench.records import CellResult, ExpertLoad
from epbench.report.build import build_html
from epbench.report.comparison import Compared
from epbench.report.routing_pairs import routing_pairs, routings_table
from epbench.report.terminal import render_cells
from tests.report.sample import DP4, DP4_EP4, HOSTILE, TRAIN, WIDE, measured_cell, sample_view, unmeasured_cell, view_of

LOADS = {
    "natural": ExpertLoad(max_over_mean=1.9, rank_max_over_mean=1.12, fan_out=3.6),
    "round_robin": ExpertLoad(max_over_mean=1.0, rank_max_over_mean=1.0, fan_out=4.0),
    "zipf:1.2": ExpertLoad(max_over_mean=21.4, rank_max_over_mean=2.31, fan_out=2.9),
}


def routed(layout: Layout, routing: str, step_s: float, *, mode: Mode = "eager", sign: int = 1) -> CellResult:
    cell = Cell(layout=layout, mode=mode, routing=routing, model=WIDE, train=TRAIN)
    return measured_cell(cell, step_s, sign=sign, expert_load=LOADS.get(routing, ExpertLoad()))


CELLS = [
    routed(DP4_EP4, "zipf:1.2", 0.5, sign=-1),
    routed(DP4_EP4, "natural", 0.4),
    routed(DP4_EP4, "round_robin", 0.32, sign=-1),
    routed(DP4, "natural", 0.45),  # no other routing of it
    routed(DP4_EP4, "natural", 0.3, mode="compiled"),
    unmeasured_cell(Cell(layout=DP4_EP4, mode="compiled", routing="zipf:1.2", model=WIDE, train=TRAIN), "oom", "full"),
]


def test_pairs_differ_in_routing_only_and_have_numbers() -> None:
    pairs = routing_pairs(Compared.of(view_of(CELLS)))
    assert [[cell.routing for cell in cells] for cells in pairs] == [["natural", "zipf:1.2", "round_robin"]]
    assert routing_pairs(Compared.of(sample_view())) == []


@pytest.mark.parametrize(
    "changes",
    [{"layout": DP4}, {"mode": "compiled"}, {"train": TRAIN.model_copy(update={"seq_len": 2048})}, {"model": None}],
)
def test_cells_that_differ_in_more_are_no_pair(changes: dict[str, object]) -> None:
    fewer = WIDE.model_copy(update={"num_layers": 4})
    cell = Cell(layout=DP4_EP4, routing="zipf:1.2", model=WIDE, train=TRAIN)
    other = cell.model_copy(update={**changes, **({"model": fewer} if "model" in changes else {})})
    assert routings_table(Compared.of(view_of([CELLS[1], measured_cell(other, 0.5)]))) is None


def test_each_throughput_stands_beside_its_load() -> None:
    table = routings_table(Compared.of(view_of(CELLS)))
    assert table is not None
    texts = [[value.text for value in row] for row in table.rows]
    assert [row[1:3] for row in texts] == [["natural", "20,470"], ["zipf:1.2", "16,392"], ["round_robin", "25,613"]]
    assert [row[4:] for row in texts] == [["1.90", "1.12", "3.60"], ["21.4", "2.31", "2.90"], ["1.00", "1.00", "4.00"]]
    assert texts[0][0] == texts[1][0] == "dp4-ep4 eager"
    assert texts[0][3] == "first"
    slower, faster = (re.fullmatch(r"([-+][\d.]+) % \[(-?[\d.]+), (-?[\d.]+)\]", row[3]) for row in texts[1:])
    assert slower is not None and faster is not None
    assert (slower[1], faster[1]) == ("-19.9", "+25.1")
    assert float(slower[2]) < -19.9 < float(slower[3]) < 0 < float(faster[2]) < 25.1 < float(faster[3])


def test_terminal_and_page_show_the_same_table() -> None:
    view = view_of(CELLS)
    text, page = render_cells(view), build_html(view)
    section = page[page.index('id="experts"') : page.index('id="provenance"')]
    table = routings_table(Compared.of(view))
    assert table is not None
    shown = text[text.index("The same cells under different routings") :]
    for row in table.rows:
        assert all(f">{value.text}</td>" in section for value in row)
        assert any(all(value.text in line for value in row) for line in shown.splitlines())
    assert max(map(len, shown.splitlines()[:8])) <= 120
    without = sample_view()
    assert "different routings" not in render_cells(without) and "Routings side by side" not in build_html(without)


def test_a_hostile_routing_is_text() -> None:
    view = view_of([CELLS[1], routed(DP4_EP4, "natural", 0.5).model_copy(update={"routing": HOSTILE, "cell": "other"})])
    assert "<img" not in build_html(view)
    assert not {"\x1b", "\u202e", "\u2028"} & set(render_cells(view))
