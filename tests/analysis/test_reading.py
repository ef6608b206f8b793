"""Processes that read traces: the parent alone answers signals, and none of them outlives it.

The traces are named pipes, so a reader stands still until the test has done what it wants to do to it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from epbench.runner.processes import descendants
from tests.analysis.handmade import Trace, write
from tests.runner.runs import gone

DEADLINE_S = 60
PROGRAM = dedent("""
    import signal
    import sys
    from pathlib import Path
    from epbench.analysis import reading
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # as a run does: noted, and the work goes on
    reading.WORTH_PROCESSES_BYTES = -1
    print(len(reading.read_traces(Path(sys.argv[1]), steps=1)))
""")


@pytest.fixture
def traces(tmp_path: Path) -> dict[Path, bytes]:
    """Pipes in the place of the traces of two ranks, and what is to come out of them."""
    found = {}
    for path in sorted(write(tmp_path, Trace(0).step(0, 100), Trace(1).step(0, 100)).glob("rank-*.json.gz")):
        found[path] = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
    return found


@pytest.fixture
def parent(tmp_path: Path, traces: dict[Path, bytes]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


def test_a_closing_terminal_or_a_time_limit_loses_no_trace(
    traces: dict[Path, bytes], parent: subprocess.Popen[str]
) -> None:
    """Terminals and ``timeout`` send their signals to the whole process group."""
    pipes = {path: os.open(path, os.O_WRONLY) for path in traces}  # waits until both are being read
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.killpg(parent.pid, number)
    for path, pipe in pipes.items():
        os.write(pipe, traces[path])
        os.close(pipe)
    out, error = parent.communicate(timeout=DEADLINE_S)
    assert (out, error, parent.returncode) == ("2\n", "", 0)


def test_readers_end_with_a_parent_that_is_killed(traces: dict[Path, bytes], parent: subprocess.Popen[str]) -> None:
    pipes = [os.open(path, os.O_WRONLY) for path in traces]
    below = descendants(parent.pid)
    assert len(below) >= 2
    parent.kill()
    deadline = time.monotonic() + DEADLINE_S
    while not gone(below) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pipe in pipes:
        os.close(pipe)
    assert gone(below), "a process that reads traces outlived its parent"
