"""``epbench gate`` as a person types it: every exit code, every file, and one sentence for whatever cannot be done."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from epbench.ab_records import AbDirectory, AbRecord, ArmSpec
from epbench.cells import Cell
from epbench.gate_records import GateSpec, Verdict
from epbench.records import CellResult, EnvironmentRecord
from epbench.report.gate.judging import gate_ab, gate_baseline, gate_runs
from epbench.report.gate.section import verdict_section
from epbench.store import CellEntry, RunDirectory, create_run_at, open_run, read_record
from tests.command_line import epbench
from tests.nights import CELL, EP_CELL, failed_cell, night_cell, night_run, night_view
from tests.report.sample import TP2_EP4, environment

BASELINE = "made-up.baseline.json"
OUTPUTS = {"verdict.json", "junit.xml", "summary.md", "comment.md"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    yield


def made(night: int, *cells: CellResult, **fields: Any) -> Path:
    """A run directory of one night."""
    return night_run(Path("reports"), night_view(night, *cells, **fields)).path


def base() -> Path:
    return made(0, night_cell(0.4), night_cell(0.3, cell=EP_CELL))


def ep_cell() -> CellResult:
    return night_cell(0.3, cell=EP_CELL)


def lost() -> CellResult:
    return failed_cell("crashed", "signal 9", EP_CELL).model_copy(update={"expected": False})


def verdict_of(path: Path) -> Verdict:
    found = read_record(path / "verdict.json", Verdict)
    assert found is not None
    return found


def words(found: Verdict) -> dict[str, str]:
    return {cell.name: cell.word for cell in found.cells}


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("cells", "options", "code", "sentence"),
    [
        ([night_cell(0.4), ep_cell()], [], 0, "2 cells without change."),
        ([night_cell(0.42), ep_cell()], [], 3, "1 regression: dp4 eager device work +5.0 % [4.3, 5.7] (limit 2 %); 1"),
        ([night_cell(0.42), ep_cell()], ["--fail-on", "none"], 0, "1 regression: dp4 eager"),
        ([night_cell(0.4), lost()], [], 3, "1 broken: dp4-ep4 eager was ok, is"),
        (
            [night_cell(0.4), lost()],
            ["--fail-on", "inconclusive"],
            5,
            "1 broken: dp4-ep4 eager was ok, is crashed (signal 9); 1 cell without change.",
        ),
        ([night_cell(0.4, launches=2), ep_cell()], [], 4, "1 inconclusive; 1 cell without change."),
        ([night_cell(0.4, launches=2), ep_cell()], ["--fail-on", "regression"], 0, "1 inconclusive; 1 cell"),
        ([night_cell(0.36), ep_cell()], [], 0, "1 improvement: dp4 eager device work -10.0 % [-10.6, -9.4]"),
        ([night_cell(0.36), ep_cell()], ["--fail-on", "regression,improvement"], 3, "1 improvement: dp4 eager"),
        ([night_cell(0.4)], ["--fail-on", "missing"], 4, "1 missing; 1 cell without change."),
        ([night_cell(0.4, peak_allocated_bytes=99 * 2**30), ep_cell()], [], 3, "1 regression: dp4 eager peak memory"),
    ],
)
def test_a_run_against_a_run(cells: list[CellResult], options: list[str], code: int, sentence: str) -> None:
    before, head = base(), made(1, *cells)
    result = epbench("gate", head, "--baseline", before, *options)
    assert (result.exit_code, result.stdout.startswith(sentence)) == (code, True), result.output
    assert result.stdout.splitlines()[-1] == f"{head}/verdict.json"
    assert result.stderr.startswith("next: epbench ") and result.stderr.count("\n") == 1
    assert {path.name for path in head.iterdir()} >= OUTPUTS
    found = verdict_of(head)
    assert found.exit_code == code and f"{found.summary}." == result.stdout.splitlines()[0]


def test_json_is_the_verdict_and_output_is_where_it_goes() -> None:
    before, head = base(), made(1, night_cell(0.42), ep_cell())
    result = epbench("gate", head, "--baseline", before, "--json", "--output", "some/where")
    assert (result.exit_code, result.stderr) == (3, "")
    assert Verdict.model_validate_json(result.stdout) == verdict_of(Path("some/where"))
    assert {path.name for path in Path("some/where").iterdir()} == OUTPUTS
    assert not OUTPUTS & {path.name for path in head.iterdir()}


def test_the_summary_of_a_step_is_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "step.md")
    before, head = base(), made(1, night_cell(0.42), ep_cell())
    assert epbench("gate", head, "--baseline", before).exit_code == 3
    assert Path("step.md").read_text("utf-8") == (head / "summary.md").read_text("utf-8")
    os.truncate("step.md", 1 << 20)
    result = epbench("gate", head, "--baseline", before)
    assert result.exit_code == 3 and "warning: the summary of this step is full" in result.stderr


# ---------------------------------------------------------------- against a baseline


def accepted(nights: int) -> Path:
    """The file of a baseline of so many nights of both cells, beside the scenario of the runs."""
    file = Path("scenarios") / BASELINE
    file.parent.mkdir()
    for night in range(nights):
        noise = 1 + 0.001 * (-1) ** night
        run = made(night, night_cell(0.4 * noise), night_cell(0.3 * noise, cell=EP_CELL))
        assert epbench("baseline", "accept", run).exit_code == 0
    return file


def test_the_baseline_beside_the_scenario_is_the_default() -> None:
    file = accepted(5)
    slow = made(8, night_cell(0.42), ep_cell())
    for options in ([], ["--baseline", str(file)]):
        result = epbench("gate", slow, *options)
        assert result.exit_code == 3, result.output
        assert "1 regression: dp4 eager device work +4.9 %" in result.stdout
        assert (
            "base: made-up.baseline.json, 5 runs, the last started" in result.stdout and "5 nights+5" in result.stdout
        )
    quiet = made(9, night_cell(0.4), ep_cell())
    result = epbench("gate", quiet)
    assert (result.exit_code, result.stderr) == (0, f"next: epbench baseline accept {quiet}\n")
    fast = made(10, night_cell(0.36), ep_cell())
    result = epbench("gate", fast)
    assert (result.exit_code, result.stderr) == (0, f"next: epbench baseline accept {fast} --reset\n")


def test_an_acknowledged_regression_is_shown_and_fails_nothing() -> None:
    accepted(5)
    slow = made(8, night_cell(0.42), ep_cell())
    cell = verdict_of_gate(slow).cells[0]
    assert epbench("baseline", "ack", slow, cell.cell, "--reason", "issue 7").exit_code == 0
    result = epbench("gate", slow)
    assert result.exit_code == 0 and "acknowledged: issue 7" in result.stdout
    assert result.stdout.startswith("1 cell without change; 1 cell with a known regression.")


def verdict_of_gate(run: Path) -> Verdict:
    return Verdict.model_validate_json(epbench("gate", run, "--json").stdout)


def test_a_young_baseline_and_a_cell_it_lacks_are_new() -> None:
    accepted(2)
    found = verdict_of_gate(made(8, night_cell(0.8), ep_cell()))
    assert (words(found), found.exit_code) == ({"dp4 eager": "new", "dp4-ep4 eager": "new"}, 0)


def test_a_cell_that_only_the_baseline_has_is_missing() -> None:
    accepted(5)
    found = verdict_of_gate(made(8, night_cell(0.4)))
    assert words(found) == {"dp4 eager": "no change", "dp4-ep4 eager": "missing"}
    looked = gate_baseline(made(10, night_cell(0.4), gate=GateSpec(looks=(5, 10))), Path("scenarios") / BASELINE)
    assert words(looked) == words(found), "it has no launches that a look could wait for"
    newer = environment().model_copy(update={"driver": "580.2", "code": "9" * 64})
    found = verdict_of_gate(made(9, night_cell(0.4), machine=newer))
    assert [(one.what, one.base, one.head) for one in found.differences] == [
        ("driver", "570.1", "580.2"),
        ("epbench code", "0" * 12, "9" * 12),
    ]


def test_a_skipped_cell_is_not_new_each_night() -> None:
    accepted(5)
    skipped = failed_cell("skipped", "illegal", Cell(layout=TP2_EP4))
    found = verdict_of_gate(made(8, night_cell(0.4), ep_cell(), skipped))
    assert [(cell.word, cell.why) for cell in found.cells][2] == ("no change", "skipped in both")


def test_what_an_older_run_does_not_know_is_said_beside_a_regression() -> None:
    """A run without device work, kernel counts or transfers: the step is judged, and nothing is silently left out."""
    cell = night_cell(0.42, kernel_count=900.0)
    older = [launch.model_copy(update={"device_work_s": None, "transfers_s": {}}) for launch in cell.launch_values]
    before = made(0, night_cell(0.4).model_copy(update={"launch_values": older}))
    result = epbench("gate", made(1, cell), "--baseline", before)
    assert result.exit_code == 0 and "device work is not known in both arms, step is judged instead" in result.stdout
    result = epbench("gate", made(2, night_cell(0.5, kernel_count=900.0)), "--baseline", before)
    assert result.exit_code == 3 and "device work is not known in both arms, step is judged instead" in result.stdout
    assert "dp4 eager: kernels a step is not known in base" in result.stdout


# ---------------------------------------------------------------- on the page


def test_the_page_of_a_run_begins_with_its_verdict() -> None:
    head = made(1, night_cell(0.42), lost())
    assert verdict_section(head) is None
    epbench("gate", head, "--baseline", base())
    section = verdict_section(head)
    assert section is not None and section.table is not None
    assert section.title == "Gate: failed" and section.lead.startswith("1 broken: dp4-ep4 eager was ok, is crashed")
    assert [row[0].text for row in section.table.rows] == ["dp4-ep4 eager", "dp4 eager", "dp4 eager"]
    assert epbench("report", head).exit_code == 0
    page = (head / "report.html").read_text("utf-8")
    assert page.index("Gate: failed</h2>") < page.index("All cells</h2>")


def test_the_markdown_of_a_run_begins_with_its_verdict() -> None:
    head = made(1, night_cell(0.42))
    before = epbench("report", head, "--md").stdout
    epbench("gate", head, "--baseline", base())
    assert epbench("report", head, "--md").stdout == f"{(head / 'summary.md').read_text('utf-8')}\n{before}"


def test_a_verdict_that_is_older_than_launches_is_not_shown() -> None:
    head = made(1, night_cell(0.42, launches=4))
    epbench("gate", head, "--baseline", base())
    assert verdict_of(head).head.launches == 4
    open_run(head).write_result(night_cell(0.4))
    section = verdict_section(head)
    assert section is not None and (section.lead, section.table) == ("", None)
    assert section.missing == "verdict.json is of 4 launches and the run has 5: epbench gate judges them all."
    assert epbench("report", head, "--md").stdout.startswith(f"**{section.missing}**\n\n## ")


def test_a_damaged_verdict_is_said_on_the_page() -> None:
    head = made(1, night_cell(0.4))
    (head / "verdict.json").write_text("{")
    section = verdict_section(head)
    assert section is not None and "is damaged or of another version" in section.missing


# ---------------------------------------------------------------- what may not be compared


def other(**fields: Any) -> EnvironmentRecord:
    return environment().model_copy(update=fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"machine": other(device_name="NVIDIA H100")}, "device model: 'NVIDIA H200' there, 'NVIDIA H100' here"),
        ({"machine": environment("cpu")}, "device: 'cuda' there, 'cpu' here; device model: 'NVIDIA H200' there"),
        ({"protocol": 2}, "protocol: 3 there, 2 here"),
        ({"name": "other\x1b"}, "scenario: 'made-up-sizes' there, 'other\\x1b' here"),
    ],
)
def test_runs_of_two_kinds_are_not_compared(fields: dict[str, Any], sentence: str) -> None:
    result = epbench("gate", made(1, night_cell(0.4), **fields), "--baseline", base())
    assert (result.exit_code, result.stdout) == (4, "")
    assert sentence in result.stderr and result.stderr.count("\n") == 1


def test_runs_without_a_common_cell_are_not_compared() -> None:
    result = epbench("gate", made(1, night_cell(0.4)), "--baseline", made(0, ep_cell()))
    assert result.exit_code == 4 and "no cell is in both" in result.stderr


def test_what_else_differs_is_allowed_and_told() -> None:
    newer = other(torch="2.12.0+cu130", driver="580.2")
    result = epbench("gate", made(1, night_cell(0.4), machine=newer), "--baseline", made(0, night_cell(0.4)))
    assert result.exit_code == 0 and "What else differs:" in result.stdout
    assert [line.split() for line in result.stdout.splitlines() if "2.12.0" in line] == [
        ["torch", "2.11.0+cu130", "2.12.0+cu130"]
    ]


# ---------------------------------------------------------------- bad input


def damaged_baseline(kind: str) -> str:
    accepted(1)
    file = Path("scenarios") / BASELINE
    text = file.read_text("utf-8")
    file.write_text(
        text[: len(text) // 2] if kind == "torn" else text.replace('"schema_version": 1', '"schema_version": 9')
    )
    return str(file)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["none-such"], 2, "there is no run 'none-such'"),
        (
            ["HEAD"],
            2,
            "there is no baseline at 'scenarios/made-up.baseline.json': give --baseline FILE or RUN, or make",
        ),
        (["HEAD", "--baseline", "none-such"], 2, "there is no run 'none-such'"),
        (["HEAD", "--baseline", "x.baseline.json"], 2, "x.baseline.json: cannot be read: no such file or directory"),
        (["HEAD", "--baseline", "HEAD"], 2, "a run is compared with itself"),
        (["HEAD", "--baseline", "TORN"], 2, "is damaged"),
        (["HEAD", "--baseline", "SCHEMA"], 2, "is of schema 9"),
        (["HEAD", "--baseline", "BASE", "--fail-on", "slower"], 2, "--fail-on does not know 'slower'"),
        (
            ["HEAD", "--baseline", "BASE", "--output", "file"],
            2,
            "--output names a directory to write into, and 'file' is",
        ),
        (["HEAD", "--baseline", "BASE", "--output", "file/below"], 6, "cannot write 'file/below/verdict.json'"),
        (["HEAD", "--baseline", "BASE", "--output", "/proc/none"], 6, "cannot write '/proc/none/verdict.json'"),
        (["HEAD", "--baseline", "BASE", "--output", "x" * 300], 6, "File name too long"),
        (["HEAD", "--baseline", "\x1b" * 50], 2, "there is no run"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments: list[str], code: int, sentence: str) -> None:
    Path("file").write_text("")
    head = made(1, night_cell(0.4))
    names = {"HEAD": lambda: str(head), "BASE": lambda: str(base())}
    names |= {"TORN": lambda: damaged_baseline("torn"), "SCHEMA": lambda: damaged_baseline("schema")}
    result = epbench("gate", *(names.get(one, lambda one=one: one)() for one in arguments))
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert sentence in result.stderr and result.stderr.count("\n") == 1 and "\x1b" not in result.stderr


# ---------------------------------------------------------------- looks


def looked(base_launches: int, head_launches: int, head_s: float = 0.42) -> Verdict:
    spec = GateSpec(looks=(3, 5))
    runs = [
        made(0, night_cell(0.4, launches=base_launches), gate=spec),
        made(1, night_cell(head_s, launches=head_launches), gate=spec),
    ]
    return gate_runs(runs[1], runs[0])


@pytest.mark.parametrize(
    ("launches", "look", "counted", "word"),
    [
        ((5, 5), 2, (5, 5), "regression"),
        ((5, 4), 1, (3, 3), "regression"),
        ((3, 5), 1, (3, 3), "regression"),
        ((5, 2), 1, (3, 2), "inconclusive"),
    ],
)
def test_only_launches_of_a_look_count(
    launches: tuple[int, int], look: int, counted: tuple[int, int], word: str
) -> None:
    """5 % slower; between the looks those of the first count, before it none decides."""
    found = looked(*launches, head_s=0.44)
    primary = found.cells[0].metrics[0]
    assert (found.look, found.alpha) == (look, 0.005)
    assert (primary.base_launches, primary.head_launches) == counted
    assert (found.cells[0].word, primary.word) == (word, word)


def test_before_the_first_look_only_counters_decide() -> None:
    spec = GateSpec(looks=(4, 5))
    before = made(0, night_cell(0.4, launches=5), gate=spec)
    slow = gate_runs(made(1, night_cell(0.6, launches=3), gate=spec), before)
    assert (slow.cells[0].word, slow.cells[0].why) == ("inconclusive", "3 of the 4 launches of the first look")
    larger = night_cell(0.6, launches=3, peak_allocated_bytes=99 * 2**30)
    found = gate_runs(made(2, larger, gate=spec), before).cells[0]
    assert (found.word, found.why) == ("regression", "peak_allocated_bytes: 147.5 % more, where 1.0 % more is allowed")


def test_an_invalid_launch_and_its_repeat_are_one_round() -> None:
    """Four launches of three rounds reach the look of three, not that of four."""
    spec = GateSpec(looks=(4, 5))
    cell = night_cell(0.4, launches=4)
    first = cell.launch_values[0].model_copy(update={"valid": False, "invalid_reason": "hot"})
    cell = cell.model_copy(update={"launch_values": [first, *cell.launch_values[1:]]})
    found = gate_runs(made(1, cell, gate=spec), made(0, night_cell(0.4), gate=spec))
    assert found.cells[0].why == "3 of the 4 launches of the first look"


# ---------------------------------------------------------------- A/B


def arm(path: Path, cell: CellResult, **fields: Any) -> RunDirectory:
    view = night_view(0, cell, **fields)
    run = create_run_at(path, view.run, "")
    run.write_cell(CellEntry(order=0, cell=CELL))
    run.write_result(cell)
    return run


def ab_directory(head_s: float) -> Path:
    """Arms whose launches scatter alike: only pairs see a change of 2.5 %."""
    path = Path("reports/ab")
    one, two = (night_cell(seconds) for seconds in (0.4, head_s))
    arm(path / "base", one)
    arm(path / "head", two)
    record = AbRecord(
        scenario="made-up-sizes",
        base=ArmSpec(label="as is"),
        head=ArmSpec(label="HEAD~1\x1b"),
        pairs=((one.cell, two.cell),),
        looks_taken=1,
        launches=5,
    )
    AbDirectory(path).write(record)
    return path


def test_the_arms_of_an_ab_are_pairs() -> None:
    path = ab_directory(0.412)
    found = gate_ab(path)
    assert found.paired and words(found) == {"dp4 eager": "regression"}
    assert (found.base.label, found.head.path) == ("as is", "reports/ab/head")
    result = epbench("gate", path)
    assert result.exit_code == 3 and "launches of one round are pairs" in result.stdout and "\x1b" not in result.stdout
    assert result.stderr == "next: epbench report reports/ab/base reports/ab/head --compare\n"
    assert {file.name for file in path.iterdir()} >= OUTPUTS


def test_an_ab_has_its_own_base() -> None:
    result = epbench("gate", ab_directory(0.4), "--baseline", "x")
    assert result.exit_code == 2 and "an A/B has its own base" in result.stderr


def test_an_ab_with_a_torn_record_is_one_sentence() -> None:
    path = ab_directory(0.4)
    (path / "arms.json").write_text(json.dumps({"schema_version": 1}))
    result = epbench("gate", path)
    assert result.exit_code == 2 and "missing or damaged" in result.stderr and result.stderr.count("\n") == 1
