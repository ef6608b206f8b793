"""Collectives in hand-made traces where annotations, libraries and clocks make them hard to tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from epbench.analysis.collectives import clock_note, collective_rows, match, rows_of
from epbench.analysis.reading import read_traces
from epbench.errors import RunError
from epbench.records import CollectiveRow
from tests.analysis.handmade import AUTOGRAD, COMM_STREAM, US, Trace, label, write

ALIKE: dict[str, Any] = {"Group size": 2, "dtype": "BFloat16", "Process Group Ranks": "[0, 1]"}
IN_WORLD: dict[str, Any] = {"Process Group Description": "default_pg"}
IN_EP: dict[str, Any] = {"Process Group Description": "mesh_ep"}
Rows = dict[tuple[str, str, str], CollectiveRow]  # by op, purpose and phase


def rows(directory: Path, add: Callable[[Trace, int], object]) -> Rows:
    """Of two ranks with one step of 1000, each with what ``add`` gives it."""
    traces = [Trace(rank).step(0, 1000) for rank in (0, 1)]
    for trace in traces:
        add(trace, trace.rank)
    found = collective_rows(write(directory, *traces), steps=1)
    return {(row.op, row.purpose, row.phase): row for row in found}


DISPATCH, COMBINE = ("all_to_all", "dispatch", "forward"), ("all_to_all", "combine", "forward")


# ---------------------------------------------------------------- nesting


def test_two_collectives_in_one_annotation_are_two(tmp_path: Path) -> None:
    def add(trace: Trace, rank: int) -> None:
        trace.annotate("moe layer", 1, 60).annotate(label("dispatch"), 5, 10).annotate(label("combine"), 20, 30)
        trace.nccl(100 + rank, 110, launched=6).nccl(200, 230 + rank, launched=21)

    found = rows(tmp_path, add)
    assert set(found) == {DISPATCH, COMBINE}
    assert found[DISPATCH].transfer_s == pytest.approx(9 * US)
    assert found[COMBINE].transfer_s == pytest.approx(31 * US)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_label_within_a_label_is_the_same_collective(tmp_path: Path, device: str) -> None:
    def add(trace: Trace, rank: int) -> None:
        trace.annotate(label("dispatch"), 5, 60).annotate(label("combine"), 6, 50)
        if device == "cuda":
            trace.nccl(100, 130 + rank, launched=10)
        else:
            trace.gloo("all_to_all", 10, 40 + rank)

    found = rows(tmp_path, add)
    assert set(found) == {DISPATCH}
    assert found[DISPATCH].transfer_s == pytest.approx(31 * US)
    assert found[DISPATCH].calls_per_step == 1


def test_several_kernels_of_one_collective_are_one_call(tmp_path: Path) -> None:
    def add(trace: Trace, rank: int) -> None:
        trace.annotate(label(), 5, 20).nccl(100 + 10 * rank, 120, launched=6).nccl(125, 150 + rank, launched=8)

    row = rows(tmp_path, add)[DISPATCH]
    assert row.calls_per_step == 1
    assert row.transfer_s == pytest.approx((151 - 110) * US)
    assert row.wait_s == pytest.approx((50 - 41) * US)


@pytest.mark.parametrize("thread", [100, AUTOGRAD])
def test_fsdp_and_dispatch_in_a_recomputed_block_are_backward_and_recompute(tmp_path: Path, thread: int) -> None:
    """The block's weights are gathered for its backward; then checkpointing runs its forward, exchanges and all."""

    def add(trace: Trace, rank: int) -> None:
        trace.annotate("FSDP::pre_backward (layers.0)", 10, 90, thread)
        trace.annotate("FSDP::all_gather (layers.0)", 20, 30, thread)
        args: dict[str, Any] = {"Collective name": "_allgather_base", "In msg nelems": 512, "Out msg nelems": 1024}
        trace.nccl(
            200 + rank, 240, launched=25, tid=thread, **ALIKE, **args, **{"Process Group Description": "default_pg"}
        )
        trace.annotate("checkpoint", 100, 200, thread).annotate(label(phase="recompute"), 110, 120, thread)
        trace.nccl(300, 320 + rank, launched=115, tid=thread)

    found = rows(tmp_path, add)
    gather, dispatch = ("all_gather", "fsdp", "backward"), ("all_to_all", "dispatch", "recompute")
    assert set(found) == {gather, dispatch}
    assert (found[gather].axis, found[gather].bytes) == ("fsdp", 2048)
    assert found[gather].transfer_s == pytest.approx(39 * US)
    assert found[dispatch].transfer_s == pytest.approx(21 * US)


@pytest.mark.parametrize("module", ["layers.0", "layers.0.moe.experts"])
@pytest.mark.parametrize("group", ["default_pg", "mesh_dp_replicate"])
def test_replicas_are_reduced_over_their_own_axis(tmp_path: Path, group: str, module: str) -> None:
    """Also where they are the whole world, whose group has no name of the axis."""

    def add(trace: Trace, rank: int) -> None:
        trace.annotate(f"FSDP::post_backward_reduce ({module})", 20, 30, AUTOGRAD)
        args: dict[str, Any] = {"Collective name": "allreduce", "In msg nelems": 1024, "Out msg nelems": 1024}
        about: dict[str, Any] = {**ALIKE, **args, "Process Group Description": group}
        trace.nccl(200 + rank, 240, launched=25, tid=AUTOGRAD, name="AllReduce_Sum_bf16_RING_LL", **about)

    (row,) = rows(tmp_path, add).values()
    assert (row.op, row.purpose, row.phase, row.axis) == ("all_reduce", "fsdp", "backward", "dp_replicate")


# ---------------------------------------------------------------- libraries


LIBRARIES: dict[str, Callable[[Trace, int], object]] = {
    "NVSHMEM: splits, then rows": lambda trace, rank: (
        trace.kernel("c10d::nvshmem_extension::exchangeSplitAndOffset(long*, long*)", 100, 102, launched=6),
        trace.kernel("c10d::nvshmem_extension::allToAllV(void*, void*, long*)", 103 + rank, 140, launched=7),
    ),
    "copy engine: peer copies on a stream of their own": lambda trace, rank: [
        trace.kernel("Memcpy PtoP (Device -> Device)", 100 + at, 120 + at, launched=6, category="gpu_memcpy", stream=9)
        for at in (0, 20)
    ],
    "symmetric memory": lambda trace, rank: trace.kernel(
        "void c10d::symmetric_memory::two_shot_all_reduce_kernel<8>()", 100, 140, launched=6
    ),
    "NCCL's symmetric kernels": lambda trace, rank: trace.kernel(
        "ncclSymkDevKernel_AllGather_LL()", 100, 140, launched=6
    ),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_labelled_collective_is_known_by_any_library(tmp_path: Path, library: str) -> None:
    def add(trace: Trace, rank: int) -> None:
        trace.annotate(label(sent=4000), 5, 10).kernel("nvjet_tst", 90, 110, launched=1)
        LIBRARIES[library](trace, rank)
        trace.kernel(
            "Memcpy DtoD (Device -> Device)", 150, 190, launched=7, category="gpu_memcpy"
        )  # packs, moves nothing

    row = rows(tmp_path, add)[DISPATCH]
    assert row.transfer_s == pytest.approx(40 * US)
    assert row.algbw_bytes_per_s == pytest.approx(4000 / (40 * US))
    assert (row.exposed_s, row.overlapped_s) == pytest.approx((30 * US, 10 * US))


def test_a_collective_that_nobody_labelled_is_shown_as_other(tmp_path: Path) -> None:
    def add(trace: Trace, rank: int) -> None:
        args: dict[str, Any] = {"Collective name": "allreduce", "In msg nelems": 100, "Out msg nelems": 100}
        trace.nccl(100 + 5 * rank, 130, launched=6, **ALIKE, **args, **IN_WORLD)

    found = rows(tmp_path, add)
    row = found["all_reduce", "other", "forward"]
    assert len(found) == 1
    assert (row.axis, row.bytes) == ("world", 200)
    assert row.transfer_s == pytest.approx(25 * US)
    assert row.wait_s == pytest.approx(5 * US)


def test_a_replayed_collective_has_no_launch_and_is_read_by_its_arguments(tmp_path: Path) -> None:
    def add(trace: Trace, rank: int) -> None:
        args: dict[str, Any] = {"Collective name": "all_to_allv", "In msg nelems": 100, "Out msg nelems": 300, **ALIKE}
        trace.event("gpu_user_annotation", "nccl:all_to_all", 100, 130, COMM_STREAM)
        trace.replayed("ncclDevKernel_SendRecv()", 100, 130 + rank, **args, **IN_EP)

    row = rows(tmp_path, add)["all_to_all", "other", "forward"]
    assert (row.axis, row.bytes, row.calls_per_step) == ("ep", 600, 1)
    assert row.transfer_s == pytest.approx(31 * US)


def test_an_unlabelled_peer_copy_is_a_row_of_its_own(tmp_path: Path) -> None:
    name = "Memcpy PtoP (Device -> Device)"

    def add(trace: Trace, rank: int) -> None:
        trace.kernel(name, 100, 140 + rank, launched=6, category="gpu_memcpy")

    row = rows(tmp_path, add)[name, "other", "forward"]
    assert row.transfer_s == pytest.approx(40 * US)  # the group is not told: the shortest duration
    assert (row.bytes, row.busbw_bytes_per_s) == (0, None)


# ---------------------------------------------------------------- clocks


def on_hosts(directory: Path, *hosts: str, ahead_us: float = 0.0) -> tuple[CollectiveRow, str | None]:
    """The row of an all-reduce that takes 20 us after 30 us of waiting, and the note on clocks."""
    traces = []
    for rank, (host, at) in enumerate(zip(hosts, (0.0, ahead_us), strict=True)):
        trace = Trace(rank, host=host).step(at, at + 100)
        traces.append(trace.annotate(label(op="all_reduce"), at + 10 + 30 * rank, at + 60))
    found = read_traces(write(directory, *traces), steps=1)
    (row,) = rows_of(found, steps=1)
    return row, clock_note(found, match(found))


def test_one_host_needs_no_note(tmp_path: Path) -> None:
    row, note = on_hosts(tmp_path, "h", "h")
    assert note is None
    assert (row.transfer_s, row.wait_s) == pytest.approx((20 * US, 30 * US))
    assert row.last_rank_share == {1: 1.0}


@pytest.mark.parametrize(
    ("hosts", "ahead_us", "sentence"),
    [
        (("a", "b"), 0.0, "ranks on 2 hosts share no clock"),
        (("h", "h"), 5e6, "a rank was done with a collective 5000.0 ms before another began it, so clocks differ"),
        (("h", "h"), -2050.0, "a rank was done with a collective 2.0 ms before another began it, so clocks differ"),
    ],
)
def test_without_one_clock_the_transfer_is_a_bound_and_that_is_said(
    tmp_path: Path, hosts: tuple[str, str], ahead_us: float, sentence: str
) -> None:
    row, note = on_hosts(tmp_path, *hosts, ahead_us=ahead_us)
    assert note == f"{sentence}: transfers are the shortest duration over the ranks, a lower bound"
    assert row.transfer_s == pytest.approx(20 * US)  # the shortest duration
    assert row.wait_s == pytest.approx(30 * US)
    assert row.last_rank_share == {}


def test_an_exchange_may_be_over_on_a_rank_that_gets_nothing_before_another_begins(tmp_path: Path) -> None:
    early = Trace(0).step(0, 9000).annotate(label(received=0), 10, 60)
    late = Trace(1).step(0, 9000).annotate(label(sent=0), 5000, 5020)
    found = read_traces(write(tmp_path, early, late), steps=1)
    assert clock_note(found, match(found)) is None


# ---------------------------------------------------------------- calls that do not match


def test_as_many_calls_in_other_steps_are_not_matched(tmp_path: Path) -> None:
    traces = [Trace(rank).step(0, 99).step(100, 199, 1) for rank in (0, 1)]
    traces[0].annotate(label(), 1, 2).annotate(label(), 3, 4)
    traces[1].annotate(label(), 1, 2).annotate(label(), 103, 104)
    with pytest.raises(RunError, match=r"rank 0 made 2 calls and rank 1 2, or in other steps"):
        collective_rows(write(tmp_path, *traces), steps=2)
