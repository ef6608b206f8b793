"""``run_scenario`` from a file to a run directory: whole, resumed, cut short, interrupted, orphaned."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from epbench.errors import RunError, ScenarioError, UnfitMachineError
from epbench.records import MachineCheck, RunView
from epbench.runner.launch import RunOptions, RunOutcome, run_scenario
from epbench.runner.processes import descendants
from epbench.runner.sitting import differences
from epbench.scenario import load_scenario
from epbench.store import open_run
from tests.report.sample import environment
from tests.runner.conftest import ROOT, variables_of_tests

DEADLINE_S = 150
PROGRAM = dedent("""
    import sys
    from pathlib import Path
    from epbench.runner.launch import RunOptions, run_scenario
    from epbench.scenario import load_scenario
    outcome = run_scenario(load_scenario(sys.argv[1]), RunOptions(reports_dir=Path(sys.argv[2])))
    sys.exit(outcome.exit_code)
""")


def write_scenario(directory: Path, stacks: list[str], *, launches: int = 3, canary: bool = False) -> Path:
    path = directory / "scenario.toml"
    names = ", ".join(f'"tests.runner.fake_stacks:{stack}"' for stack in stacks)
    path.write_text(f"""
schema = 1
name = "fakes"
world_size = 2
device = "cpu"
[train]
seed = 1
seq_len = 32
[measure]
launches = {launches}
min_steps = 4
max_steps = 4
max_warmup_steps = 8
trace_steps = 1
verify = "loss"
canary = {str(canary).lower()}
[matrix]
layout = ["dp2", "dp2-ep3"]
train.stack = [{names}]
""")
    return path


def steady(patch: pytest.MonkeyPatch) -> None:
    """Stacks of the tests can be imported, and editing a source file while tests run changes no environment."""
    for name, value in variables_of_tests().items():
        patch.setenv(name, value)
    patch.setattr("epbench.provenance.code_digest", lambda _: "code")


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    steady(monkeypatch)


def run(scenario: Path, **options: object) -> RunOutcome:
    return run_scenario(load_scenario(scenario), RunOptions(reports_dir=scenario.parent / "reports", **options))  # type: ignore[arg-type]


def rows(outcome: RunOutcome) -> RunView:
    return open_run(outcome.path).view()


def events(outcome: RunOutcome, kind: str) -> list[dict[str, object]]:
    lines = (outcome.path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """One run of every kind of end that a run goes on after."""
    with pytest.MonkeyPatch.context() as patch:
        steady(patch)
        before = descendants(os.getpid())
        stacks = ["verifiable", "good", "verifiable_once"]
        scenario = write_scenario(tmp_path_factory.mktemp("run"), stacks, canary=True)
        outcome = run(scenario)
        assert set(descendants(os.getpid())) <= set(before), "a run left processes behind"
        return scenario, outcome


def test_every_cell_is_a_row(finished: tuple[Path, RunOutcome]) -> None:
    cells = rows(finished[1]).cells
    assert [cell.outcome for cell in cells] == ["ok", "wrong", "crashed", "skipped", "skipped", "skipped"]
    _, wrong, crashed, *skipped = cells
    assert wrong.step_s is None
    assert wrong.reason is not None
    assert wrong.reason.startswith("differs from one rank: loss off by")
    assert crashed.reason is not None
    assert re.fullmatch(r"rank 1 raised ValueError during (warmup|timing): the planted mistake", crashed.reason)
    assert crashed.launches == 1
    assert all(cell.reason for cell in skipped)
    assert [cell.expected for cell in cells] == [True, False, False, True, True, True]
    assert finished[1].exit_code == 5


def test_a_row_is_the_median_of_its_launches(finished: tuple[Path, RunOutcome]) -> None:
    cell = rows(finished[1]).cells[0]
    values = sorted(value.step_s or 0 for value in cell.launch_values)
    assert len(values) == cell.launches == 3
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
    record = rows(finished[1]).run
    (sitting,) = record.sittings
    for canary in (sitting.canary_before, sitting.canary_after):
        assert canary is not None
        assert canary.outcome == "ok", canary.reason
        assert list(canary.seconds) == ["gemm", "all_reduce", "all_to_all"]
    assert record.warnings == differences(sitting.canary_before, sitting.canary_after)
    assert [event["when"] for event in events(finished[1], "canary")] == ["before", "after"]


def test_resume_of_a_complete_run_launches_nothing(finished: tuple[Path, RunOutcome]) -> None:
    scenario, outcome = finished
    before, launches = rows(outcome), len(events(outcome, "launch"))
    torn = outcome.path / "cells" / before.cells[0].cell / "result.json"
    torn.write_text(torn.read_text()[:100])
    again = run(scenario, resume=outcome.path)
    assert again == outcome
    assert rows(again) == before
    assert len(events(outcome, "launch")) == launches


def test_resume_makes_only_what_is_missing(finished: tuple[Path, RunOutcome]) -> None:
    scenario, outcome = finished
    cell = outcome.path / "cells" / rows(outcome).cells[0].cell
    (cell / "launch-2" / "launch.json").write_text("{")
    (cell / "result.json").unlink()
    made = len(events(outcome, "launch"))
    run(scenario, resume=outcome.path)
    assert len(events(outcome, "launch")) == made + 1
    assert rows(outcome).cells[0].outcome == "ok"
    assert rows(outcome).cells[0].launches == 3


def test_resume_in_another_environment_is_refused(finished: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    scenario, outcome = finished
    record = json.loads((outcome.path / "run.json").read_text())
    record["environment"] |= {"torch": "2.0", "digest": "other"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="differs from this machine in torch"):
        run(scenario, resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_spent_budget_leaves_cells_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(write_scenario(tmp_path, ["verifiable"]), budget_s=0.0)
    assert outcome.exit_code == 0
    assert [cell.outcome for cell in rows(outcome).cells] == [None, "skipped"]
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
    assert len(rows(outcome).cells) == 2
    with pytest.raises(ScenarioError, match=r"--only 'tp4-.' fits none of 1 cells"):
        run(scenario, only="tp4-*")


def poll(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)


def steps_on_all_ranks(reports: Path) -> bool:
    logs = list(reports.glob("*/cells/*/launch-0/rank-*.jsonl"))
    return len(logs) == 2 and all('"beat"' in log.read_text() for log in logs)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A parent whose launch hangs after some steps."""
    scenario = write_scenario(tmp_path, ["hanging"], launches=1)
    command = [sys.executable, "-c", PROGRAM, str(scenario), str(tmp_path / "reports")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as parent:
        try:
            poll(lambda: steps_on_all_ranks(tmp_path / "reports"), "the launch")
            yield parent
        finally:
            parent.kill()


def gone(process_ids: list[int]) -> bool:
    return not any(Path(f"/proc/{process_id}").exists() for process_id in process_ids)


def test_one_interrupt_ends_cleanly_and_says_how_to_go_on(hanging: subprocess.Popen[bytes], tmp_path: Path) -> None:
    below = descendants(hanging.pid)
    assert len(below) >= 4, "fork server, agent and two ranks"
    hanging.send_signal(signal.SIGINT)
    assert hanging.stderr is not None
    said = hanging.stderr.read().decode()
    assert hanging.wait(DEADLINE_S) == 130
    assert "--resume" in said
    assert "Traceback" not in said
    poll(lambda: gone(below), "the ranks' end")
    cells = open_run("latest", reports_dir=tmp_path / "reports").view().cells
    assert [cell.outcome for cell in cells] == [None, "skipped"]


def test_a_parent_that_dies_leaves_no_process(hanging: subprocess.Popen[bytes]) -> None:
    below = descendants(hanging.pid)
    assert len(below) >= 4, "fork server, agent and two ranks"
    hanging.kill()
    hanging.wait(DEADLINE_S)
    poll(lambda: gone(below), "the ranks' end")
