"""The sweep of a run: made once before its first launch, reused, and never a reason to stop."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import epbench
from epbench.cells import Cell, MeasureSpec
from epbench.cli import app
from epbench.comm_records import OPS, WAYS, CommPoint, CommRecord, Partition, Swept, axis_name
from epbench.layout import Layout
from epbench.memory_records import PeakMemory
from epbench.provenance import describe_environment
from epbench.records import PROTOCOL_VERSION, CollectiveRow, MemoryBytes, Spread
from epbench.runner.aggregate import cell_result
from epbench.runner.comm import CommLog, _traced, partitions_of, read_comm
from epbench.runner.launch import RunOptions, run_scenario
from epbench.runner.outcome import Verdict
from epbench.runner.server import ForkServer
from epbench.runner.sitting import SittingLog
from epbench.runner.spec import LaunchSpec
from epbench.scenario import load_scenario
from epbench.store import CellEntry, RunDirectory, open_run
from tests.analysis.handmade import Trace, label
from tests.runner.conftest import lend, steady
from tests.runner.test_schedule import timed, verified
from tests.test_cli_run import QUICK, planned_run

SCENARIO = """
schema = 1
name = "sweeping"
world_size = 2
device = "cpu"
[train]
seed = 1
seq_len = 32
stack = "tests.runner.fake_stacks:verifiable"
[measure]
launches = 1
min_steps = 4
max_steps = 4
max_warmup_steps = 8
trace_steps = 1
verify = "loss"
canary = false
comm = true
[matrix]
layout = ["dp2"]
"""
DP2, DP2_EP2, DP2_TP2 = Layout(dp_shard=2), Layout(dp_shard=2, ep=2), Layout(dp_shard=2, tp=2)


def events(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def swept(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    """One real run."""
    directory = tmp_path_factory.mktemp("sweep")
    scenario = directory / "scenario.toml"
    scenario.write_text(SCENARIO)
    with pytest.MonkeyPatch.context() as patch:
        steady(patch)
        lend(patch, server)
        yield open_run(run_scenario(load_scenario(scenario), RunOptions(reports_dir=directory)).path)


def test_a_run_sweeps_before_its_first_launch(swept: RunDirectory) -> None:
    made = [event.get("kind", event["event"]) for event in events(swept) if event["event"] in ("comm", "launch")]
    assert made == ["comm", "verify", "measure"]
    assert [cell.outcome for cell in swept.view().cells] == ["ok"]


def test_comm_json_holds_every_op_and_way_with_its_model(swept: RunDirectory) -> None:
    record = read_comm(swept)
    assert record is not None
    (one,) = record.swept
    assert one.partition == partitions_of([DP2])[0]
    assert {(point.op, point.way) for point in one.points} == {(op, way) for op in OPS for way in WAYS}
    assert [(fit.op, fit.way) for fit in one.fits] == [(op, way) for op in OPS for way in WAYS]
    assert (record.device, record.dtype, record.warnings) == ("cpu", "fp32", ())
    assert not (swept.path / "comm" / "2-ranks" / "trace").exists()
    frame = epbench.load(swept.path).comm
    assert set(frame["groups"]) == {"{0, 1}"}
    assert len(frame) == len(one.points)


def test_show_prints_it(swept: RunDirectory) -> None:
    result = CliRunner().invoke(app, ["show", str(swept.path), "--collectives"])
    assert result.exit_code == 0
    assert "1 group of 2 ranks, {0, 1}: world; fsdp of dp2" in result.stdout
    assert result.stdout.splitlines()[-1] == str(swept.path)


@pytest.mark.parametrize(("hosts", "said"), [(("a", "a"), []), (("a", "b"), ["ranks on 2 hosts share no clock"])])
def test_a_sweep_whose_transfers_are_lower_bounds_says_so(
    tmp_path: Path, hosts: tuple[str, str], said: list[str]
) -> None:
    """Rank 1 comes last and is done last, so both ways of telling the transfer give the same here."""
    partition = Partition(world_size=2, groups=((0, 1),), used_by={"ep": ("dp2-ep2",)})
    spec = LaunchSpec(
        cell=Cell(layout=DP2),
        kind="comm",
        index=0,
        order=0,
        device="cuda",
        measure=MeasureSpec(),
        partitions=(partition,),
        directory=tmp_path,
    )
    spec.trace_directory.mkdir(parents=True)
    for rank, host in enumerate(hosts):
        trace = Trace(rank, host=host).step(0, 50).annotate(label("sweep", axis=axis_name(0)), 5, 8)
        trace.nccl(100 + 20 * rank, 130 + 5 * rank, launched=6).write(spec.trace_directory)
    ((point,),), warnings = _traced(spec, steps=1)
    assert [warning.removeprefix("collectives alone: ").split(":")[0] for warning in warnings] == said
    assert point.seconds.median == pytest.approx(15e-6)
    assert not spec.trace_directory.exists()


def test_only_what_is_not_known_is_swept_again(swept: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = swept.record.environment
    log = CommLog(swept, MeasureSpec(), environment)
    asked: list[list[Partition]] = []

    def launch(missing: list[Partition], *_: object) -> list[str]:
        asked.append(missing)
        return []

    monkeypatch.setattr(log, "_launch", launch)
    log.sweep([DP2_EP2], None, lambda: False)  # type: ignore[arg-type]  # the same two ranks: no launch
    assert asked == []
    log.sweep([DP2, DP2_TP2], None, lambda: False)  # type: ignore[arg-type]
    assert asked == [partitions_of([DP2_TP2])]
    elsewhere = environment.model_copy(update={"digest": "another"})
    assert CommLog(swept, MeasureSpec(), elsewhere).record is None


def test_a_failed_sweep_is_a_warning_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned_run(load_scenario(QUICK), tmp_path)
    log = CommLog(run, MeasureSpec(), run.record.environment)
    end = SimpleNamespace(elapsed_s=1.0)
    monkeypatch.setattr("epbench.runner.comm.watch_launch", lambda *_, **__: end)
    monkeypatch.setattr("epbench.runner.comm.judge", lambda _: Verdict("crashed", "rank 1 went"))
    said = log.sweep([DP2], None, lambda: False)  # type: ignore[arg-type]
    assert said == ["no sweep of collectives on 2 ranks: it crashed: rank 1 went"]
    assert log.swept == ()
    assert read_comm(run) is None
    sitting = SittingLog(run, MeasureSpec(canary=False), run.record.environment)
    sitting.begin(None, lambda: False)  # type: ignore[arg-type]
    sitting.note(said)
    sitting.end(None, lambda: False)  # type: ignore[arg-type]
    assert run.record.warnings == said


@pytest.mark.parametrize(
    ("asked", "device", "wanted"),
    [("auto", "cuda", True), ("auto", "cpu", False), (True, "cpu", True), (False, "cuda", False)],
)
def test_who_sweeps_by_default(tmp_path: Path, asked: bool, device: str, wanted: bool) -> None:
    run = planned_run(load_scenario(QUICK), tmp_path)
    environment = run.record.environment.model_copy(update={"device": device})
    assert CommLog(run, MeasureSpec(comm=asked), environment).wanted is wanted


def test_a_cells_rows_stand_beside_the_sweep() -> None:
    row = CollectiveRow(
        op="all_gather", purpose="fsdp", phase="forward", axis="fsdp", calls_per_step=1, bytes=8192, bytes_mean=8192,
        bus_bytes=4096, transfer_s=4e-5, wait_s=0, p50_s=4e-5, p95_s=4e-5, algbw_bytes_per_s=2e8, busbw_bytes_per_s=1e8,
    )  # fmt: skip
    memory = PeakMemory(rank=0, peak_allocated_bytes=1, peak_reserved_bytes=None, memory_bytes=MemoryBytes())
    launch = timed(0).model_copy(update={"memory": memory, "collectives": [row]})
    spread = Spread(median=2e-5, low=1e-5, high=3e-5)
    points = tuple(
        CommPoint(op="all_gather", way="traced", bytes=size, bus_bytes=size / 2, seconds=spread, repetitions=5)
        for size in (4096, 8192, 16384)
    )
    known = [Swept(partition=partitions_of([DP2])[0], points=points)]
    environment = describe_environment("cpu", world_size=2, variables={})
    entry = CellEntry(order=0, cell=Cell(layout=DP2))
    for swept, expected in ((known, (pytest.approx(2e-5), pytest.approx(4096 / 1e-5))), ([], (None, None))):
        result = cell_result(entry, [verified(), launch], asked=1, environment=environment, swept=swept)
        (found,) = result.collectives
        assert (found.isolated_s, found.ceiling_busbw_bytes_per_s) == expected


# ---------------------------------------------------------------- epbench comm


@pytest.fixture
def _no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of its own, without a fork server: no launch of these tests is real."""
    monkeypatch.chdir(tmp_path)
    server = SimpleNamespace(start=lambda _: True)
    monkeypatch.setattr("epbench.runner.comm_command.ForkServer", lambda *_: nullcontext(server))


def comm(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["comm", *arguments])


@pytest.mark.usefixtures("_no_server")
def test_nothing_to_sweep_is_a_sentence(tmp_path: Path) -> None:
    result = comm(QUICK, "--device", "cpu", "--only", "nothing-*")
    assert result.exit_code == 2
    assert result.stderr == "epbench: nothing to sweep: no cell that --only 'nothing-*' fits has more than one rank\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_server")
def test_command_sweeps_every_partition_of_the_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch is a fake; its figures stand in the JSON, and the directory in the last line."""

    def only_run() -> Path:
        (path,) = Path("reports").iterdir()
        return path

    asked: list[Partition] = []

    def launched(log: CommLog, missing: list[Partition], *_: object) -> list[str]:
        asked.extend(missing)
        known = tuple(Swept(partition=one, points=()) for one in missing)
        log.record = CommRecord(environment="e", device="cpu", dtype="fp32", data="zeros", swept=known)
        return ["a link is slow"]

    monkeypatch.setattr(CommLog, "_launch", launched)
    result = comm(QUICK, "--device", "cpu", "--json")
    assert result.exit_code == 0
    assert {one.groups for one in asked} == {((0, 1, 2, 3),), ((0, 1), (2, 3)), ((0, 2), (1, 3))}
    assert CommRecord.model_validate_json(result.stdout).protocol == PROTOCOL_VERSION
    assert result.stderr.splitlines() == [
        f"{only_run()}: 3 sets of groups to sweep on cpu (asked for)",
        "warning: a link is slow",
        f"kept in {only_run()}",
        f"next: epbench run {QUICK}",
    ]
    shown = comm(QUICK, "--device", "cpu")
    path = Path(shown.stdout.splitlines()[-1])
    assert path.is_dir()
    assert open_run(path).record.name == "quick-comm"


@pytest.mark.usefixtures("_no_server")
def test_command_whose_launch_fails_exits_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommLog, "_launch", lambda *_: ["it crashed"])
    result = comm(QUICK, "--device", "cpu")
    assert result.exit_code == 5
    assert "warning: it crashed" in result.stderr


@pytest.mark.usefixtures("_no_server")
def test_command_that_is_interrupted_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(CommLog, "_launch", twice)
    result = comm(QUICK, "--device", "cpu")
    assert result.exit_code == 130
    assert result.stdout.startswith("Nothing was measured.\n")
