"""`epbench baseline noise`: the table, the JSON, and runs that are no sample of one thing."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from epbench.analysis.noise import smallest_detectable_change
from epbench.cells import Cell
from epbench.cli import app
from epbench.errors import RunError
from epbench.gate_records import GateSpec
from epbench.records import LaunchValue, RunView
from epbench.report.noise_table import noise_json, render_noise
from epbench.report.text import UNKNOWN
from epbench.store import CellEntry, create_run
from tests.report.sample import DP4, measured_cell, run_record, view_of

CELL = Cell(layout=DP4)


def run_on(start: str, *steps_s: float, device_work_s: float | None = 0.29) -> RunView:
    launches = [
        LaunchValue(
            index=i, order=i, step_s=step_s, step_sd_s=0.004, device_work_s=device_work_s, host={"names": [start]}
        )
        for i, step_s in enumerate(steps_s)
    ]
    return view_of([measured_cell(CELL, 0.3).model_copy(update={"launch_values": launches})])


VIEWS = [run_on("a", 0.300, 0.303), run_on("b", 0.306, 0.309)]


def test_a_row_for_each_metric_over_all_runs() -> None:
    text = render_noise(VIEWS)
    step, work = (line for line in text.splitlines() if line.startswith(CELL.id[:12]))
    # sd of ln(0.303/0.300) / sqrt 2, pooled; starts 2 % apart
    assert [part.strip() for part in step.split("  ") if part][1:7] == [
        "step",
        "304.5 ms",
        "4",
        "2",
        "1.31 %",
        "0.70 %",
    ]
    assert "device work" in work
    assert "0.00 %" in work
    assert "95 % of nights" in text.replace("\n", " ")


def test_json_has_the_smallest_detectable_change_of_each_number_of_launches() -> None:
    found = json.loads(noise_json([*VIEWS, run_on("a", 0.301, 0.302)]))["cells"]
    assert [(row["metric"], row["degrees"]) for row in found] == [("step_s", 4), ("device_work_s", 4)]
    changes = found[0]["smallest_detectable_change"]
    assert list(changes) == ["3", "5", "8"]
    assert changes["3"] > changes["5"] > changes["8"] > 0


def test_two_pairs_of_launches_are_too_few_to_tell_what_can_be_found() -> None:
    assert json.loads(noise_json(VIEWS))["cells"][0]["smallest_detectable_change"] == dict.fromkeys("358")
    step = next(line for line in render_noise(VIEWS).splitlines() if line.startswith(CELL.id[:12]))
    assert step.split()[-3:] == [UNKNOWN] * 3
    assert "a dash where launches less starts are fewer than 4" in render_noise(VIEWS).replace("\n", " ")


def gated(views: list[RunView], spec: GateSpec | None = None) -> list[dict[str, Any]]:
    last = views[-1].model_copy(update={"run": views[-1].run.model_copy(update={"gate": spec})})
    found: list[dict[str, Any]] = json.loads(noise_json([*views[:-1], last], gate=True))["gate"]
    return found


def test_a_gate_finds_less_than_one_comparison() -> None:
    """0.289 s of device work without scatter: what is allowed. Steps of 304 ms that scatter by 0.6 %: more."""
    views = [*VIEWS, run_on("a", 0.301, 0.302)]
    work, step = gated(views)
    assert [(row["metric"], row["limit"], row["family"], row["alpha"]) for row in (work, step)] == [
        ("device_work_s", 0.02, 2, 0.01),
        ("step_s", 0.05, 2, 0.01),
    ]
    assert list(work["smallest_detectable_change"].values()) == pytest.approx([0.02] * 4)
    between = json.loads(noise_json(views))["cells"][0]["between"]
    assert list(step["smallest_detectable_change"]) == ["3", "5", "8", "10"]
    for launches, change in step["smallest_detectable_change"].items():
        expected = smallest_detectable_change(between, int(launches), alpha=0.005, limit=0.05)
        assert change == pytest.approx(expected)
    assert "gate" not in json.loads(noise_json(views))


def test_the_gate_is_that_of_the_scenario() -> None:
    views = [*VIEWS, run_on("a", 0.301, 0.302)]
    assert gated(views, GateSpec(cells="tp*")) == []
    (row,) = gated(views, GateSpec(primary="step_s", also={}, looks=(5, 10), absolute_floor_s=0.0303))
    assert (row["metric"], row["family"], row["alpha"]) == ("step_s", 1, 0.005)
    assert row["limit"] == pytest.approx(0.0303 / 0.3025)
    (row,) = gated([run_on("a", 0.30, 0.31, 0.30, 0.31, 0.30, device_work_s=None)])
    assert (row["metric"], row["limit"]) == ("step_s", 0.02), "a device that gives no device work"


def test_the_gate_is_a_table_of_its_own() -> None:
    text = render_noise([*VIEWS, run_on("a", 0.301, 0.302)], gate=True)
    plain = render_noise([*VIEWS, run_on("a", 0.301, 0.302)])
    assert text.startswith(plain)
    work, step = (line.split()[1:] for line in text.removeprefix(plain).splitlines() if line.startswith(CELL.id))
    assert work == ["device", "work", "2.00", "%", *["2.00", "%"] * 4]
    assert step[:3] == ["step", "5.00", "%"]
    assert "over all 2 rows together" in text


def test_runs_that_are_no_sample_of_one_thing_are_refused() -> None:
    other = VIEWS[1].model_copy(update={"protocol": 1})
    with pytest.raises(RunError, match="different protocols"):
        render_noise([VIEWS[0], other])
    with pytest.raises(RunError, match="no cell of these runs has two valid launches"):
        render_noise([run_on("a", 0.3), run_on("b", 0.3)])


def test_the_command_prints_the_table_and_the_path(tmp_path: Path) -> None:
    run = create_run(tmp_path, run_record(), "")
    run.write_cell(CellEntry(order=0, cell=CELL))
    run.write_result(VIEWS[0].cells[0])
    done = CliRunner().invoke(app, ["baseline", "noise", str(run.path)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(run.path)
    printed = CliRunner().invoke(app, ["baseline", "noise", str(run.path), "--json"])
    assert len(json.loads(printed.stdout)["cells"]) == 2
    judged = CliRunner().invoke(app, ["baseline", "noise", str(run.path), "--gate"])
    assert "gate finds at 10" in judged.stdout
    assert CliRunner().invoke(app, ["baseline", "noise", "no-such-run"]).exit_code == 2
