"""Ctrl-C, SIGTERM, SIGHUP and SIGKILL of the parent: what is finished is kept, and no process is left.

Most are sent to this process, in which the run works with the fork server of all tests; three to a parent of its own,
whose whole process group gets them, as a terminal does it.
"""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from epbench.errors import RunError
from epbench.runner.processes import descendants
from epbench.runner.server import ForkServer
from epbench.store import open_run
from tests.runner.conftest import ROOT, lend, steady
from tests.runner.runs import cells_of, gone, planned, run, write_scenario

DEADLINE_S = 60
PROGRAM = dedent("""
    import sys
    from pathlib import Path
    import epbench.provenance
    from epbench.runner.launch import RunOptions, run_scenario
    from epbench.scenario import load_scenario
    epbench.provenance.code_digest = lambda _: "code"  # as in this process
    options = RunOptions(reports_dir=Path(sys.argv[2]), resume=sys.argv[3])
    sys.exit(run_scenario(load_scenario(sys.argv[1]), options).exit_code)
""")


def signalling(patch: pytest.MonkeyPatch, name: str, *numbers: signal.Signals) -> None:
    """The function at ``name`` first sends these signals to this process, when it is called for the first time."""
    module, _, function = name.rpartition(".")
    real = getattr(sys.modules[module], function)
    left = list(numbers)

    def first_signals(*args: Any, **options: Any) -> Any:
        while left:
            os.kill(os.getpid(), left.pop(0))
        return real(*args, **options)

    patch.setattr(name, first_signals)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("epbench.runner.sitting.watch_launch", signal.SIGINT),  # the canary before
        ("epbench.runner.session.write_launch", signal.SIGTERM),  # between two launches
        ("epbench.runner.launched.traced", signal.SIGHUP),  # while traces are read
    ],
)
def test_one_signal_keeps_what_is_finished(
    server: ForkServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        steady(patch)
        lend(patch, server)
        scenario = write_scenario(tmp_path, ["verifiable"], launches=2, canary="sitting" in where)
        started = planned(scenario)
        signalling(patch, where, number)
        outcome = run(scenario, resume=started.path)
    assert outcome.exit_code == 130
    assert f"interrupted; go on with: epbench run {scenario} --resume {started.path}" in capsys.readouterr().err
    assert cells_of(started.path)["verifiable"].outcome is None
    assert len(list(started.path.glob("cells/*/launch-*/launch.json"))) == ("sitting" not in where)
    assert signal.getsignal(number) == before


def test_a_launch_that_runs_is_ended_and_made_again(
    server: ForkServer, tmp_path: Path, cured: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch)
    lend(monkeypatch, server)
    scenario = write_scenario(tmp_path, ["interrupted_in_timing"], launches=1)
    started = planned(scenario)
    assert run(scenario, resume=started.path).exit_code == 130
    assert cells_of(started.path)["interrupted_in_timing"].outcome is None
    cured()
    with monkeypatch.context() as patch:  # now in the closing canary, after which there is nothing to do
        patch.setattr("epbench.runner.sitting.SittingLog.end", interrupt_and_return)
        assert run(scenario, resume=started.path).exit_code == 0
    assert cells_of(started.path)["interrupted_in_timing"].outcome == "ok"


def interrupt_and_return(*_: object) -> list[str]:
    os.kill(os.getpid(), signal.SIGINT)
    return []


@pytest.mark.parametrize("times", [1, 2])
def test_a_fork_server_that_still_imports_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    steady(monkeypatch)
    scenario = write_scenario(tmp_path, ["verifiable"], launches=1)
    started = planned(scenario)
    spawn, spawned = ForkServer._spawn, []

    def spawn_and_signal(server: ForkServer) -> None:
        spawn(server)
        spawned.append(server._process)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ForkServer, "_spawn", spawn_and_signal)
    assert run(scenario, resume=started.path).exit_code == 130
    (process,) = spawned
    assert process is not None
    assert process.returncode == -signal.SIGKILL, "it did not end by itself"


PRINTS_AFTER_THE_END = dedent("""
    import fcntl, termios, time
    from epbench.runner.interrupt import Interrupt
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
    with Interrupt() as interrupt:
        print("ready", flush=True)
        while not interrupt.seen:
            time.sleep(0.01)
        print("the command that goes on", flush=True)
""")


def test_a_terminal_that_closes_is_no_error() -> None:
    """What a real terminal does: SIGHUP, and from then on every write to it is refused."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PRINTS_AFTER_THE_END]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        assert os.read(ours, 5) == b"ready"
        os.close(ours)
        assert process.wait(DEADLINE_S) == 0


# ---------------------------------------------------------------- a parent of its own


@contextmanager
def parent_of_a_hang(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, list[int]]]:
    """A parent in whose launch both ranks made steps and one hangs; its scenario and the processes below it."""
    scenario = write_scenario(directory, ["hanging_in_timing"], launches=1)
    started = planned(scenario)
    command = [sys.executable, "-c", PROGRAM, str(scenario), str(directory / "reports"), str(started.path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as parent:
        try:
            poll(lambda: times_steps(started.path) or parent.poll() is not None, "the launch")
            below = descendants(parent.pid)
            assert len(below) >= 4, "fork server, agent and two ranks"
            yield parent, scenario, below
        finally:
            parent.kill()


def poll(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)


def times_steps(path: Path) -> bool:
    logs = list(path.glob("cells/*/launch-0/rank-*.jsonl"))
    return len(logs) == 2 and all('"phase": "timing"' in log.read_text() for log in logs)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    steady(monkeypatch)
    with parent_of_a_hang(tmp_path) as (parent, scenario, below):
        (path,) = (tmp_path / "reports").iterdir()
        with pytest.raises(RunError, match=f"is being run by process {parent.pid} on "):
            run(scenario, resume=path)
        for _ in range(times):
            os.killpg(parent.pid, signal.SIGINT)
        assert parent.stderr is not None
        said = parent.stderr.read().decode()
        assert parent.wait(DEADLINE_S) == 130
    assert gone(below), "the parent ends after its ranks"
    assert "--resume" in said
    assert "Traceback" not in said
    assert open_run(path).view().cells[0].outcome is None


def test_a_parent_that_is_killed_is_followed_at_once(
    server: ForkServer, tmp_path: Path, cured: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch)
    lend(monkeypatch, server)
    with parent_of_a_hang(tmp_path) as (parent, scenario, below):
        parent.kill()
        cured()
        (path,) = (tmp_path / "reports").iterdir()
        outcome = run(scenario, resume=path)
    poll(lambda: gone(below), "the end of the old ranks")
    assert outcome.exit_code == 0
    assert cells_of(path)["hanging_in_timing"].outcome == "ok"
