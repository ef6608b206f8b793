"""The merged trace as Perfetto reads it: valid, one named process a rank, in order, and no larger than asked."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from epbench.analysis.merged import rank_name, write_merged
from epbench.analysis.reading import read_traces
from epbench.layout import Layout
from tests.analysis.handmade import AUTOGRAD, COMM_STREAM, Trace, label, write

NAMES = ("rank 0: ep0", "rank 1: ep1")


def merged(directory: Path, **options: int) -> dict[str, Any]:
    """What is written of the traces in a directory."""
    path = directory / "trace.json.gz"
    write_merged(read_traces(directory, steps=1), path, names=NAMES, **options)
    document: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return document


def on_cuda(rank: int) -> Trace:
    trace = Trace(rank, base_ns=10**18 + 1000 * rank).step(5000, 5300).annotate(label(), 5005, 5008)
    trace.annotate("FSDP::all_gather (layers.0)", 5010, 5020, AUTOGRAD).cpu("aten::mm", 5001, 5004)
    return trace.nccl(5140, 5180, launched=5006).kernel("gemm", 5100, 5150, launched=5001)


def on_cpu(rank: int) -> Trace:
    trace = Trace(rank).step(0, 300).annotate(label(), 20, 80).gloo("all_to_all", 30, 70)
    return trace.cpu("aten::linear", 100, 200).cpu("aten::mm", 110, 190)


@pytest.mark.parametrize("device", [on_cuda, on_cpu])
def test_a_merged_trace_is_what_perfetto_reads(tmp_path: Path, device: Any) -> None:
    events = merged(write(tmp_path, device(0), device(1)))["traceEvents"]
    assert {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"} == dict(enumerate(NAMES))
    lanes = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    for rank in (0, 1):
        timed = [event for event in events if event["pid"] == rank and event["ph"] != "M"]
        assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
        assert all(event["dur"] >= 0 for event in timed if event["ph"] == "X")
        assert {(event["pid"], event["tid"]) for event in timed} <= lanes
        assert sum(event["name"] == label() for event in timed) == 1


def test_ranks_stand_on_one_clock_and_arrows_lead_to_kernels(tmp_path: Path) -> None:
    document = merged(write(tmp_path, on_cuda(0), on_cuda(1)))
    events = document["traceEvents"]
    assert [e["ts"] for e in events if e["name"] == label()] == pytest.approx([5, 6])
    (kernel,) = [e for e in events if e["pid"] == 1 and e["name"].startswith("ncclDevKernel")]
    (start,) = [e for e in events if e["pid"] == 1 and e["ph"] == "s"]
    (end,) = [e for e in events if e["pid"] == 1 and e["ph"] == "f"]
    assert kernel["cat"] == "communication"
    assert (end["ts"], end["tid"], end["id"]) == (kernel["ts"], kernel["tid"], start["id"])
    assert start["ts"] == pytest.approx(7)
    lane = next(e for e in events if e["name"] == "thread_name" and e["pid"] == 1 and e["tid"] == kernel["tid"])
    assert lane["args"]["name"] == f"stream {COMM_STREAM}"
    assert document["otherData"] == {"operators_left_out": 0, "kernels_left_out": 0}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_what_comes_before_the_steps_begins_at_zero(tmp_path: Path, device: str) -> None:
    """Ranks line up while they are recorded; the arrow from the launch on rank 1 is the first of all."""

    def early(rank: int) -> Trace:
        trace = (on_cuda if device == "cuda" else on_cpu)(rank)
        if device == "cpu":
            return trace.gloo("all_reduce", -300, -20).cpu("aten::empty", -200, -190)
        return trace.nccl(4000, 4010, launched=3990 if rank else 3995)

    events = merged(write(tmp_path, early(0), early(1)))["traceEvents"]
    assert min(event["ts"] for event in events if "ts" in event) == 0
    (first, _) = (event["ts"] for event in events if event["name"] == "epbench:step#0")
    assert first == pytest.approx({"cuda": 1009, "cpu": 300}[device])


def test_a_large_trace_keeps_labels_collectives_and_the_longest_kernels(tmp_path: Path) -> None:
    traces = [on_cuda(0), on_cuda(1)]
    for trace in traces:
        for index in range(20):
            trace.kernel(f"kernel {index}", 5200 + 30 * index, 5201 + 31 * index, launched=5100)
    document = merged(write(tmp_path, *traces), max_events=20)
    names = Counter(event["name"] for event in document["traceEvents"] if event["ph"] == "X")
    assert names[label()] == names["epbench:step#0"] == 2
    assert names["ncclDevKernel_SendRecv"] == 2
    assert (names["kernel 19"], names["kernel 0"], names["aten::mm"]) == (2, 0, 0)
    assert sum(names.values()) == 20
    assert document["otherData"]["kernels_left_out"] == 2 * (22 - 7)
    assert document["otherData"]["operators_left_out"] == 2 * 4


@pytest.mark.parametrize(
    ("layout", "rank", "name"),
    [
        (Layout(), 0, "rank 0"),
        (Layout(dp_shard=4, ep=4), 3, "rank 3: dp3 ep3"),
        (Layout(dp_replicate=2, dp_shard=2, tp=2, ep=2, etp=2), 5, "rank 5: rep1 dp0 tp1 ep0 etp1"),
        (Layout(dp_shard=2, cp=2, tp=2, ep=4), 6, "rank 6: dp1 cp1 tp0 ep2"),
    ],
)
def test_a_rank_is_named_by_its_place(layout: Layout, rank: int, name: str) -> None:
    assert rank_name(rank, layout) == name
