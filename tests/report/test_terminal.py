"""``epbench show``: the page's words in 120 plain columns."""

import pytest

from epbench.cells import Cell
from epbench.report.comparison import Compared
from epbench.report.findings import findings
from epbench.report.terminal import render_cells
from epbench.report.verdict import summary, verdicts
from tests.report.sample import DP4, HOSTILE, measured_cell, sample_view, view_of
from tests.report.sample_data import many_cells


def test_it_says_what_the_page_says() -> None:
    view = sample_view()
    text = render_cells(view)
    for verdict in verdicts(Compared.of(view)):
        assert verdict.text in text
    assert all(f"- {finding.text}" in text for finding in findings(Compared.of(view)))
    assert text.index("is fastest") < text.index("- ") < text.index("verdict  ") < text.index("out of memory")
    assert "317.8 [310.4, 325.8]" in text and "+10.8 % [10.4, 11.0]" in text
    assert "10 ok, 1 oom, 1 wrong, 1 unstable, 1 crashed, 1 skipped, 1 not run" in text


def test_every_cell_has_one_line_and_every_failure_its_reason() -> None:
    view = sample_view()
    lines = render_cells(view).splitlines()
    rows = [
        line for line in lines if line.split() and line.split()[0] in {"fastest", "slower", "oom", "wrong", "unstable"}
    ]
    assert len(rows) == 13
    reasons = [cell.reason for cell in view.cells if cell.reason and cell.outcome is not None]
    assert len(reasons) == 5
    assert not any(line.endswith("not run yet") for line in lines), "the row says it"
    assert all(sum(line.endswith(reason) for line in lines) == 1 for reason in reasons)
    assert any("wrong (not as expected): verify" in line for line in lines)


def test_tables_are_plain_and_at_most_120_columns_wide() -> None:
    text = render_cells(sample_view())
    table = text[text.index("verdict  ") : text.index("10 ok")]
    assert max(map(len, table.splitlines())) <= 120
    assert "\x1b" not in text


def test_many_groups_are_summed_up_first_and_each_verdict_stands_by_its_table() -> None:
    compared = Compared.of(many_cells(40))
    text = render_cells(compared.view)
    assert text.index(summary(compared)) < text.index("verdict  ")
    assert "Speeds are against the reference of each group, which its table marks." in text
    for verdict in verdicts(compared):
        assert text.count(verdict.text) == 1
        assert text[text.index(verdict.text) + len(verdict.text) :].lstrip().startswith(("verdict", "tokens"))


def test_warnings_of_the_run_stand_above_its_numbers() -> None:
    changed = {"started": "2026-11-22T10:15:00+00:00", "warnings": ["the machine changed", "\u202eidle"]}
    text = render_cells(sample_view(sittings=[changed, changed]))
    assert text.index("warning: the machine changed\nwarning: \ufffdidle\n") < text.index("is fastest")
    assert text.count("the machine changed") == 1
    assert "warning" not in render_cells(sample_view())


def test_cpu_runs_say_what_they_prove() -> None:
    text = render_cells(sample_view("cpu"))
    assert "not the performance of GPUs" in text
    assert "per rank" in text and "per GPU" not in text


@pytest.mark.parametrize("name", [HOSTILE, "x" * 10_000, "\x1b[31mred\x1b[0m [bold]"])
def test_hostile_names_cannot_reach_the_terminal(name: str) -> None:
    cell = measured_cell(Cell(layout=DP4), 0.4, layout=name, reason=name)
    text = render_cells(view_of([cell], name=name))
    assert not {"\x1b", "\u202e", "\u2028"} & set(text)
    assert len(text) < 6000


def test_a_run_without_cells() -> None:
    assert "This run has no cells." in render_cells(view_of([]))
