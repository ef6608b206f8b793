"""Whatever goes wrong in a launch, a run says what and where, leaves nothing behind, and goes on.

One table of faults, planted on rank 1 of two gloo ranks in several phases. All that end a cell are cells of one run,
so that each also shows that the next launch is not disturbed; what the machine is to blame for ends the run, and
``--resume`` completes it once the cause is gone.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from epbench import writing
from epbench.errors import UnfitMachineError
from epbench.report.build import write_report
from epbench.runner.launch import RunOutcome
from epbench.runner.processes import descendants
from epbench.runner.server import ForkServer
from epbench.runner.spec import LaunchSpec
from epbench.runner.telemetry import sampling
from epbench.runner.watch import LaunchEnd, watch_launch
from epbench.store import open_run
from tests.runner.conftest import ROOT, lend, steady, variables_of_tests
from tests.runner.fake_nvml import FakeNvml
from tests.runner.runs import cells_of, events, gone, planned, run, temporary_files, write_scenario


@dataclass(frozen=True)
class Fault:
    """A stack that misbehaves, and what is to become of its cell."""

    stack: str
    outcome: str
    reason: str  # all of it
    requested_bytes: int | None = None
    stack_of_rank_1: str | None = None  # what its stack dump holds


VICTIMS_END = "the process that ranks are forked from ended without a word"
QUICK = [
    Fault("raising_in_build", "crashed", "rank 1 raised ValueError during build: the planted mistake"),
    Fault(
        "raising_in_verify_layout",
        "crashed",
        "verification: rank 1 raised ValueError during verify_layout: the planted mistake",
    ),
    Fault("killed_in_warmup", "crashed", "rank 1 was killed by signal 9 during warmup"),
    Fault("exiting_in_memory", "crashed", "rank 1 exited with code 7 during memory"),
    Fault("killed_in_trace", "crashed", "rank 1 was killed by signal 9 during trace"),
    Fault("server_killed_in_timing", "crashed", VICTIMS_END),
    Fault(
        "out_of_memory_in_timing",
        "oom",
        "rank 1 ran out of memory during timing: asked for 2.50 GiB",
        requested_bytes=5 * 2**29,
    ),
    Fault(
        "out_of_host_memory_in_warmup",
        "oom",
        "rank 1 ran out of memory during warmup: asked for 4194304.00 GiB",
        requested_bytes=2**52,
    ),
]
SILENT_S = 3
HANGS = [
    Fault(
        "spinning_in_timing",
        "timeout",
        f"no sign of life from ranks? .*for {SILENT_S} s; .*rank 1 .*",
        stack_of_rank_1="in spin",
    ),
    Fault(
        "hanging_in_verify_layout",
        "timeout",
        f"verification: no sign of life from ranks? .*for {SILENT_S} s; .* in verify_layout.*",
        stack_of_rank_1="in wait_for_ever",
    ),
    Fault(
        "stopped_in_warmup",
        "timeout",
        f"no sign of life from ranks? .*for {SILENT_S} s; .*rank 1 was stopped by a signal, so it has no stack",
        stack_of_rank_1="was stopped by a signal",
    ),
]


def hurry(server: ForkServer, spec: LaunchSpec, **options: Any) -> LaunchEnd:
    measure = spec.measure.model_copy(update={"launch_timeout_s": 0.01})
    return watch_launch(server, spec.model_copy(update={"measure": measure}), **options)


def run_all(scenario: Path, server: ForkServer) -> RunOutcome:
    """A run of every cell; nothing of it is left below this process but the server that was lent.

    Its canaries are not given the time that they need.
    """
    with pytest.MonkeyPatch.context() as patch:
        steady(patch)
        lend(patch, server)
        patch.setattr("epbench.runner.sitting.watch_launch", hurry)
        before = set(descendants(os.getpid()))  # those of other tests: the server of gloo worlds and its tracker
        found = planned(scenario)
        outcome = run(scenario, resume=found.path)
        assert set(descendants(os.getpid())) <= {*before, server.process_id}
        return outcome


@pytest.fixture(scope="module")
def outcomes(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunOutcome]:
    """The run that each stack was a cell of."""
    found: dict[str, RunOutcome] = {}
    for faults, timeout_s in ((QUICK, 60), (HANGS, SILENT_S)):
        stacks = [fault.stack for fault in faults] + ["verifiable"] * (faults is QUICK)
        scenario = write_scenario(
            tmp_path_factory.mktemp("faults"),
            stacks,
            launches=1,
            canary=faults is QUICK,
            progress_timeout_s=timeout_s,
        )
        found |= dict.fromkeys(stacks, run_all(scenario, server))
    return found


@pytest.mark.parametrize("fault", QUICK + HANGS, ids=lambda fault: fault.stack)
def test_a_fault_is_a_row_with_its_reason(outcomes: dict[str, RunOutcome], fault: Fault) -> None:
    outcome = outcomes[fault.stack]
    cell = cells_of(outcome.path)[fault.stack]
    assert (cell.outcome, cell.requested_bytes) == (fault.outcome, fault.requested_bytes), cell.reason
    assert cell.reason is not None
    assert re.fullmatch(fault.reason, cell.reason), cell.reason
    if fault.stack_of_rank_1:
        (dump,) = (outcome.path / "cells" / cell.cell).glob("*/stack-1.txt")
        assert fault.stack_of_rank_1 in dump.read_text()
    assert gone(ranks_of(outcome.path / "cells" / cell.cell)), "a launch left ranks behind"
    assert temporary_files(outcome.path) == []
    assert outcome.exit_code == 5


def ranks_of(cell: Path) -> list[int]:
    """The processes that the ranks of all launches of a cell were."""
    lines = [json.loads(line) for log in cell.glob("*/rank-*.jsonl") for line in log.read_text().splitlines()]
    found = [line["process_id"] for line in lines if "process_id" in line]
    assert found, "ranks say who they are"
    return found


def test_the_launch_after_faults_is_not_disturbed(outcomes: dict[str, RunOutcome]) -> None:
    assert cells_of(outcomes["verifiable"].path)["verifiable"].outcome == "ok"


def test_a_canary_that_fails_is_a_warning(outcomes: dict[str, RunOutcome]) -> None:
    (sitting,) = open_run(outcomes["verifiable"].path).record.sittings
    for canary in (sitting.canary_before, sitting.canary_after):
        assert canary is not None
        assert canary.outcome == "timeout"
    first, second = sitting.warnings
    assert first.startswith("a canary timeout: not done after 0.01 s; ")
    assert second.startswith("a canary timeout: not done after 0.01 s; ")


@pytest.fixture
def lent(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a test use the fork server of all tests."""
    steady(monkeypatch)
    lend(monkeypatch, server)


@pytest.mark.usefixtures("lent")
def test_resume_makes_a_cell_again_whose_launch_is_deleted(
    outcomes: dict[str, RunOutcome], tmp_path: Path, cured: Callable[[], None]
) -> None:
    """A crash is a result and is kept; who has found the cause deletes it, and only it is made again."""
    outcome = outcomes["killed_in_warmup"]
    copy = shutil.copytree(outcome.path, tmp_path / "copy")
    before = cells_of(copy)
    shutil.rmtree(copy / "cells" / before["killed_in_warmup"].cell / "launch-0")
    made = len(events(copy, "launch"))
    cured()
    again = run(outcome.path.parents[1] / "scenario.toml", resume=copy)
    assert cells_of(again.path)["killed_in_warmup"].outcome == "ok"
    assert len(events(copy, "launch")) == made + 1
    rest = {name: cell for name, cell in cells_of(again.path).items() if name != "killed_in_warmup"}
    assert rest == {name: cell for name, cell in before.items() if name != "killed_in_warmup"}


@pytest.mark.usefixtures("lent")
@pytest.mark.parametrize(
    ("stack", "sentence"),
    [
        ("full_log_in_timing", "rank 1 could not write '.*rank-1.jsonl' during timing"),
        ("full_disk_in_trace", r"rank 1 could not write during trace: \[Errno 28\] No space left on device"),
        ("scribbling_in_warmup", "the log of rank 1 holds lines that no rank writes"),
    ],
)
def test_what_the_machine_is_to_blame_for_ends_the_run_and_not_the_cell(
    tmp_path: Path, cured: Callable[[], None], stack: str, sentence: str
) -> None:
    scenario = write_scenario(tmp_path, [stack], launches=1)
    started = planned(scenario)
    with pytest.raises(UnfitMachineError, match=f"{sentence}.*; .*go on with: epbench run .* --resume ") as raised:
        run(scenario, resume=started.path)
    assert raised.value.exit_code == 6
    assert cells_of(started.path)[stack].outcome is None
    cured()
    assert run(scenario, resume=started.path).exit_code == 0
    assert cells_of(started.path)[stack].outcome == "ok"


# ---------------------------------------------------------------- a disk that refuses the parent


ERRORS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "broken": errno.EIO, "forbidden": errno.EACCES}


def refuse(patch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Files called ``name`` cannot be written: where the disk is to be full, by a device that really is."""
    write = writing._write_whole

    def refused(path: Path, content: bytes) -> None:
        if not re.fullmatch(rf"\.{re.escape(name)}\.\d+", path.name):
            write(path, content)
        elif number == errno.ENOSPC:
            path.touch()
            write(Path("/dev/full"), content)
        else:
            raise OSError(number, os.strerror(number))

    patch.setattr("epbench.writing._write_whole", refused)


@pytest.mark.usefixtures("lent")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("cell.json", "broken"), ("result.json", "full"), ("spec.json", "quota"), ("launch.json", "full")],
)
def test_a_disk_that_refuses_a_file_is_a_sentence(
    outcomes: dict[str, RunOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """What was finished stays readable; when there is room again, ``--resume`` completes the run."""
    scenario = write_scenario(tmp_path, ["verifiable"], launches=1)
    started = planned(scenario)
    if name in {"cell.json", "result.json"}:  # nothing is to be launched: the launch of another run stands for it
        (cell,) = (started.path / "cells").glob("dp2-eager-*")
        shutil.copytree(outcomes["verifiable"].path / "cells" / cell.name / "launch-0", cell / "launch-0")
    with monkeypatch.context() as patch:
        refuse(patch, name, ERRORS[kind])
        said = re.escape(os.strerror(ERRORS[kind])) + (r" \(.* free, .* wanted\)" if kind != "broken" else "")
        again = rf"epbench run {scenario} --resume {started.path} --world 2 --device cpu --only 'dp2-\*' --launches 1"
        with pytest.raises(UnfitMachineError, match=rf"cannot write '.*/{name}': {said}; .*: {again}$") as raised:
            run(scenario, resume=started.path, only="dp2-*", launches=1, device="cpu", world=2)
    assert raised.value.exit_code == 6
    assert temporary_files(started.path) == []
    assert cells_of(started.path)["verifiable"].outcome is None
    assert run(scenario, resume=started.path).exit_code == 0
    assert cells_of(started.path)["verifiable"].outcome == "ok"


@pytest.mark.usefixtures("lent")
def test_events_go_to_a_full_disk_and_on_when_there_is_room(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, ["verifiable"], launches=1)
    started = planned(scenario)
    log = started.path / "events.jsonl"
    log.symlink_to("/dev/full")
    with pytest.raises(UnfitMachineError, match=r"cannot write '.*/events.jsonl': No space left"):
        run(scenario, resume=started.path, budget_s=0.0)
    log.unlink()
    log.write_text('{"event": "to')  # as far as it came
    run(scenario, resume=started.path, budget_s=0.0)
    torn, whole = log.read_text().splitlines()
    assert torn == '{"event": "to'
    assert json.loads(whole)["event"] == "resumed"


def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    """16 KiB hold a run's own files and not all of its cells'."""
    scenario, small = write_scenario(tmp_path, ["verifiable"]), tmp_path / "small"
    small.mkdir()
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o size=16k none "$1" && exec "$2" -m epbench run "$3" --reports-dir "$1"'
    if subprocess.run([*mount, 'mount -t tmpfs none "$1"', "sh", small], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system; the other tests of disks need none")
    done = subprocess.run(
        [*mount, script, "sh", small, sys.executable, scenario],
        env=variables_of_tests(), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 6
    assert re.fullmatch(
        r"epbench: cannot write '.*cell\.json': No space left on device \(0 B free, .* KiB wanted\); "
        r"what is finished is kept, go on with: epbench run .* --resume .*\n",
        done.stderr,
    )


@pytest.mark.usefixtures("lent")
@pytest.mark.parametrize("name", ["run.json", "scenario.toml"])
def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse(monkeypatch, name, errno.ENOSPC)
    with pytest.raises(UnfitMachineError, match=f"cannot write '.*/{name}': No space left"):
        run(write_scenario(tmp_path, ["verifiable"]))
    assert list((tmp_path / "reports").iterdir()) == []


def test_a_report_and_telemetry_are_refused_in_a_sentence(
    outcomes: dict[str, RunOutcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("report.html", "telemetry.jsonl"):
        refuse(monkeypatch, name, errno.ENOSPC)
    path = outcomes["verifiable"].path
    with pytest.raises(UnfitMachineError, match=r"report\.html': No space left .* epbench report "):
        write_report(path)
    with (
        pytest.raises(UnfitMachineError, match=r"telemetry\.jsonl': No space left"),
        sampling(FakeNvml(g=[{"power": 1}]), ["g"], tmp_path),
    ):
        pass
    assert temporary_files(path) == temporary_files(tmp_path) == []
