"""Behind a row: how to run its cell again and where its files are. Below the page: what a run depends on."""

from pathlib import Path

import pytest

from epbench.records import RunView
from epbench.report.data import RunData
from epbench.report.details import details_of
from epbench.report.provenance import Difference, provenance_diff, provenance_rows
from tests.report.sample import environment, run_record, sample_view, view_of
from tests.report.sample_data import sample_data

CELL = sample_view().cells[2]
SCENARIO = "scenarios/made-up.toml"


def row(name: str, run: RunData) -> str:
    return dict(details_of(run.view.cells[0], run).rows)[name]


@pytest.mark.parametrize(
    ("command", "again"),
    [
        ([SCENARIO], [SCENARIO]),
        ([SCENARIO, "--world", "8"], [SCENARIO, "--world", "8"]),
        ([SCENARIO, "--only", "*ep4*", "--device", "cuda"], [SCENARIO, "--device", "cuda"]),
        (["--only=*ep4*", SCENARIO, "--budget=20m", "--resume", "latest"], [SCENARIO]),
        (["somewhere/else.toml"], [SCENARIO]),
        (["--resume", SCENARIO], [SCENARIO]),
    ],
)
def test_the_command_runs_this_one_cell_as_the_scenario_was_run(command: list[str], again: list[str]) -> None:
    run = RunData(view_of([CELL], command=["epbench", "run", *command]))
    assert row("command", run) == " ".join(["epbench", "run", *again, "--only", CELL.cell])


def test_a_path_with_spaces_is_quoted() -> None:
    path = "my scenarios/a b.toml"
    run = RunData(view_of([CELL], scenario_path=path, command=["epbench", "run", path]))
    assert row("command", run).startswith("epbench run 'my scenarios/a b.toml' --only")


def test_the_files_of_a_cell_are_those_that_are_there(tmp_path: Path) -> None:
    place = tmp_path / "cells" / CELL.cell
    for name in ("launch-0/trace/rank-0.json.gz", "launch-0/stderr.log", "launch-0/agent.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    for name in ("result.json", "memory.json", "trace.json.gz"):
        (place / name).touch()
    there = RunData(view_of([CELL]), path=tmp_path)
    told = "launch-0/stderr.log, launch-0/trace/, memory.json, result.json and trace.json.gz"
    assert row("files", there) == f"cells/{CELL.cell}/ has {told}"
    assert row("files", RunData(view_of([CELL]), path=tmp_path / "gone")) == "\u2013"


def test_of_a_view_alone_the_files_are_what_its_records_came_from() -> None:
    run = sample_data()
    assert row("files", run).endswith("has result.json, memory.json and routing.json")
    not_run = run.view.cells[-1]
    assert dict(details_of(not_run, run).rows)["files"] == "\u2013"


def test_provenance_tells_each_sitting_and_machine_start() -> None:
    hosts = [
        {"names": ["node-a"], "gpu_uuids": ["aaaaaaaa-1", "bbbbbbbb-2"]},
        {"names": ["node-b"]},
        {"names": ["node-b"]},
    ]
    launches = [one.model_copy(update={"host": host}) for one, host in zip(CELL.launch_values, hosts, strict=True)]
    sittings = [
        {"started": "2026-11-22T10:15:00+00:00", "spent_s": {"fork_server": 5.0, "launches": 480.0}},
        {"started": "2026-11-22T14:00:00+00:00"},
    ]
    rows = dict(provenance_rows(view_of([CELL.model_copy(update={"launch_values": launches})], sittings=sittings)))
    assert rows["machine starts"] == "node-a with aaaaaaaa and bbbbbbbb: 1 launch; node-b: 2 launches"
    assert rows["sitting 1"].endswith("took 485 s: fork server 5.00 s, launches 480 s")
    assert "cut off or is still running" in rows["sitting 2"]
    assert rows["variables"] == "NCCL_NVLS_ENABLE=0"
    assert "machine starts" not in dict(provenance_rows(view_of([])))


def test_launches_of_fewer_ranks_are_counted_with_their_machine_start() -> None:
    hosts = [{"names": ["node-a"], "gpu_uuids": gpus} for gpus in (["a"], ["a", "b"], ["a"])]
    launches = [one.model_copy(update={"host": host}) for one, host in zip(CELL.launch_values, hosts, strict=True)]
    rows = dict(provenance_rows(view_of([CELL.model_copy(update={"launch_values": launches})])))
    assert rows["machine starts"] == "node-a with a and b: 3 launches"


def view_with(**changes: object) -> RunView:
    return view_of([], environment=environment().model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"torch": "2.12.0"}, [Difference("torch", "2.11.0+cu130", "2.12.0")]),
        ({"driver": None}, [Difference("driver", "570.1", "not set")]),
        ({"code": "a" * 64}, [Difference("epbench code", "0" * 12, "a" * 12)]),
        ({"code": "0" * 63 + "a"}, [Difference("epbench code", "0" * 64, "0" * 63 + "a")]),
        ({"device_memory_bytes": 80 * 2**30}, [Difference("device memory, GiB", "141", "80.0")]),
        (
            {"variables": {"NCCL_ALGO": "Ring"}},
            [
                Difference("variable NCCL_NVLS_ENABLE", "0", "not set"),
                Difference("variable NCCL_ALGO", "not set", "Ring"),
            ],
        ),
    ],
)
def test_every_difference_of_the_environment_is_named(changes: dict[str, object], found: list[Difference]) -> None:
    here = sorted(provenance_diff(view_with(**changes), view_with()), key=lambda one: one.reference, reverse=True)
    assert here == sorted(found, key=lambda one: one.reference, reverse=True)


def test_differences_of_protocol_and_scenario_are_named_and_times_are_not() -> None:
    other = run_record(protocol=2, scenario_digest="3" * 64, started="2027-01-01T00:00:00+00:00")
    view = RunView(run=other, protocol=other.protocol, environment=other.environment, cells=[])
    assert [one.what for one in provenance_diff(view, view_of([CELL]))] == ["protocol", "scenario digest"]


def test_names_that_differ_late_are_shown_whole() -> None:
    long = "x" * 100
    (found,) = provenance_diff(view_with(device_name=f"{long}1"), view_with(device_name=f"{long}2"))
    assert (found.reference, found.here) == (f"{long}2", f"{long}1")
