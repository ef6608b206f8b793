"""Scenarios of stacks that misbehave, run by the real runner in this process; and what a run left."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from epbench.records import CellResult, RunView, VerifyRecord
from epbench.runner.launch import RunOptions, RunOutcome, run_scenario
from epbench.runner.launched import LaunchRecord, protocol_digest, write_launch
from epbench.runner.processes import stat_of
from epbench.scenario import load_scenario
from epbench.store import RunDirectory, open_run

__all__ = ["cells_of", "events", "planned", "run", "view_of", "write_scenario"]


def write_scenario(
    directory: Path, stacks: Sequence[str], *, launches: int = 3, canary: bool = False, progress_timeout_s: float = 60
) -> Path:
    """A scenario of one layout that is legal and one that is not, for each stack of ``fake_stacks``."""
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
max_warmup_steps = 60
trace_steps = 1
verify = "loss"
canary = {str(canary).lower()}
progress_timeout_s = {progress_timeout_s}
[matrix]
layout = ["dp2", "dp2-ep3"]
train.stack = [{names}]
""")
    return path


def run(scenario: Path, **options: object) -> RunOutcome:
    return run_scenario(load_scenario(scenario), RunOptions(reports_dir=scenario.parent / "reports", **options))  # type: ignore[arg-type]


def planned(scenario: Path) -> RunDirectory:
    """A run in which nothing was launched, but every cell was verified, except those that fail in it."""
    found = open_run(run(scenario, budget_s=0.0).path)
    measure = load_scenario(scenario).measure
    for cell_id, entry in found.entries().items():
        if entry.skip_reason is None and "_in_verify" not in entry.cell.train.stack:
            record = LaunchRecord(
                cell=cell_id,
                kind="verify",
                index=0,
                order=0,
                environment=found.record.environment.digest,
                protocol=protocol_digest(measure),
                outcome="ok",
                reason=None,
                elapsed_s=1.0,
                verify=VerifyRecord(scope="loss", loss_error=0.0, step_error=0.0, tolerance=1e-5, passed=True),
            )
            write_launch(found.cell_path(cell_id) / "verify", record)
    return found


def view_of(outcome: RunOutcome) -> RunView:
    return open_run(outcome.path).view()


def cells_of(path: Path) -> dict[str, CellResult]:
    """The rows of a run that are not skipped, by the name of their stack."""
    cells = open_run(path).view().cells
    return {cell.train["stack"].rpartition(":")[2]: cell for cell in cells if cell.outcome != "skipped"}


def events(path: Path, kind: str) -> list[dict[str, object]]:
    lines = (path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def gone(process_ids: Iterable[int]) -> bool:
    """Whether all have ended; when an orphan's remains are taken away is init's affair."""
    states = [(stat_of(process_id) or "X")[0] for process_id in process_ids]
    return all(state in {"X", "Z"} for state in states)


def temporary_files(path: Path) -> list[str]:
    """What an unfinished write would have left."""
    return [name for _, _, names in os.walk(path) for name in names if name.startswith(".") and name != ".lock"]
