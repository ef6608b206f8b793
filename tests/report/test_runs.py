"""Runs against each other: who is matched with whom, what the intervals bear out, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from epbench.cells import Cell
from epbench.errors import RunError
from epbench.layout import Layout
from epbench.records import CellResult
from epbench.report.changes import NOTHING_DIFFERS, changes_json, changes_sentence, changes_table, outcome_lines
from epbench.report.data import RunData
from epbench.report.runs import ComparedRuns, compared_runs
from epbench.report.sections.change import change_section
from epbench.report.terminal import render_changes
from tests.report.sample import DP4, DP4_EP4, HOSTILE, TP2_EP4, environment, measured_cell, unmeasured_cell, view_of


def run(*cells: CellResult, name: str = "", **fields: Any) -> RunData:
    return RunData(view_of(list(cells), **fields), path=Path(name) if name else None)


def cell(layout: Layout = DP4, step_s: float = 0.4, mode: str = "eager", **fields: Any) -> CellResult:
    return measured_cell(Cell.model_validate({"layout": layout, "mode": mode}), step_s, **fields)


def three_runs() -> list[RunData]:
    """dp4 slower twice, dp4-ep4 out of memory at last, tp2 only at first, dp4 compiled only at last."""
    newer = environment().model_copy(update={"torch": "2.12.0+cu130"})
    lost = unmeasured_cell(Cell(layout=DP4_EP4), "oom", "rank 2: CUDA out of memory")
    return [
        run(cell(DP4, 0.4), cell(DP4_EP4, 0.3), cell(TP2_EP4, 0.5), name="monday"),
        run(cell(DP4, 0.44), cell(DP4_EP4, 0.3), name="tuesday", environment=newer),
        run(cell(DP4, 0.5), lost, cell(DP4, 0.35, "compiled"), name="wednesday", environment=newer),
    ]


@pytest.fixture(scope="module")
def compared() -> ComparedRuns:
    return compared_runs(three_runs())


def named(compared: ComparedRuns) -> dict[str, str]:
    return {change.name: change.word for change in compared.changes}


def test_cells_are_matched_by_what_they_are_and_judged_by_their_intervals(compared: ComparedRuns) -> None:
    assert named(compared) == {
        "dp4 eager": "slower",
        "dp4-ep4 eager": "unknown",
        "dp4 compiled": "unknown",
        "dp2-tp2-ep4 eager": "unknown",
    }
    assert [change.name for change in compared.common] == ["dp4 eager", "dp4-ep4 eager"]


@pytest.mark.parametrize(
    ("before_s", "after_s", "launches", "word"),
    [
        (0.4, 0.5, 3, "slower"),
        (0.5, 0.4, 3, "faster"),
        (0.4, 0.404, 3, "no difference"),
        (0.4, 0.5, 2, "unknown"),
    ],
)
def test_a_change_is_called_what_its_interval_bears_out(
    before_s: float, after_s: float, launches: int, word: str
) -> None:
    (change,) = compared_runs(
        [run(cell(DP4, before_s, launches=3)), run(cell(DP4, after_s, launches=launches))]
    ).changes
    assert change.word == word
    assert change.speed is not None and change.speed.value == pytest.approx(before_s / after_s, rel=0.02)


def test_launches_of_two_runs_are_no_pairs() -> None:
    """Inside a run the launches' common rhythm cancels; between runs it does not, and widens the interval."""
    (change,) = compared_runs([run(cell(DP4, 0.4)), run(cell(DP4, 0.5))]).changes
    assert change.speed is not None and change.speed.low is not None and change.speed.high is not None
    assert change.speed.high - change.speed.low > 0.02


def test_a_setting_that_an_older_version_did_not_know_has_its_default() -> None:
    new = cell()
    old = new.model_copy(
        update={"train": {key: value for key, value in new.train.items() if key != "optimizer_fused"}, "cell": "old-id"}
    )
    assert [change.is_common for change in compared_runs([run(old), run(new)]).changes] == [True]
    other = new.model_copy(update={"train": new.train | {"optimizer_fused": False}})
    with pytest.raises(RunError, match="no cell in common"):
        compared_runs([run(old), run(other)])


def test_what_else_differs_is_named(compared: ComparedRuns) -> None:
    assert [(one.what, one.reference, one.here) for one in compared.differences] == [
        ("torch", "2.11.0+cu130", "2.12.0+cu130")
    ]


def on(host: str, gpus: str, **fields: Any) -> RunData:
    """A run whose launches name their machine; an empty name is none."""
    made = cell(**fields)
    named = {"names": [host], "gpu_uuids": list(gpus)} if host else {}
    launches = [one.model_copy(update={"host": named}) for one in made.launch_values]
    return run(made.model_copy(update={"launch_values": launches}), name=f"{host}{gpus}" or "nowhere")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (("a", "01"), ("b", "89"), [("machine start", "a with 0 and 1", "b with 8 and 9")]),
        (("a", "01"), ("a", "23"), [("machine start", "a with 0 and 1", "a with 2 and 3")]),
        (("a", "01"), ("a", "0123"), []),
        (("", ""), ("b", "89"), []),
    ],
)
def test_another_machine_start_is_a_difference_of_its_own(
    before: tuple[str, str], after: tuple[str, str], told: list[tuple[str, str, str]]
) -> None:
    compared = compared_runs([replace(on(*before), path=Path("before")), replace(on(*after), path=Path("after"))])
    assert [(one.what, one.reference, one.here) for one in compared.differences] == told
    said = NOTHING_DIFFERS in change_section(compared).note, NOTHING_DIFFERS in render_changes(compared)
    assert said == (not told, not told)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("ok", "crashed", "dp4 eager: ok in A, crashed in B: signal 9"),
        ("crashed", "ok", "dp4 eager: crashed in A, ok in B: signal 9"),
        ("crashed", "oom", "dp4 eager: crashed in A, oom in B: 3 GiB more"),
    ],
)
def test_the_reason_is_that_of_the_run_in_which_the_cell_ended_badly(before: str, after: str, line: str) -> None:
    ends = {
        "ok": cell().model_copy(update={"reason": "one launch of 3 was invalid"}),
        "crashed": unmeasured_cell(Cell(layout=DP4), "crashed", "signal 9"),
        "oom": unmeasured_cell(Cell(layout=DP4), "oom", "3 GiB more"),
    }
    assert outcome_lines(compared_runs([run(ends[before]), run(ends[after])])) == [line]


def test_a_run_that_did_not_measure_the_cell_is_a_gap_in_its_history() -> None:
    unstable = cell(step_s=0.9).model_copy(update={"outcome": "unstable"})
    compared = compared_runs([run(cell()), run(unstable), run(cell())])
    history = change_section(compared).charts[-1].variants[0]
    (line,) = json.loads(history.figure.json)["data"]
    assert [step is None for step in line["y"]] == [False, True, False]
    assert [bar > 0 for bar in line["error_y"]["array"]] == [True, False, True]
    assert history.table is not None and history.table.rows[1][2].text == "unstable"
    assert json.loads(changes_json(compared))["cells"][0]["step_s"][1] is None


def test_another_machine_start_is_marked_in_the_history() -> None:
    places = ("a", "monday"), ("a", "tuesday"), ("b", "wednesday")
    runs = [replace(on(host, "01"), path=Path(name)) for host, name in places]
    history = change_section(compared_runs(runs)).charts[1].variants[0]
    assert [one["text"] for one in json.loads(history.figure.json)["layout"]["annotations"]] == ["machine start"]
    assert history.table is not None
    assert history.table.rows[2][-1].text == "machine start a with 0 and 1 \N{RIGHTWARDS ARROW} b with 0 and 1"


def refused() -> list[tuple[Sequence[RunData], str]]:
    other = run(cell(), name="b")
    of_protocol_2 = replace(other, view=other.view.model_copy(update={"protocol": 2}))
    return [
        ([run(cell(), name="a")], "a comparison needs two runs or more"),
        ([run(cell(), name="a"), run(cell(), name="a")], "a run is given twice"),
        ([run(cell(), name="a"), of_protocol_2], "'a' is of protocol 3, 'b' is of protocol 2"),
        ([run(cell(DP4)), run(cell(DP4_EP4))], "these runs have no cell in common"),
        ([run(), run()], "these runs have no cell in common"),
    ]


@pytest.mark.parametrize(("runs", "sentence"), refused())
def test_what_may_not_be_compared_is_refused_in_a_sentence(runs: Sequence[RunData], sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        compared_runs(runs)


def test_the_sentence_and_the_lines_below_it(compared: ComparedRuns) -> None:
    assert changes_sentence(compared) == (
        "1 cell is slower, dp4 eager (-20.0 % [-21.8, -18.1] tokens/s); dp4-ep4 eager ended differently."
    )
    assert outcome_lines(compared) == [
        "dp4-ep4 eager: ok in A, oom in C: rank 2: CUDA out of memory",
        "Only in A: dp2-tp2-ep4 eager.",
        "Only in C: dp4 compiled.",
    ]


def test_runs_without_any_number_are_said_to_have_none() -> None:
    lost = unmeasured_cell(Cell(layout=DP4), "crashed", "signal 9")
    nothing = compared_runs([run(lost), run(lost)])
    assert changes_sentence(nothing) == "No cell has a number in both runs."
    section = change_section(nothing)
    assert (section.charts, section.table, section.lead) == ((), None, "No cell has a number in both runs.")
    assert "step, ms" not in render_changes(nothing)


def test_the_table_has_every_run_and_a_tilde_for_no_difference() -> None:
    first, last = run(cell(DP4, 0.4), cell(DP4_EP4, 0.3)), run(cell(DP4, 0.5), cell(DP4_EP4, 0.3, sign=-1))
    rows = {row[0].text: [value.text for value in row[1:]] for row in changes_table(compared_runs([first, last])).rows}
    assert rows["dp4 eager"][0] == "400.2 [389.9, 410.3]" and rows["dp4 eager"][2].startswith("-20.0 % [")
    assert rows["dp4-ep4 eager"][2].startswith("~ +0.1 % [") and rows["dp4-ep4 eager"][5:] == ["3+3", "54.5", "+0.0 %"]
    assert [rows[name][3] for name in ("dp4 eager", "dp4-ep4 eager")] == ["0.100", "1.000"]


@pytest.mark.parametrize(
    ("launches", "after_s", "p"),
    [
        ((5, 5), 0.5, 2 / 252),  # of the 252 ways to choose 5 of 10, two keep the arms apart
        ((3, 3), 0.5, 2 / 20),
        ((1, 5), 0.5, 2 / 6),
        ((5, 0), 0.5, None),
    ],
)
def test_p_is_the_share_of_orders_that_part_the_arms_as_much(
    launches: tuple[int, int], after_s: float, p: float | None
) -> None:
    before = cell(DP4, 0.4, launches=5)
    after = cell(DP4, after_s, launches=5)
    cut = [
        one.model_copy(update={"launch_values": one.launch_values[:n]})
        for one, n in zip((before, after), launches, strict=True)
    ]
    (change,) = compared_runs([run(cut[0], name="a"), run(cut[1], name="b")]).changes
    assert change.p == (None if p is None else pytest.approx(p))
    assert json.loads(changes_json(compared_runs([run(cut[0]), run(cut[1])])))["cells"][0]["p"] == change.p


def test_the_terminal_prints_one_line_a_cell_and_what_differs(compared: ComparedRuns) -> None:
    text = render_changes(compared)
    assert text.startswith("A = monday, started 2026-11-22T10:15:00Z\nB = tuesday")
    assert changes_sentence(compared) in text
    assert all(len(line) <= 120 for line in text.splitlines() if line.startswith(("cell", "dp4 ", "dp4-ep4 eager  ")))
    assert "What else differs:" in text and "2.12.0+cu130" in text


def test_the_document_has_lists_by_run(compared: ComparedRuns) -> None:
    document = json.loads(changes_json(compared))
    cells = {one["name"]: one for one in document["cells"]}
    assert [one["run"] for one in document["runs"]] == ["monday", "tuesday", "wednesday"]
    assert cells["dp4-ep4 eager"]["outcomes"] == ["ok", "ok", "oom"]
    assert cells["dp4 compiled"]["step_s"][:2] == [None, None] and cells["dp4 compiled"]["verdict"] == "unknown"
    assert cells["dp4 eager"]["speed"]["value"] == pytest.approx(0.8, rel=1e-3)
    assert document["differences"] == [{"what": "torch", "reference": "2.11.0+cu130", "here": "2.12.0+cu130"}]


def test_three_runs_have_a_history_of_every_cell_that_two_of_them_measured(compared: ComparedRuns) -> None:
    change, history = change_section(compared).charts
    assert (change.key, history.key) == ("change", "history")
    assert [variant.label for variant in history.variants] == ["dp4 eager", "dp4-ep4 eager"]
    table = history.variants[0].table
    assert table is not None
    assert [row[-1].text for row in table.rows] == ["", "torch 2.11.0+cu130 \N{RIGHTWARDS ARROW} 2.12.0+cu130", ""]
    assert [row[0].text for row in table.rows] == ["A: monday", "B: tuesday", "C: wednesday"]


def test_hostile_names_reach_neither_terminal_nor_chart() -> None:
    section = change_section(compared_runs([run(cell(layout=DP4), name=HOSTILE), run(cell(layout=DP4), name="b")]))
    hostile = [cell().model_copy(update={"layout": HOSTILE})]
    compared = compared_runs([run(*hostile, name="a\x1b[31m"), run(*hostile, name="b")])
    assert not {"\x1b", "\u202e", "\u2028"} & set(render_changes(compared) + section.title)
    assert "<script>" not in change_section(compared).charts[0].variants[0].figure.json
