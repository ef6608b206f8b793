"""``epbench run``, ``show`` and ``report``: what they call, print and leave behind; no launch is made here."""

import json
from pathlib import Path

import pytest

from epbench.cells import digest
from epbench.records import EnvironmentRecord, RunRecord, RunView
from epbench.runner.launch import RunOptions, RunOutcome
from epbench.scenario import Scenario, load_scenario
from epbench.store import CellEntry, RunDirectory, create_run
from tests.command_line import epbench

SCENARIOS = Path(__file__).parent.parent / "scenarios"
QUICK = str(SCENARIOS / "quick.toml")


def planned_run(scenario: Scenario, reports_dir: Path) -> RunDirectory:
    """A run of ``scenario`` in which nothing has been measured yet."""
    environment = EnvironmentRecord(
        device="cpu",
        device_name="a processor",
        device_memory_bytes=None,
        world_size=4,
        driver=None,
        torch="2.13.0",
        cuda=None,
        nccl=None,
        python="3.11.7",
        variables={},
        code=digest("code"),
        digest=digest("environment"),
    )
    record = RunRecord(
        name=scenario.name,
        description=scenario.description,
        started="2026-11-22T10:15:00+00:00",
        scenario_path=str(scenario.path),
        scenario_digest=scenario.digest,
        device_reason="asked for",
        command=["epbench"],
        environment=environment,
    )
    run = create_run(reports_dir, record, scenario.text)
    for order, row in enumerate(scenario.planned):
        run.write_cell(CellEntry(order=order, cell=row.cell, skip_reason=row.skip_reason, varied=scenario.varied))
    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.chdir(tmp_path)
    return planned_run(load_scenario(QUICK), Path("reports"))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Scenario, RunOptions]]:
    """What the command line hands to the runner, which here plans the run and stops as if interrupted."""
    calls: list[tuple[Scenario, RunOptions]] = []

    def interrupted(scenario: Scenario, options: RunOptions) -> RunOutcome:
        calls.append((scenario, options))
        return RunOutcome(planned_run(scenario, options.reports_dir).path, 130)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("epbench.runner.launch.run_scenario", interrupted)
    return calls


def test_run_hands_on_its_options(asked: list[tuple[Scenario, RunOptions]]) -> None:
    epbench(
        *("run", QUICK, "--only", "dp4-*", "--launches", "5", "--budget", "20m", "--resume", "latest"),
        *("--device", "cpu", "--world", "8", "--reports-dir", "elsewhere"),
    )
    [(scenario, options)] = asked
    assert options == RunOptions(
        only="dp4-*",
        launches=5,
        budget_s=1200,
        resume="latest",
        reports_dir=Path("elsewhere"),
        device="cpu",
        world=8,
    )
    assert {row.world_size for row in scenario.planned} == {8}


def test_run_defaults_leave_everything_to_the_scenario(asked: list[tuple[Scenario, RunOptions]]) -> None:
    epbench("run", QUICK)
    [(scenario, options)] = asked
    assert options == RunOptions()
    assert scenario == load_scenario(QUICK)


def test_run_ends_with_the_report_and_the_runners_exit_code(asked: list[tuple[Scenario, RunOptions]]) -> None:
    result = epbench("run", QUICK)
    report = Path(result.stdout.splitlines()[-1])
    assert report.name == "report.html"
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert result.stderr == f"next: epbench show {report.parent}\n"
    assert result.exit_code == 130
    assert len(asked) == 1


def test_run_on_a_gpu_that_is_not_there_exits_6_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = epbench("run", QUICK, "--device", "cuda")
    assert result.exit_code == 6
    assert result.stdout == ""
    assert result.stderr.startswith("epbench: device cuda was asked for, but ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_run_of_no_cell_exits_2_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = epbench("run", QUICK, "--device", "cpu", "--only", "nothing-*", "--only", "nil")
    assert result.exit_code == 2
    assert "--only 'nothing-*,nil' fits none of 11 cells" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by", ["path", "name", "latest"])
def test_show_json_is_one_document_of_all_cells(run: RunDirectory, by: str) -> None:
    name = {"path": str(run.path), "name": run.path.name, "latest": "latest"}[by]
    result = epbench("show", name, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    view = RunView.model_validate(json.loads(result.stdout))
    assert view.run.name == "quick"
    assert [cell.cell for cell in view.cells] == [row.cell.id for row in load_scenario(QUICK).planned]
    assert {cell.outcome for cell in view.cells} == {None}


def test_show_prints_every_cell_then_the_path_and_says_what_is_next(run: RunDirectory) -> None:
    result = epbench("show", str(run.path))
    assert result.exit_code == 0
    assert sum(line.startswith("not run  ") for line in result.stdout.splitlines()) == 11
    assert result.stdout.splitlines()[-1] == str(run.path)
    assert result.stderr == f"next: epbench report {run.path}\n"


def test_show_phases_says_where_the_time_went(run: RunDirectory) -> None:
    result = epbench("show", str(run.path), "--phases")
    assert result.stdout == f"No launch of this run has its phases.\n{run.path}\n"


def test_report_writes_the_page_and_the_csv_where_told(run: RunDirectory) -> None:
    result = epbench("report", str(run.path), "--output", "page.html", "--csv", "cells.csv")
    assert result.exit_code == 0
    assert result.stdout == "page.html\n"
    assert result.stderr == f"wrote cells.csv\nnext: epbench show {run.path}\n"
    assert len(Path("cells.csv").read_text(encoding="utf-8").splitlines()) == 1 + 11
    assert Path("page.html").stat().st_size > 10_000
    assert not (run.path / "report.html").exists()


def test_report_into_a_missing_directory_is_one_sentence(run: RunDirectory) -> None:
    result = epbench("report", str(run.path), "--output", "none/page.html")
    assert result.exit_code == 2
    assert result.stderr == "epbench: cannot write 'none/page.html': No such file or directory\n"
