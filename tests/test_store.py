"""A run directory survives torn files, hostile names and schemas of another day."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.cells import Cell
from epbench.errors import RunError
from epbench.layout import Layout
from epbench.records import CellResult, EnvironmentRecord, LaunchValue, RunRecord
from epbench.runner.launched import LaunchRecord, find_launches, write_launch
from epbench.store import CellEntry, RunDirectory, create_run, open_run, result_of, write_atomically

MODES = ("eager", "compiled")
CELL = Cell(layout=Layout(dp_shard=2, ep=2))


def make_record(name: str = "demo", started: str = "2026-11-22T10:15:00+00:00") -> RunRecord:
    environment = EnvironmentRecord(
        device="cpu", device_name="cpu", device_memory_bytes=None, world_size=2, driver=None, torch="2.13.0",
        cuda=None, nccl=None, python="3.11", variables={}, code="c", digest="d",
    )  # fmt: skip
    return RunRecord(
        name=name, description="", started=started, scenario_path="demo.toml", scenario_digest="s",
        device_reason="asked for", command=["epbench"], environment=environment,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return create_run(tmp_path / "reports", make_record(), "schema = 1\n")


def finished(entry: CellEntry) -> CellResult:
    return result_of(entry).model_copy(update={"outcome": "ok", "reason": None, "step_s": 0.25})


def test_the_name_tells_time_and_scenario(run: RunDirectory) -> None:
    stamp, name, tail = run.path.name.split("-")
    assert (stamp, name, len(tail)) == ("20261122T101500Z", "demo", 4)
    assert (run.path / "scenario.toml").read_text() == "schema = 1\n"


def test_view_has_every_planned_cell_in_order(run: RunDirectory) -> None:
    entries = [
        CellEntry(order=0, cell=CELL),
        CellEntry(order=1, cell=CELL.model_copy(update={"mode": "compiled"})),
        CellEntry(order=2, cell=Cell(layout=Layout(dp_shard=3)), skip_reason="3 does not divide 4"),
    ]
    for entry in reversed(entries):
        run.write_cell(entry)
    run.write_result(finished(entries[1]))
    rows = run.view().cells
    assert [row.cell for row in rows] == [entry.cell.id for entry in entries]
    assert [(row.outcome, row.reason) for row in rows] == [
        (None, "not run yet"),
        ("ok", None),
        ("skipped", "3 does not divide 4"),
    ]


def test_a_run_of_a_version_whose_cells_had_fewer_settings_keeps_its_rows(run: RunDirectory) -> None:
    """There a cell's digest was of fewer keys, so its directories have ids that are computed no more."""
    measured, waiting = "dp2-ep2-eager-natural-0ld0ld", "dp2-ep2-compiled-natural-0ld0ld"
    for order, cell_id in enumerate((measured, waiting)):
        entry = CellEntry(order=order, cell=CELL).model_dump(mode="json")
        del entry["cell"]["train"]["packing"]
        write_atomically(run.cell_path(cell_id) / "cell.json", json.dumps(entry))
    run.write_result(finished(CellEntry(order=0, cell=CELL)).model_copy(update={"cell": measured}))
    rows = run.view().cells
    assert [(row.cell, row.outcome) for row in rows] == [(measured, "ok"), (waiting, None)]
    assert "packing" not in rows[1].train


@pytest.mark.parametrize("damage", ["torn", "foreign", "empty", "another cell's"])
def test_a_damaged_result_counts_as_absent(run: RunDirectory, damage: str) -> None:
    entry = CellEntry(order=0, cell=CELL)
    run.write_cell(entry)
    run.write_result(finished(entry))
    file = run.cell_path(CELL.id) / "result.json"
    whole = json.loads(file.read_text())
    text = {
        "torn": file.read_text()[:200],
        "foreign": json.dumps(whole | {"a_later_field": 1}),
        "empty": "",
        "another cell's": json.dumps(whole | {"cell": "dp9"}),
    }[damage]
    file.write_text(text)
    assert run.read_result(CELL.id) is None
    (row,) = run.view().cells
    assert (row.outcome, row.reason) == (None, "result.json is damaged")
    assert run.view().warnings == [f"1 file of cells cannot be read: cells/{CELL.id}/result.json"]


def test_a_cell_whose_plan_is_damaged_keeps_its_result(run: RunDirectory) -> None:
    entries = [CellEntry(order=order, cell=CELL.model_copy(update={"mode": mode})) for order, mode in enumerate(MODES)]
    for entry in entries:
        run.write_cell(entry)
        (run.cell_path(entry.cell.id) / "cell.json").write_text("{")
    run.write_result(finished(entries[0]))
    view = run.view()
    assert [(row.cell, row.outcome) for row in view.cells] == [(entries[0].cell.id, "ok")]
    assert view.warnings[0].startswith("2 files of cells cannot be read: cells/")
    assert not run.entries()


@pytest.mark.parametrize("hostile", ["..", ".", "../x", "a/b", "", "x" * 10_000, "<script>", "a\0b"])
def test_no_cell_lies_outside_the_run(run: RunDirectory, hostile: str) -> None:
    with pytest.raises(RunError, match="not the id of a cell"):
        run.cell_path(hostile)


@pytest.mark.parametrize("hostile", ["..", "../../etc/passwd", "a/b", "x" * 10_000, "<script>"])
def test_a_hostile_scenario_name_stays_inside(tmp_path: Path, hostile: str) -> None:
    made = create_run(tmp_path / "reports", make_record(hostile), "")
    assert made.path.parent == tmp_path / "reports"
    assert list(tmp_path.iterdir()) == [tmp_path / "reports"]


def test_open_by_path_name_part_and_latest(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    old = create_run(reports, make_record("old", "2026-01-01T00:00:00+00:00"), "")
    new = create_run(reports, make_record("new", "2026-01-02T00:00:00+00:00"), "")
    (reports / "samples").mkdir()
    assert open_run(old.path) == old
    assert open_run("latest", reports_dir=reports) == new
    assert open_run("-old-", reports_dir=reports) == old
    assert open_run(new.path.name, reports_dir=reports) == new


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "no run 'nothing'"),
        ("demo", "fits 2 runs"),
        ("x" * 10_000, r"no run 'x{80}\.\.\.'"),
        ("a\0b", "no run 'a.b'"),
        ("", "no run directory|no run ''"),
    ],
)
def test_a_run_that_is_not_there(tmp_path: Path, name: str, sentence: str) -> None:
    for _ in range(2):
        create_run(tmp_path, make_record(), "")
    with pytest.raises(RunError, match=sentence):
        open_run(name, reports_dir=tmp_path)


def test_latest_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run under"):
        open_run("latest", reports_dir=tmp_path / "reports")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "no readable run.json"),
        ('{"schema_version": 99}', "schema 99"),
        ('{"schema_version": 1}', "damaged at"),
        ('{"schema_version": "\\u001b[31m"}', r"is of schema '\\x1b\[31m'"),
    ],
)
def test_a_directory_of_another_kind(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=sentence):
        open_run(tmp_path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("")
    with pytest.raises(RunError, match="cannot make the run directory"):
        create_run(tmp_path / "reports", make_record(), "")


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "file.json", "{}")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.json"]


def test_events_are_lines(run: RunDirectory) -> None:
    run.event({"event": "one"})
    run.event({"event": "two"})
    lines = (run.path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["one", "two"]


def every_record(run: RunDirectory) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Each kind of record of a run: its file, and how it is read."""
    entry = CellEntry(order=0, cell=CELL)
    run.write_cell(entry)
    run.write_result(finished(entry))
    launch = run.cell_path(CELL.id) / "launch-0"
    record = LaunchRecord(
        cell=CELL.id, kind="measure", index=0, order=1, environment="d", protocol="p", outcome="ok", reason=None,
        elapsed_s=12.5, value=LaunchValue(index=0, order=1, step_s=0.25, steps=30),
    )  # fmt: skip
    write_launch(launch, record)
    return {
        "run.json": (run.path / "run.json", lambda: run.record),
        "cell.json": (run.cell_path(CELL.id) / "cell.json", lambda: run.entries().get(CELL.id)),
        "result.json": (run.cell_path(CELL.id) / "result.json", lambda: run.read_result(CELL.id)),
        "launch.json": (
            launch / "launch.json",
            lambda: next(iter(find_launches(launch.parent, environment="d", protocol="p")), None),
        ),
    }


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Callable[[], object]]]:
    return every_record(create_run(tmp_path_factory.mktemp("records"), make_record(), ""))


@pytest.mark.parametrize("name", ["run.json", "cell.json", "result.json", "launch.json"])
@settings(max_examples=60)
@given(st.data())
def test_a_torn_or_changed_record_is_absent_or_the_same(
    records: dict[str, tuple[Path, Callable[[], object]]], name: str, data: st.DataObject
) -> None:
    """Whatever prefix is left of a file, whatever byte changes: no other number is ever read from it."""
    file, read = records[name]
    whole, before = file.read_bytes(), read()
    assert before is not None
    place = data.draw(st.integers(0, len(whole) - 2), label="place")
    byte = data.draw(st.none() | st.integers(0, 255), label="byte, or torn")
    file.write_bytes(whole[:place] if byte is None else whole[:place] + bytes([byte]) + whole[place + 1 :])
    try:
        assert read() in (before, None)
    except RunError as error:  # of run.json only: without it there is no run
        assert name == "run.json"
        assert "no readable run.json" in str(error) or "is damaged" in str(error)
    finally:
        file.write_bytes(whole)


def test_a_record_without_a_digest_is_read(run: RunDirectory) -> None:
    """As those of versions that wrote none."""
    file = run.path / "run.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"}))
    assert run.record.name == "demo"
