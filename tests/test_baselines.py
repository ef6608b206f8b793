"""Baselines: what accepting a run changes, what the file looks like, what it refuses, and the arms that it gives."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from epbench.analysis.arms import MIN_NIGHTS
from epbench.baselines import (
    Baseline,
    acknowledge,
    arms_for,
    missing_from,
    read_baseline,
    without_run,
    write_baseline,
)
from epbench.baselines.file import rendered
from epbench.baselines.records import KEPT_RUNS, Acknowledgement, torch_minor
from epbench.baselines.update import propose
from epbench.errors import NotComparableError, RunError
from epbench.gate_records import CellVerdict, MetricChange, Word
from epbench.records import PROTOCOL_VERSION, CellResult, RunView
from tests.command_line import epbench
from tests.nights import CELL, EP_CELL, failed_cell, night_cell, night_run, night_view
from tests.report.sample import HOSTILE, environment

NIGHTS = (0.2, 0.2004, 0.1996, 0.2002, 0.1998)  # device work, 0.16 % apart
TODAY = date(2026, 11, 23)


def grown(*views: RunView, baseline: Baseline | None = None, **options: Any) -> Baseline:
    """The baseline that these runs make, one after the other."""
    for view in views:
        baseline = propose(baseline, view, f"run-{view.run.started[:10]}", **options).baseline
    assert baseline is not None
    return baseline


def quiet(works: Sequence[float] = NIGHTS) -> list[RunView]:
    return [night_view(night, night_cell(work_s)) for night, work_s in enumerate(works)]


# ---------------------------------------------------------------- accepting

AFTER_FIVE: dict[str, tuple[CellResult, str, str]] = {
    "the same": (night_cell(0.2), "added", ""),
    "within the limit": (night_cell(0.202), "added", ""),
    "slower": (night_cell(0.22), "changed", "device_work_s +10.0 % (regression); step_s +10.0 % (regression)"),
    "faster": (night_cell(0.18), "changed", "device_work_s -10.0 % (improvement); step_s -10.0 % (improvement)"),
    "more memory": (
        night_cell(0.2, peak_allocated_bytes=90 * 2**30),
        "changed",
        "peak_allocated_bytes +",
    ),
    "broken": (failed_cell("oom", "rank 2: out of memory"), "changed", "was ok, is oom"),
    "unstable": (night_cell(0.2, outcome="unstable"), "left out", "it is unstable"),
    "interrupted": (failed_cell("interrupted", "Ctrl-C"), "left out", "it is interrupted"),
    "not run": (failed_cell(None, "not run yet"), "left out", "it is not run"),  # type: ignore[arg-type]
    "two launches": (night_cell(0.2, launches=2), "left out", "it has 2 valid launches, 3 are needed"),
}


@pytest.mark.parametrize(("cell", "action", "why"), AFTER_FIVE.values(), ids=AFTER_FIVE)
def test_what_becomes_of_a_cell_after_five_quiet_runs(cell: CellResult, action: str, why: str) -> None:
    before = grown(*quiet())
    proposal = propose(before, night_view(9, cell), "run-9")
    (found,) = proposal.cells
    assert found.action == action
    assert found.why.startswith(why)
    runs = proposal.baseline.entries[0].runs
    assert [run.run for run in runs[5:]] == (["run-9"] if action == "added" else [])


def test_a_level_that_moves_before_the_entry_has_settled_is_a_change_too() -> None:
    (found,) = propose(grown(*quiet(NIGHTS[:2])), night_view(9, night_cell(0.3)), "run-9").cells
    assert (found.action, found.runs) == ("changed", 2)


def test_reset_starts_a_level_and_drops_what_was_before() -> None:
    view = night_view(9, night_cell(0.22), night_cell(0.1, cell=EP_CELL))
    before = grown(*quiet())
    before = before.model_copy(
        update={
            "entries": [before.entries[0].model_copy(update={"acknowledged": [Acknowledgement(reason="x", given="")]})]
        }
    )
    proposal = propose(before, view, "run-9", reset=True, reason="new router")
    assert [one.action for one in proposal.cells] == ["new level", "new"]
    entry = proposal.baseline.by_key()[before.entries[0].key]
    (level,) = entry.levels
    assert ([run.run for run in entry.runs], entry.acknowledged) == (["run-9"], [])
    assert (level.run, level.reason, level.dropped) == ("run-9", "new router", 5)
    assert level.ratio == pytest.approx(1.1)


def test_a_cell_that_is_not_ok_is_kept_with_its_outcome_and_fixed_is_a_new_level() -> None:
    before = grown(night_view(0, failed_cell("oom", "too large")))
    assert (before.entries[0].outcome, before.entries[0].runs[0].timings) == ("oom", {})
    (found,) = propose(before, night_view(1, night_cell(0.2)), "run-1").cells
    assert (found.action, found.why) == ("changed", "was oom, is ok")


def test_the_last_runs_are_kept_and_a_run_is_taken_once() -> None:
    views = [night_view(night, night_cell(0.2)) for night in range(KEPT_RUNS + 3)]
    baseline = grown(*views)
    assert [run.started for run in baseline.entries[0].runs] == [view.run.started for view in views[3:]]
    again = propose(baseline, views[-1], f"run-{views[-1].run.started[:10]}")
    assert (again.cells[0].action, again.baseline) == ("there", baseline)


def test_only_takes_some_cells() -> None:
    view = night_view(0, night_cell(0.2), night_cell(0.1, cell=EP_CELL))
    assert [entry.cell for entry in grown(view, only="dp4-ep4-*").entries] == [EP_CELL.id]
    with pytest.raises(RunError, match="no cell of this run matches 'tp8'; known: "):
        propose(None, view, "run", only="tp8")


def test_machines_versions_and_protocols_have_entries_of_their_own_and_patches_have_not() -> None:
    machine = environment()
    others = [
        machine.model_copy(update={"torch": "2.11.1+cu130"}),
        machine.model_copy(update={"torch": "2.12.0+cu130"}),
        machine.model_copy(update={"device_name": "NVIDIA H100"}),
    ]
    views = [night_view(at, night_cell(0.2), machine=one) for at, one in enumerate([machine, *others])]
    views.append(night_view(9, night_cell(0.2), protocol=PROTOCOL_VERSION + 1))
    assert [len(entry.runs) for entry in grown(*views).entries] == [2, 1, 1, 1]


@pytest.mark.parametrize(("version", "minor"), [("2.11.0+cu130", "2.11"), ("2.12.0.dev20261101", "2.12"), ("", "")])
def test_minor_version(version: str, minor: str) -> None:
    assert torch_minor(version) == minor


def test_a_setting_that_an_older_version_did_not_know_orphans_nothing() -> None:
    new = night_cell(0.2)
    old = new.model_copy(update={"train": {key: new.train[key] for key in new.train if key != "overlap"}})
    assert [len(entry.runs) for entry in grown(night_view(0, old), night_view(1, new)).entries] == [2]


# ---------------------------------------------------------------- the file


def test_the_file_is_read_back_and_a_run_more_is_a_line_more(tmp_path: Path) -> None:
    views = quiet()
    path = tmp_path / "x.baseline.json"
    before, after = grown(*views[:4]), grown(*views)
    write_baseline(path, after)
    assert rendered(read_baseline(path)) == rendered(after)
    old, new = rendered(before).splitlines(), rendered(after).splitlines()
    assert len(new) == len(old) + 1
    added = [line for line in new if line not in old]
    assert len(added) == 2  # the line before it has a comma now
    assert json.loads(added[1])["timings"]["device_work_s"] == [0.1998, 0.1986012, 0.2009988, 0.2003994, 0.1992006]


def test_entries_are_in_one_order_whatever_came_first() -> None:
    cells = night_cell(0.2), night_cell(0.1, cell=EP_CELL)
    assert rendered(grown(night_view(0, *cells))) == rendered(grown(night_view(0, *reversed(cells))))


def damaged(text: str) -> dict[str, tuple[str, str]]:
    first = text.rindex("\n", 0, text.index('{"run"')) + 1
    entry = text[text.index("[", text.index('"entries"')) + 1 : text.rindex("]")].strip()
    return {
        "torn": (text[: len(text) // 2], "is damaged in line"),
        "empty": ("", "is damaged in line 1: it is no whole JSON; take it from git again"),
        "a list": ("[]", "is damaged: it is no JSON object"),
        "deep": ("[" * 100_000, "is damaged: it is nested too deep"),
        "schema": (
            text.replace('"schema_version": 1', '"schema_version": 7'),
            "is of schema 7; this epbench reads schema 1",
        ),
        "merge": (text[:first] + "<<<<<<< HEAD\n" + text[first:], "has marks of an unsettled merge in line"),
        "twice": (text.replace('"scenario"', '"scenario": "a", "scenario"'), "it has 'scenario' twice in one place"),
        "twins": (
            text.replace(entry, f"{entry}, {entry}"),
            "has the same cell twice for one machine, torch and protocol",
        ),
        "kind": (text.replace('"protocol": 3', '"protocol": "three"'), "is damaged at 'entries.0.protocol'"),
        "unknown": (text.replace('"protocol": 3', '"protocol": 3, "colour": 1'), "is damaged at 'entries.0.colour'"),
        "nan": (
            text.replace('"device_work_s": [0.2,', '"device_work_s": [NaN,'),
            "is damaged at 'entries.0.runs.0.timings",
        ),
        "no runs": (text[: text.index('"runs"')] + '"runs": []}]}', "is damaged at 'entries.0.runs'"),
    }


@pytest.mark.parametrize("what", damaged(rendered(grown(night_view(0, night_cell(0.2))))))
def test_a_file_that_cannot_be_trusted_is_refused_in_a_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.baseline.json"
    text, said = damaged(rendered(grown(night_view(0, night_cell(0.2)))))[what]
    path.write_text(text)
    with pytest.raises(RunError) as raised:
        read_baseline(path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- arms


def test_arms_are_of_the_runs_cells_and_settle_with_five_runs() -> None:
    view = night_view(9, night_cell(0.2), night_cell(0.1, cell=EP_CELL))
    arms = arms_for(grown(*quiet()), view)
    assert list(arms) == [CELL.id]
    arm = arms[CELL.id]
    assert (arm.outcome, arm.expected, arm.is_settling, len(arm.nights)) == ("ok", True, False, MIN_NIGHTS)
    assert sorted(arm.nights[0].timings["device_work_s"].values()) == pytest.approx(
        [0.1988, 0.1994, 0.2, 0.2006, 0.2012]
    )
    few = grown(*quiet(NIGHTS[:4]))
    assert arms_for(few, view)[CELL.id].is_settling


def test_a_run_is_not_judged_by_itself() -> None:
    views = quiet()
    (entry,) = without_run(grown(*views), views[1]).entries
    assert [run.started for run in entry.runs] == [view.run.started for view in views if view is not views[1]]
    assert without_run(grown(views[0]), views[0]).entries == []


def test_gate_leaves_the_run_out_of_its_baseline(nights: list[str]) -> None:
    for run in nights[:5]:
        epbench("baseline", "accept", run)
    said = [" ".join(epbench("gate", run).stdout.split()) for run in nights[4:]]
    assert ["base: made-up.baseline.json, 4 runs," in said[0], "5 runs," in said[1]] == [True, True]
    assert said[0].startswith("1 new.")


def test_cells_that_the_run_has_no_longer_are_told() -> None:
    baseline = grown(night_view(0, night_cell(0.2), night_cell(0.1, cell=EP_CELL)))
    ((cell, arm),) = missing_from(baseline, night_view(1, night_cell(0.2)))
    assert (cell.cell, cell.layout, cell.outcome, arm.outcome) == (EP_CELL.id, "dp4-ep4", None, "ok")


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "scenario": ({"name": "another"}, "scenario: 'made-up-sizes' there, 'another' here"),
    "GPU": (
        {"machine": environment().model_copy(update={"device_name": "NVIDIA H100"})},
        "GPU model: 'NVIDIA H200' there, 'NVIDIA H100' here",
    ),
    "protocol": ({"protocol": 99}, f"protocol: '{PROTOCOL_VERSION}' there, '99' here"),
}


@pytest.mark.parametrize(("fields", "said"), OTHERS.values(), ids=OTHERS)
def test_what_cannot_be_compared_is_refused_with_every_difference(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(NotComparableError) as raised:
        arms_for(grown(*quiet()), night_view(9, night_cell(0.2), **fields))
    assert said in str(raised.value)
    advice = "give --baseline FILE of the run's own" if "name" in fields else "epbench baseline accept RUN"
    assert str(raised.value).endswith(advice)


def test_another_minor_version_of_torch_is_new_and_no_mistake() -> None:
    machine = environment().model_copy(update={"torch": "2.12.0"})
    assert arms_for(grown(*quiet()), night_view(9, night_cell(0.2), machine=machine)) == {}


# ---------------------------------------------------------------- acknowledgements


def verdict(word: Word, *bad: str) -> CellVerdict:
    changes = [
        MetricChange(
            metric=name, kind="timing", gated=True, base=1, head=2, base_launches=5, head_launches=5, word="regression"
        )
        for name in bad
    ]
    names = {"cell": CELL.id, "name": "dp4", "layout": "dp4", "mode": "eager", "routing": "natural"}
    return CellVerdict(**names, base_outcome="ok", head_outcome="ok", word=word, metrics=changes)


def given(metric: str | None = None, until: str | None = None, reason: str = "issue 7") -> Acknowledgement:
    return Acknowledgement(reason=reason, given="2026-11-01", until=until, metric=metric)


WORK, STEP = "device_work_s", "step_s"
GIVEN: dict[str, tuple[list[Acknowledgement], CellVerdict, str | None, int]] = {
    "whole": ([given()], verdict("regression", WORK, STEP), "issue 7", 0),
    "broken": ([given()], verdict("broken"), "issue 7", 0),
    "last day": ([given(until="2026-11-23")], verdict("regression", WORK), "issue 7", 0),
    "expired": ([given(until="2026-11-22")], verdict("regression", WORK), None, 1),
    "expired and quiet": ([given(until="2026-11-22")], verdict("no change"), None, 0),
    "its metric": ([given(WORK)], verdict("regression", WORK), "issue 7", 0),
    "another metric": ([given(STEP)], verdict("regression", WORK), None, 0),
    "one of two": ([given(WORK)], verdict("regression", WORK, STEP), None, 0),
    "both": ([given(WORK), given(STEP, reason="8")], verdict("regression", WORK, STEP), "issue 7; 8", 0),
    "a metric of what broke": ([given(WORK)], verdict("broken"), None, 0),
    "nothing to acknowledge": ([given()], verdict("improvement"), None, 0),
}


@pytest.mark.parametrize(("known", "found", "reason", "told"), GIVEN.values(), ids=GIVEN)
def test_acknowledged(known: list[Acknowledgement], found: CellVerdict, reason: str | None, told: int) -> None:
    baseline = grown(*quiet())
    entries = [baseline.entries[0].model_copy(update={"acknowledged": known})]
    result = acknowledge(
        [found], baseline.model_copy(update={"entries": entries}), night_view(9, night_cell(0.2)), today=TODAY
    )
    assert result.cells == [found.model_copy(update={"acknowledged": reason})]
    assert len(result.warnings) == told
    assert all(line == f"the acknowledgement of {CELL.id} ended on 2026-11-22: issue 7" for line in result.warnings)


# ---------------------------------------------------------------- the commands


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Five quiet runs, and one that is slower; their scenario's directory is there."""
    monkeypatch.chdir(tmp_path)
    Path("scenarios").mkdir()
    views = quiet((*NIGHTS, 0.23))
    return [str(night_run(Path("reports"), view).path) for view in views]


FILE = "scenarios/made-up.baseline.json"


def test_accept_grows_the_baseline_beside_the_scenario(nights: list[str]) -> None:
    first = epbench("baseline", "accept", nights[0])
    assert (first.exit_code, first.stdout.splitlines()[-1]) == (0, FILE), first.output
    assert first.stdout.startswith(f"{FILE} (a new file): new key: 1\n")
    assert first.stderr == f"next: git add {FILE}\n"
    for run in nights[1:5]:
        assert epbench("baseline", "accept", run).exit_code == 0
    assert len(read_baseline(Path(FILE)).entries[0].runs) == 5


def test_propose_writes_nothing_and_output_writes_what_accept_would(nights: list[str], tmp_path: Path) -> None:
    result = epbench("baseline", "propose", nights[0])
    assert (result.exit_code, Path(FILE).exists()) == (0, False)
    assert "new key" in result.stdout
    assert epbench("baseline", "propose", nights[0], "--output", "new.json").stdout.splitlines()[-1] == "new.json"
    epbench("baseline", "accept", nights[0])
    assert Path("new.json").read_text() == Path(FILE).read_text()


def test_a_change_needs_reset(nights: list[str]) -> None:
    for run in nights[:5]:
        epbench("baseline", "accept", run)
    before = Path(FILE).read_text()
    shown = epbench("baseline", "propose", nights[5])
    assert "+15.0 % [" in shown.stdout
    assert "CHANGED, needs --reset" in " ".join(shown.stdout.split())
    assert shown.stderr == f"next: epbench baseline accept {nights[5]} --reset --reason TEXT\n"
    refused = epbench("baseline", "accept", nights[5])
    assert (refused.exit_code, Path(FILE).read_text()) == (2, before)
    assert refused.stderr == (
        f"epbench: nothing was accepted, for 1 cell changed ({CELL.id}: device_work_s +15.0 % (regression); step_s "
        "+15.0 % (regression)): start a new level with --reset --reason TEXT, or leave cells out with --only GLOB\n"
    )
    assert epbench("baseline", "accept", nights[5], "--reset", "--reason", "new\nrouter").exit_code == 0
    assert "made-up-sizes-" in epbench("baseline", "show", nights[5]).stdout
    assert "(+15.0 %): new router" in epbench("baseline", "show", FILE).stdout


def test_ack_is_kept_replaced_and_shown(nights: list[str]) -> None:
    epbench("baseline", "accept", nights[0])
    for reason in ("issue 7", "issue 8"):
        arguments = (
            "baseline",
            "ack",
            nights[0],
            "dp4-*",
            "--reason",
            reason,
            "--metric",
            "step_s",
            "--until",
            "2999-01-01",
        )
        result = epbench(*arguments)
        assert (result.exit_code, result.stdout) == (0, f"{FILE}\n"), result.output
    (entry,) = read_baseline(Path(FILE)).entries
    assert [(one.reason, one.metric, one.until) for one in entry.acknowledged] == [("issue 8", "step_s", "2999-01-01")]
    assert "step_s is acknowledged until 2999-01-01: issue 8" in epbench("baseline", "show", FILE).stdout


MISTAKES: dict[tuple[str, ...], str] = {
    ("show", "RUN"): f"there is no baseline '{FILE}'; make one with: epbench baseline accept RUN",
    ("show", "x.baseline.json"): "there is no baseline 'x.baseline.json'; make one with: ",
    ("ack", FILE, "dp4-*", "--reason", "x"): "there is no baseline",
    ("accept", "RUN", "--baseline", "no/where.json"): "there is no directory for 'no/where.json'",
    ("accept", "RUN", "--baseline", "scenarios"): "scenarios: is a directory, not a file",
    ("accept", "RUN", "--only", "tp*"): "no cell of this run matches 'tp*'",
    ("ack", "KNOWN", "tp8", "--reason", "x"): "'known.json' has no cell 'tp8'; known: ",
    ("ack", "KNOWN", "*", "--reason", " "): "--reason says why this regression is known",
    ("ack", "KNOWN", "*", "--reason", "x", "--until", "soon"): "--until is a day such as 2026-12-31, got 'soon'",
    ("ack", "KNOWN", "*", "--reason", "x", "--until", "2001-01-01"): "--until 2001-01-01 has passed: give today",
    ("ack", "KNOWN", "*", "--reason", "x", "--metric", "steps"): "there is no metric 'steps'; did you mean 'step_s'?",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], nights: list[str]) -> None:
    write_baseline(Path("known.json"), grown(*quiet()[:1]))
    given = [{"RUN": nights[0], "KNOWN": "known.json"}.get(word, word) for word in arguments]
    result = epbench("baseline", *given)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"epbench: {MISTAKES[arguments]}"), result.stderr
    assert result.stderr.count("\n") == 1


def test_names_of_foreign_origin_are_cleaned(tmp_path: Path) -> None:
    baseline = grown(*quiet())
    names = {"cell": "\x1b[31m" + HOSTILE + "x" * 10_000, "device_name": "\u202eH200"}
    entry = baseline.entries[0].model_copy(update={**names, "acknowledged": [given(reason="\u202e" + HOSTILE)]})
    path = tmp_path / "hostile.baseline.json"
    write_baseline(path, baseline.model_copy(update={"entries": [entry], "scenario": HOSTILE}))
    result = epbench("baseline", "show", str(path))
    assert result.exit_code == 0
    assert not {"\x1b", "\u202e", "\u2028"} & set(result.stdout)
    assert len(result.stdout) < 3000
