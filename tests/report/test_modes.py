"""Eager and compiled: what compiling gains as far as launches tell, what it costs, and when it has paid for itself."""

import json
from typing import Any

import pytest

from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import CellResult, CompileRecord, RunView
from epbench.report.comparison import Compared
from epbench.report.compiling import break_even, break_evens, gain_sentence, geometric_mean, pairs_of
from epbench.report.sections.model import Section
from epbench.report.sections.modes import modes_section
from epbench.report.sections.modes_tables import break_even_table, costs_table, speed_up_table, steps_table
from epbench.report.selection import mode_rows
from epbench.report.text import UNKNOWN
from tests.report.sample import DP4, DP4_EP4, TP4, measured_cell, sample_view, unmeasured_cell, view_of

SURE, NOISY = 0, 60


def both(eager_ms: float, compiled_ms: float, *, noise: int = SURE, layout: Layout = DP4, **fields: Any) -> list[Any]:
    """One layout in both modes, compiled in 20 s by its first of three launches and in 4 s by the median one."""
    options: dict[str, Any] = {
        "sign": noise,
        "phases_s": {"measure": {"build": 1.0, "compile": 4.0}},
        "compile": CompileRecord(seconds=20.0, graph_breaks=0, recompiles=0),
    }
    return [
        measured_cell(Cell(layout=layout), eager_ms / 1e3, sign=SURE, launches=fields.get("launches", 3)),
        measured_cell(Cell(layout=layout, mode="compiled"), compiled_ms / 1e3, **(options | fields)),
    ]


def compared_of(cells: list[CellResult]) -> Compared:
    return Compared.of(view_of(cells))


# ---------------------------------------------------------------- break-even

CASES = [
    # 20 s and 4 s over 100 ms saved a step
    ("faster", both(500, 400), ["after", "after"], ["200 [200, 200]", "40 [40, 40]"]),
    ("slower", both(400, 500), ["never", "never"], ["never", "never"]),
    ("no telling", both(400, 396, noise=NOISY), ["unknown", "unknown"], [UNKNOWN, UNKNOWN]),
    (
        "too few launches",
        both(500, 400, launches=2),
        ["after", "unknown"],
        ["202", UNKNOWN],
    ),  # the median of two is 0.5 % less
    ("too few launches, slower", both(400, 500, launches=2), ["unknown", "unknown"], [UNKNOWN, UNKNOWN]),
    ("one launch", both(500, 400, launches=1), ["after", "unknown"], ["200", UNKNOWN]),
    ("an old record", both(500, 400, phases_s={}), ["after", "unknown"], ["200 [200, 200]", UNKNOWN]),
    ("not recorded", both(500, 400, compile={}, phases_s={}), ["unknown", "unknown"], [UNKNOWN, UNKNOWN]),
]


@pytest.mark.parametrize(("cells", "kinds", "texts"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_compiling_has_paid_after_as_many_steps_as_launches_can_tell(
    cells: list[CellResult], kinds: list[str], texts: list[str]
) -> None:
    compared = compared_of(cells)
    pairs = pairs_of(compared, compared.groups[0])
    assert [found.kind for found in break_evens(pairs[0])] == kinds
    assert [value.text for value in break_even_table(pairs).rows[0][-2:]] == texts


def test_the_interval_of_break_even_is_that_of_the_speed_up() -> None:
    compared = compared_of(both(500, 400, noise=20))
    (pair,) = pairs_of(compared, compared.groups[0])
    steps = break_even(pair, 20.0).steps
    assert steps is not None and pair.speed.low is not None and pair.speed.high is not None
    step_s = pair.compiled.step_s or 0.0
    bounds = [20.0 / (step_s * (speed - 1)) for speed in (pair.speed.value, pair.speed.high, pair.speed.low)]
    assert [steps.value, steps.low, steps.high] == pytest.approx(bounds)
    assert 0 < bounds[1] < bounds[0] < bounds[2]


# ---------------------------------------------------------------- the mean gain


def test_the_mean_gain_is_over_layouts_with_both_numbers_and_names_the_others() -> None:
    cells = [
        *both(440, 400),
        *both(484, 400, layout=DP4_EP4),
        unmeasured_cell(Cell(layout=TP4), "oom", "out of memory"),
        measured_cell(Cell(layout=TP4, mode="compiled"), 0.3),
        measured_cell(Cell(layout=Layout(dp_shard=2, tp=2, ep=4)), 0.5),
        unmeasured_cell(Cell(layout=Layout(dp_shard=2, tp=2, ep=2, etp=2)), "skipped", "illegal"),
    ]
    compared = compared_of(cells)
    group = compared.groups[0]
    pairs = pairs_of(compared, group)
    assert geometric_mean(pairs) == pytest.approx((1.1 * 1.21) ** 0.5)
    assert gain_sentence(compared, group, pairs) == (
        "1.15x over 2 of 4 layouts, the geometric mean of those with a number in both modes. "
        "Left out: tp4-etp4 (eager oom, compiled ok) and dp2-tp2-ep4 (eager only)."
    )


def test_the_words_of_a_speed_up_are_those_of_its_interval() -> None:
    cells = [*both(500, 400), *both(400, 500, layout=DP4_EP4), *both(400, 396, noise=NOISY, layout=TP4)]
    compared = compared_of(cells)
    rows = speed_up_table(pairs_of(compared, compared.groups[0])).rows
    assert {row[0].text: row[-1].text for row in rows} == {
        "dp4": "faster compiled",
        "dp4-ep4": "slower compiled",
        "tp4-etp4": "no difference",
    }
    few = compared_of(both(500, 400, launches=2))
    assert speed_up_table(pairs_of(few, few.groups[0])).rows[0][-1].text == "fewer than 3 launches"


# ---------------------------------------------------------------- the section


@pytest.fixture(scope="module")
def section() -> Section:
    return modes_section(Compared.of(sample_view()))


def figure_of(section: Section, chart: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(one for one in section.charts if one.key == chart).variants[0].figure.json)
    return found


def test_all_three_charts_have_a_variant_for_each_group_with_pairs(section: Section) -> None:
    assert [chart.key for chart in section.charts] == ["steps", "speed-up", "break-even"]
    assert {tuple(variant.label for variant in chart.variants) for chart in section.charts} == {
        tuple(group.work for group in Compared.of(sample_view()).groups)
    }


def test_points_and_bars_are_the_numbers_of_the_table(section: Section) -> None:
    compared = Compared.of(sample_view())
    rows = mode_rows(compared, compared.groups[0])
    lines, compiled, eager = sorted(figure_of(section, "steps")["data"], key=lambda trace: trace.get("name") or "")
    fastest = rows[0][1]
    assert [compiled["x"][0], eager["x"][0]] == pytest.approx(
        sorted(1e3 * (cell.step_s or 0) for cell in fastest), 1e-5
    )
    assert lines["x"][:3] == [compiled["x"][0], eager["x"][0], None]
    table = steps_table(rows)
    assert table.rows[0][3].sort == pytest.approx(compiled["x"][0] / 1e3, 1e-5)


def test_a_row_of_one_mode_has_no_line_and_a_dash() -> None:
    cells = [*both(500, 400), measured_cell(Cell(layout=TP4), 0.3)]
    compared = compared_of(cells)
    rows = {
        row[0].text: [value.text for value in row] for row in steps_table(mode_rows(compared, compared.groups[0])).rows
    }
    assert rows["tp4-etp4"] == ["tp4-etp4", "300.1 [292.4, 307.7]", "3", UNKNOWN, UNKNOWN]


def words_of(view: RunView) -> tuple[list[str], str]:
    found = modes_section(Compared.of(view))
    return [chart.key for chart in found.charts], found.note + found.missing


NOTHING_GAINED = [
    ("eager only", [measured_cell(Cell(layout=DP4), 0.4)], ["steps"], "No layout was measured both eager and compiled"),
    ("slower", both(400, 500), ["steps", "speed-up"], "Compiling never pays for dp4: slower compiled."),
    ("untold", both(400, 396, noise=NOISY), ["steps", "speed-up"], "No break-even for dp4: the launches do not tell"),
    ("unrecorded", both(500, 400, compile={}, phases_s={}), ["steps", "speed-up"], "how long compiling took was not"),
    ("failed", [unmeasured_cell(Cell(layout=DP4), "oom", "")], [], "No cell has a step time."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "charts", "words"), [one[1:] for one in NOTHING_GAINED], ids=[one[0] for one in NOTHING_GAINED]
)
def test_a_chart_that_would_be_empty_is_a_sentence(cells: list[CellResult], charts: list[str], words: str) -> None:
    keys, note = words_of(view_of(cells))
    assert keys == charts and words in note


def test_what_compiling_costs_is_told_of_every_compiled_cell_that_recorded_it() -> None:
    cells = [*both(500, 400), measured_cell(Cell(layout=TP4, mode="compiled"), 0.3, compile={})]
    table = costs_table(compared_of(cells))
    assert table is not None
    assert [[value.text for value in row] for row in table.rows] == [
        ["dp4 compiled", UNKNOWN, "3", "20.0", "4.00", "0", "0"]
    ]
    assert costs_table(compared_of(cells[:1])) is None
