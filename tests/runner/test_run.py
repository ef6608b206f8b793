"""``run_scenario`` from a file to a run directory: whole, resumed, cut short."""

from pathlib import Path

import pytest

from epbench.errors import RunError, ScenarioError, UnfitMachineError
from epbench.records import MachineCheck
from epbench.runner.launch import RunOutcome
from epbench.runner.server import ForkServer
from epbench.runner.sitting import differences
from epbench.store import RunDirectory, open_run
from tests.report.sample import environment
from tests.runner.conftest import lend, steady
from tests.runner.runs import events, run, view_of, write_scenario


@pytest.fixture(autouse=True)
def _lent(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    steady(monkeypatch)
    lend(monkeypatch, server)


@pytest.fixture(scope="module")
def finished(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """One run of every kind of end that a run goes on after."""
    with pytest.MonkeyPatch.context() as patch:
        steady(patch)
        lend(patch, server)
        stacks = ["verifiable", "good", "raising_in_timing"]
        scenario = write_scenario(tmp_path_factory.mktemp("run"), stacks, canary=True)
        return scenario, run(scenario)


def test_every_cell_is_a_row(finished: tuple[Path, RunOutcome]) -> None:
    cells = view_of(finished[1]).cells
    assert [cell.outcome for cell in cells] == ["ok", "wrong", "crashed", "skipped", "skipped", "skipped"]
    _, wrong, crashed, *skipped = cells
    assert wrong.step_s is None
    assert wrong.reason is not None
    assert wrong.reason.startswith("differs from one rank: loss off by")
    assert crashed.reason == "rank 1 raised ValueError during timing: the planted mistake"
    assert crashed.launches == 1
    assert all(cell.reason for cell in skipped)
    assert [cell.expected for cell in cells] == [True, False, False, True, True, True]
    assert finished[1].exit_code == 5


def test_a_row_is_the_median_of_its_launches(finished: tuple[Path, RunOutcome]) -> None:
    cell = view_of(finished[1]).cells[0]
    # a launch that did not settle on a busy machine was made once more, and no value of it is in the row
    values = sorted(value.step_s or 0 for value in cell.launch_values if value.valid)
    assert len(values) == 3
    assert cell.launches == len(cell.launch_values)
    assert cell.step_s == values[1]
    assert cell.step_s_low is not None
    assert cell.step_s_high is not None
    assert cell.step_s_low <= cell.step_s <= cell.step_s_high
    assert cell.tokens_per_s_per_rank == pytest.approx(4 * 32 / values[1] / 2)
    assert cell.peak_allocated_bytes
    assert cell.verify.scope == "loss"
    assert len(cell.loss) == 5
    assert cell.mfu is None


def test_the_same_work_is_timed_before_and_after(finished: tuple[Path, RunOutcome]) -> None:
    record = view_of(finished[1]).run
    (sitting,) = record.sittings
    for canary in (sitting.canary_before, sitting.canary_after):
        assert canary is not None
        assert canary.outcome == "ok", canary.reason
        assert list(canary.seconds) == ["gemm", "all_reduce", "all_to_all"]
    assert record.warnings == differences(sitting.canary_before, sitting.canary_after)
    assert [event["when"] for event in events(finished[1].path, "canary")] == ["before", "after"]


def test_the_time_of_a_run_is_accounted_for(finished: tuple[Path, RunOutcome]) -> None:
    view = view_of(finished[1])
    spent_s = view.run.sittings[0].spent_s
    assert {"fork_server", "canary", "launches", "elsewhere"} <= set(spent_s)
    assert min(spent_s.values()) >= 0
    launched_s = sum(cell.elapsed_s or 0 for cell in view.cells)
    assert 0 < launched_s <= spent_s["launches"]
    assert {kind for cell in view.cells for kind in cell.phases_s} == {"verify", "measure"}


def test_resume_of_a_complete_run_launches_nothing(finished: tuple[Path, RunOutcome]) -> None:
    scenario, outcome = finished
    before, launches = view_of(outcome), len(events(outcome.path, "launch"))
    torn = outcome.path / "cells" / before.cells[0].cell / "result.json"
    torn.write_text(torn.read_text()[:100])
    again = run(scenario, resume=outcome.path)
    assert again == outcome
    assert view_of(again) == before
    assert len(events(outcome.path, "launch")) == launches


def test_resume_makes_only_what_is_missing(finished: tuple[Path, RunOutcome]) -> None:
    scenario, outcome = finished
    cell = outcome.path / "cells" / view_of(outcome).cells[0].cell
    launches = view_of(outcome).cells[0].launches
    (cell / "launch-2" / "launch.json").write_text("{")
    (cell / "result.json").unlink()
    made = len(events(outcome.path, "launch"))
    run(scenario, resume=outcome.path)
    assert len(events(outcome.path, "launch")) == made + 1
    assert view_of(outcome).cells[0].outcome == "ok"
    assert view_of(outcome).cells[0].launches == launches


def test_resume_in_another_environment_is_refused(finished: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    scenario, outcome = finished
    record = open_run(outcome.path).record
    other = record.environment.model_copy(update={"torch": "2.0", "digest": "other"})
    RunDirectory(tmp_path).write_run(record.model_copy(update={"environment": other}))
    with pytest.raises(RunError, match="differs from this machine in torch"):
        run(scenario, resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_spent_budget_leaves_cells_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(write_scenario(tmp_path, ["verifiable"]), budget_s=0.0)
    assert outcome.exit_code == 0
    assert [cell.outcome for cell in view_of(outcome).cells] == [None, "skipped"]
    assert not (outcome.path / "events.jsonl").exists()
    assert "the budget ends here" in capsys.readouterr().err


def test_a_machine_that_cannot_be_measured_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(_: Path) -> list[MachineCheck]:
        raise UnfitMachineError("this machine cannot be measured: mig: on")

    monkeypatch.setattr("epbench.runner.launch.choose_device", lambda *_: ("cuda", "2 GPUs"))
    monkeypatch.setattr("epbench.runner.launch.describe_environment", lambda *_, **__: environment())
    monkeypatch.setattr("epbench.runner.launch.check_before_run", unfit)
    with pytest.raises(UnfitMachineError, match="mig: on"):
        run(write_scenario(tmp_path, ["verifiable"]))
    assert [path.name for path in tmp_path.iterdir()] == ["scenario.toml"]


def test_only_selects_by_cell_id(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, ["verifiable"])
    outcome = run(scenario, only="dp2-eager-*", budget_s=0.0)
    assert len(view_of(outcome).cells) == 2
    with pytest.raises(ScenarioError, match=r"--only 'tp4-.' fits none of 1 cells"):
        run(scenario, only="tp4-*")
