"""Progress as a person sees it: plain lines in a file, and a few lines redrawn in a terminal of 80 or 40 columns."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from textwrap import dedent

import pytest

from epbench.runner.forecast import Left
from epbench.runner.progress import Outlook, make_progress, packed_lines

ROOT = Path(__file__).parents[2]
PROGRAM = dedent("""
    import os
    import sys
    from pathlib import Path
    from epbench.analysis.statistics import Interval
    from epbench.records import LaunchValue, VerifyRecord
    from epbench.runner.forecast import Left
    from epbench.runner.launched import LaunchRecord
    from epbench.runner.progress import Outlook, make_progress
    from epbench.runner.ranklog import RankState
    from epbench.cells import Cell, MeasureSpec
    from epbench.layout import Layout
    from epbench.runner.spec import LaunchSpec

    def record(kind, index, **fields):
        cell = "dp2-ep2-compiled-natural-ab12cd"
        known = {"cell": cell, "kind": kind, "index": index, "order": index, "environment": "e", "protocol": "p"}
        return LaunchRecord(**(known | {"outcome": "ok", "reason": None, "elapsed_s": 31.24} | fields))

    def timed(index):
        return record("measure", index, value=LaunchValue(index=index, order=index, step_s=0.2183))

    spec = LaunchSpec(
        cell=Cell(layout=Layout(dp_shard=2)), kind="measure", index=3, order=3, device="cpu", measure=MeasureSpec(),
        directory=Path("unused"),
    )
    three = Interval(0.2183, 0.2160, 0.2201)
    with make_progress() as progress:
        progress.say("reports/x: 2 of 2 cells to run on cpu (asked for)")
        progress.does("canary before the first launch")
        progress.starts(spec.model_copy(update={"kind": "verify"}), Outlook(0, 36))
        progress.ends(record("verify", 0, verify=VerifyRecord(passed=True)), Outlook(1, 35))
        progress.ends(timed(0), Outlook(2, 34, Left(80.0, at_most=True), Interval(0.2183), 1), "GPU ok")
        progress.ends(record("measure", 1, outcome="oom", reason="rank 1 ran out of memory"), Outlook(3, 33))
        progress.ends(timed(2), Outlook(12, 24, Left(720.0), three, 3), "SW power cap 34 %")
        progress.starts(spec, Outlook(12, 24, Left(720.0), three, 3))
        progress.moves(RankState(1, "timing", 17), "SW power cap 34 %")
        if len(sys.argv) > 1:
            os.write(2, b"\\a")  # past the redirection of standard error
            sys.stdin.read()
        progress.ends(timed(3), Outlook(36, 0, None, three, 4), "GPU ok")
    print("report.html")
""")
LINES = """\
reports/x: 2 of 2 cells to run on cpu (asked for)
[1/36] dp2-ep2-compiled-natural-ab12cd verify: agrees with one rank in 31.2 s
[2/36] dp2-ep2-compiled-natural-ab12cd measure 0: 218.30 ms/step in 31.2 s; GPU ok; ETA at most 80 s
[3/36] dp2-ep2-compiled-natural-ab12cd measure 1: oom, rank 1 ran out of memory
[12/36] dp2-ep2-compiled-natural-ab12cd measure 2: 218.30 ms/step in 31.2 s; \
218.3 ms/step [216.0, 220.1], 3 launches; SW power cap 34 %; ETA 12 min
[36/36] dp2-ep2-compiled-natural-ab12cd measure 3: 218.30 ms/step in 31.2 s; \
218.3 ms/step [216.0, 220.1], 4 launches; GPU ok
"""
WIDE = """\
[#######...............]  12/36  0:00  ETA 12 min
CELL  measure 3  rank 1: timing 17
218.3 ms/step [216.0, 220.1]  3 launches  SW power cap 34 %
"""
NARROW = """\
[####........]  12/36  0:00  ETA 12 min
CELL  measure 3
rank 1: timing 17
218.3 ms/step [216.0, 220.1]
3 launches  SW power cap 34 %
"""


def environment(**changes: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS"}}
    return known | {"TERM": "xterm-256color"} | changes


def screen(output: str, columns: int) -> list[str]:
    """What a terminal shows after this output: the few sequences that are used, and wrapping at its width."""
    rows, row, column = [""], 0, 0
    for found in re.finditer(r"\x1b\[([?0-9;]*)([A-Za-z])|\r|\n|([^\x1b\r\n])", output):
        if found[3]:
            if column == columns:
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row][:column].ljust(column) + found[3] + rows[row][column + 1 :]
            column += 1
        elif found[0] == "\r":
            column = 0
        elif found[0] == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif found[2] == "A":
            row -= int(found[1] or 1)
        elif found[2] == "K":
            rows[row] = ""
        else:
            assert found[2] in "mhl", f"this terminal does not know {found[0]!r}"
    return [line.rstrip() for line in rows]


class Terminal:
    """A real one of some width, with the program's standard error in it."""

    def __init__(self, columns: int, **changes: str) -> None:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._ours = ours
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "frozen"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=theirs, env=environment(**changes),
        )  # fmt: skip
        os.close(theirs)

    def read(self) -> tuple[str, str, bytes]:
        """What stood there while a launch ran, what was written by the end, and standard output."""
        frozen = self._until(b"\a")
        out, _ = self._process.communicate()
        whole = frozen + self._until(None)
        os.close(self._ours)
        return frozen, whole, out

    def _until(self, mark: bytes | None) -> str:
        """What arrives up to the mark, or to the end."""
        found = b""
        try:
            while mark is None or mark not in found:
                found += os.read(self._ours, 1 << 16)
        except OSError:  # how Linux says that nobody holds the other end
            pass
        return found.decode().replace("\a", "")


def test_a_file_gets_one_line_a_launch_and_nothing_is_drawn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == LINES
    assert done.stdout.splitlines()[-1] == "report.html"
    assert LINES.splitlines()[4] in (ROOT / "docs" / "overhead.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("columns", "drawn", "coloured"), [(80, WIDE, True), (40, NARROW, False)])
def test_a_terminal_shows_where_the_run_stands(columns: int, drawn: str, coloured: bool) -> None:
    frozen, whole, out = Terminal(columns, **({} if coloured else {"NO_COLOR": "1"})).read()
    cell = next(re.finditer(r"dp2-eager-natural-[0-9a-f]{6}", frozen))[0]
    shown = [re.sub(r"0:\d\d", "0:00", line) for line in screen(frozen, columns) if line]
    expected = [line.replace("CELL", cell) for line in drawn.splitlines()]
    assert shown[-len(expected) :] == expected
    after = [line for line in screen(whole, columns) if line]
    assert not any("ETA" in line or line.startswith("[") for line in after), "the bar is gone at the end"
    assert "".join(after).count("218.30") == 3
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", whole)) is coloured
    assert out.decode().splitlines()[-1] == "report.html"


def test_a_run_outlives_whoever_reads_its_lines() -> None:
    """Ctrl-C in ``epbench run SCENARIO 2>&1 | tee log`` ends tee as well."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment(), stdout=subprocess.PIPE, stderr=theirs, check=False
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stdout) == (0, b"report.html\n")


def test_a_terminal_that_cannot_be_redrawn_gets_plain_lines() -> None:
    _, dumb, _ = Terminal(200, TERM="dumb").read()
    assert dumb.replace("\r\n", "\n") == LINES


@pytest.mark.parametrize(
    ("outlook", "elapsed_s", "eta"),
    [
        (Outlook(3, 2, Left(100.0), running_s=40.0), 0.0, "ETA 2 min"),
        (Outlook(3, 2, Left(100.0), running_s=40.0), 30.0, "ETA 70 s"),
        (Outlook(3, 2, Left(100.0), running_s=40.0), 500.0, "ETA 60 s"),  # late, and the next one is still to come
        (Outlook(3, 2, Left(7200.0, at_most=True)), 500.0, "ETA at most 2 h 00 min"),
        (Outlook(3, 2), 10.0, ""),
    ],
)
def test_a_late_launch_takes_nothing_from_those_behind_it(outlook: Outlook, elapsed_s: float, eta: str) -> None:
    assert outlook.eta(elapsed_s) == eta


@pytest.mark.parametrize(
    ("pieces", "width", "lines"),
    [
        (["aa", "bb", "cc"], 10, ["aa  bb  cc"]),
        (["aa", "bb", "cc"], 9, ["aa  bb", "cc"]),
        (["aa", "", "b" * 12], 9, ["aa", "bbbbbb..."]),
        ([], 9, []),
    ],
)
def test_pieces_are_packed_into_lines(pieces: list[str], width: int, lines: list[str]) -> None:
    assert packed_lines(pieces, width) == lines


def test_progress_that_is_captured_is_plain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with make_progress() as progress:
        progress.say(f"{tmp_path}")
        progress.does("nothing that a file would want to know")
    assert capsys.readouterr().err == f"{tmp_path}\n"
