"""The whole way on real gloo ranks: labelled collectives under the profiler, a trace per rank, rows."""

import gzip
import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.profiler import record_function

from epbench.analysis.breakdown import breakdown
from epbench.analysis.collectives import collective_rows
from epbench.labels import CommLabel
from epbench.measure.capture import trace_pass
from epbench.stacks.protocol import Batch, World
from tests.measure.conftest import FakeStep, RunRanks

WIDTH = 1000
LATE_S, CALLS = 0.05, 5
STEPS = 3


class Exchange(torch.autograd.Function):
    """Uneven all-to-all: rank 0 sends 1 and 2 rows, rank 1 sends 3 and 4."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return exchange(x, "forward")

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return exchange(grad, "backward")


def exchange(x: torch.Tensor, phase: str) -> torch.Tensor:
    rank = dist.get_rank()
    sent, received = [1 + 2 * rank, 2 + 2 * rank], [1 + rank, 3 + rank]
    if phase == "backward":
        sent, received = received, sent
    output = x.new_empty(sum(received), WIDTH)
    label = CommLabel("all_to_all", "dispatch", phase, "ep", 0, 2, x.nbytes, output.nbytes)
    with record_function(label.text):
        dist.all_to_all_single(output, x.contiguous(), received, sent)
    return output


def traced(batch: Batch, directory: Path, steps: int, *, world: World) -> int:
    x = torch.randn(3 + 4 * world.rank, WIDTH, requires_grad=True)
    step = FakeStep(lambda: [Exchange.apply(x).square().sum().backward() for _ in range(2)])  # type: ignore[no-untyped-call]
    path = trace_pass(step, [batch], world, steps=steps, directory=directory)
    assert path == directory / f"rank-{world.rank}.json.gz"
    return step.runs


@pytest.fixture(scope="module")
def directory(run_ranks: RunRanks, batch: Batch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the traces of two ranks."""
    directory = tmp_path_factory.mktemp("capture") / "launch-0" / "trace"
    assert run_ranks(traced, 2, batch, directory, STEPS) == [1 + STEPS] * 2  # one discarded, three recorded
    return directory


def test_labelled_collectives_become_rows(directory: Path) -> None:
    rows = collective_rows(directory, steps=STEPS)
    assert sorted((row.op, row.purpose, row.phase, row.axis) for row in rows) == [
        ("all_to_all", "dispatch", "backward", "ep"),
        ("all_to_all", "dispatch", "forward", "ep"),
    ]
    for row in rows:
        assert row.calls_per_step == 2
        assert row.bytes == 7 * WIDTH * 4  # rank 1 sends 3 + 4 rows
        assert row.bytes_mean == (4 + 7) / 2 * WIDTH * 4  # rank 0 receives 1 + 3
        assert 0 < row.p50_s <= row.p95_s
        assert row.busbw_bytes_per_s == pytest.approx(row.algbw_bytes_per_s / 2)  # type: ignore[operator]
    found = breakdown(directory, steps=STEPS)
    assert found.device_work_s is None
    assert found.unclassified_share == 0
    for parts in found.per_rank:
        exclusive_s = (parts.compute, parts.overlapped, parts.exposed, parts.idle.host)
        assert sum(value for value in exclusive_s if value is not None) == pytest.approx(parts.step_s, rel=0.01)


def test_the_transfer_lies_within_the_annotations(directory: Path) -> None:
    annotations_s = []
    for rank in (0, 1):
        events = json.loads(gzip.decompress((directory / f"rank-{rank}.json.gz").read_bytes()))["traceEvents"]
        annotations_s += [e["dur"] * 1e-6 for e in events if e["name"].startswith("comm:") and e["ph"] == "X"]
        assert sum(e["name"].startswith("epbench:step#") for e in events if e["ph"] == "X") == STEPS
    assert len(annotations_s) == 2 * STEPS * 4
    for row in collective_rows(directory, steps=STEPS):
        assert row.p95_s <= max(annotations_s)
        assert row.transfer_s <= 2 * max(annotations_s)


def late(batch: Batch, directory: Path, *, world: World) -> None:
    """Rank 1 works for 50 ms before it joins each of a step's exchanges."""

    def work() -> None:
        for _ in range(CALLS):
            start_s = time.perf_counter()
            while world.rank == 1 and time.perf_counter() - start_s < LATE_S:
                sum(range(1000))
            exchange(torch.ones(3 + 4 * world.rank, WIDTH), "forward")

    trace_pass(FakeStep(work), [batch], world, steps=3, directory=directory)


def test_waiting_for_a_late_rank_is_not_transfer(run_ranks: RunRanks, batch: Batch, tmp_path: Path) -> None:
    run_ranks(late, 2, batch, tmp_path)
    (row,) = collective_rows(tmp_path, steps=3)
    assert row.wait_s > CALLS * LATE_S * 0.8  # rank 0 waits in each call
    assert 0 < row.p50_s < LATE_S * 0.2
    assert row.last_rank_share[1] > 0.9


def failing(*, world: World) -> None:
    if world.rank == 1:
        raise ValueError("planted on rank 1")


def test_a_failing_ranks_traceback_reaches_the_test(run_ranks: RunRanks) -> None:
    with pytest.raises(AssertionError, match="planted on rank 1"):
        run_ranks(failing, 2)
