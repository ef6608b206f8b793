"""What a launch's record takes from its traces, whole ones and torn ones."""

import gzip
import json
from pathlib import Path

import pytest

from epbench.cells import Cell, MeasureSpec
from epbench.layout import Layout
from epbench.runner.spec import LaunchSpec
from epbench.runner.traced import TRACED_TIMES, traced
from tests.analysis.handmade import Trace, label, write


@pytest.fixture
def spec(tmp_path: Path) -> LaunchSpec:
    """A launch of two ranks whose traces are written."""
    cell = Cell(layout=Layout(dp_shard=2, ep=2))
    spec = LaunchSpec(
        cell=cell,
        kind="measure",
        index=0,
        order=0,
        device="cuda",
        measure=MeasureSpec(trace_steps=1),
        directory=tmp_path / "launch-0",
    )
    spec.trace_directory.mkdir(parents=True)
    traces = [Trace(rank).step(0, 50).annotate(label(), 5, 8) for rank in (0, 1)]
    for rank, trace in enumerate(traces):
        trace.kernel("gemm", 100, 110 + rank, launched=1).nccl(120, 130, launched=6)
    write(spec.trace_directory, *traces)
    return spec


def test_a_launch_takes_parts_kinds_collectives_and_a_merged_trace(spec: LaunchSpec) -> None:
    found = traced(spec)
    assert [row.purpose for row in found["collectives"]] == ["dispatch"]
    assert [parts.rank for parts in found["breakdown_per_rank"]] == [0, 1]
    assert found["breakdown"].rank == 1
    assert set(found["kernels_s"]) == {"gemm", "communication"}
    assert found["unclassified_share"] == 0
    assert found["kernel_count"] == 2  # a gemm and a collective
    merged = json.loads(gzip.decompress((spec.directory.parent / "trace.json.gz").read_bytes()))
    names = [event["args"]["name"] for event in merged["traceEvents"] if event["name"] == "process_name"]
    assert names == ["rank 0: dp0 ep0", "rank 1: dp1 ep1"]


def test_a_torn_trace_is_a_note_and_nothing_else(spec: LaunchSpec) -> None:
    torn = spec.trace_directory / "rank-1.json.gz"
    torn.write_bytes(torn.read_bytes()[:-20])
    found = traced(spec)
    assert set(found) == {"note"}
    assert "rank-1.json.gz: not a readable trace" in found["note"]
    assert not (spec.directory.parent / "trace.json.gz").exists()


@pytest.mark.parametrize(
    ("other", "note", "with_rows"),
    [
        (Trace(1).step(0, 50).kernel("gemm", 100, 111, launched=1), "1 of 2 ranks have such calls", False),
        (
            Trace(1, host="another").step(0, 50).annotate(label(), 5, 8).nccl(120, 130, launched=6),
            "ranks on 2 hosts share no clock",
            True,
        ),
    ],
    ids=["a rank without the call", "two hosts"],
)
def test_what_makes_traces_doubtful_is_the_launchs_note(
    spec: LaunchSpec, other: Trace, note: str, with_rows: bool
) -> None:
    write(spec.trace_directory, other)
    found = traced(spec)
    assert note in found["note"]
    assert ("collectives" in found) == with_rows


def test_a_later_launch_keeps_its_numbers_and_not_its_traces(spec: LaunchSpec) -> None:
    merged = spec.directory.parent / "trace.json.gz"
    times_s = [traced(spec)[name] for name in TRACED_TIMES]
    busy_s = pytest.approx(21e-6)  # a gemm of 11 and 10 of communication, nobody waits
    comm_s = pytest.approx(10e-6)  # nothing runs beside it, so all of it is exposed
    one_step_has_no_spread = None
    transfers_s = {"all_to_all/dispatch/forward/ep": comm_s}
    assert times_s == [busy_s, one_step_has_no_spread, busy_s, comm_s, transfers_s]
    merged.unlink()
    later = spec.model_copy(update={"detailed": False})
    assert later.traced
    assert not later.model_copy(update={"device": "cpu"}).traced
    found = traced(later)
    assert [found[name] for name in TRACED_TIMES] == times_s
    assert not later.trace_directory.exists()
    assert not merged.exists()
