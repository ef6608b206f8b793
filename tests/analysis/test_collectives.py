"""Collectives of hand-made traces: transfer apart from wait, what is counted and what is not."""

from pathlib import Path
from typing import Any

import pytest

from epbench.analysis.collectives import collective_rows
from tests.analysis.handmade import AUTOGRAD, US, Trace, label, only_row, write

# ---------------------------------------------------------------- transfer, wait, bytes


def test_a_late_rank_makes_the_others_wait_not_the_transfer_long(tmp_path: Path) -> None:
    early = Trace(0).step(0, 100).annotate(label(), 5, 62).gloo("all_to_all", 10, 60)
    late = Trace(1).step(0, 100).annotate(label(), 39, 63).gloo("all_to_all", 40, 58)
    row = only_row(tmp_path, early, late)
    assert (row.op, row.purpose, row.phase, row.axis) == ("all_to_all", "dispatch", "forward", "ep")
    assert row.transfer_s == pytest.approx(20 * US)  # max end 60 - max start 40
    assert row.wait_s == pytest.approx(30 * US)  # rank 0: 50 - 20; rank 1: 18 - 20, so none
    assert row.p50_s == row.p95_s == pytest.approx(20 * US)
    assert (row.exposed_s, row.overlapped_s) == (None, None)


def test_who_came_last_and_how_often(tmp_path: Path) -> None:
    arrivals = [(0, 5, 1), (0, 2, 3), (4, 6, 5), (0, 9, 1)]  # of ranks 0, 1, 2 at four calls
    traces = [Trace(rank, world_size=3).step(0, 1000) for rank in range(3)]
    for k, call in enumerate(arrivals):
        for trace, arrival in zip(traces, call, strict=True):
            trace.annotate(label(size=3), 100 * k + arrival, 100 * k + 50)
    row = only_row(tmp_path, *traces)
    assert row.last_rank_share == {1: 0.75, 2: 0.25}
    assert list(row.last_rank_share) == [1, 2]


def test_the_annotation_stands_in_where_gloo_left_no_event(tmp_path: Path) -> None:
    traces = [Trace(rank).step(0, 100).annotate(label(), 10 + rank, 30) for rank in (0, 1)]
    assert only_row(tmp_path, *traces).transfer_s == pytest.approx(19 * US)


def test_bytes_and_bandwidth_are_of_the_heaviest_rank(tmp_path: Path) -> None:
    a = Trace(0).step(0, 100).annotate(label(sent=1000, received=4000), 10, 30)
    b = Trace(1).step(0, 100).annotate(label(sent=3000, received=0), 10, 30)
    row = only_row(tmp_path, a, b)
    assert row.bytes == 4000
    assert row.bytes_mean == 3500
    assert row.algbw_bytes_per_s == pytest.approx(4000 / (20 * US))
    assert row.busbw_bytes_per_s == pytest.approx(4000 / (20 * US) / 2)  # (n - 1) / n of 2


def test_an_uneven_split_is_charged_for_what_leaves_the_rank(tmp_path: Path) -> None:
    """Ten of eleven rows stay where they are: the bus saw an eleventh of the buffers, not half of them."""
    traces = [Trace(r).step(0, 100).annotate(label(sent=1100, received=1100, kept=1000), 10, 30) for r in (0, 1)]
    row = only_row(tmp_path, *traces)
    assert row.bytes == 1100
    assert row.busbw_bytes_per_s == pytest.approx(100 / (20 * US))


def test_the_heaviest_rank_of_an_uneven_split_sets_the_bus_bandwidth(tmp_path: Path) -> None:
    sizes = [(1000, 0), (0, 1000)]  # all rows go from rank 0 to rank 1
    traces = [
        Trace(rank).step(0, 100).annotate(label(sent=sent, received=received, kept=0), 10, 30)
        for rank, (sent, received) in enumerate(sizes)
    ]
    row = only_row(tmp_path, *traces)
    assert row.busbw_bytes_per_s == pytest.approx(1000 / (20 * US))
    assert row.bytes_mean == 1000


@pytest.mark.parametrize(
    ("op", "factor"),
    [("all_to_all", 3 / 4), ("all_gather", 3 / 4), ("reduce_scatter", 3 / 4), ("all_reduce", 3 / 2)],
)
def test_bus_bandwidth_of_four_ranks(tmp_path: Path, op: str, factor: float) -> None:
    text = label(op=op, size=4)
    traces = [Trace(rank, world_size=4).step(0, 100).annotate(text, 10, 30) for rank in range(4)]
    row = only_row(tmp_path, *traces)
    assert row.algbw_bytes_per_s == pytest.approx(1000 / (20 * US))
    assert row.busbw_bytes_per_s == pytest.approx(factor * 1000 / (20 * US))


def test_a_call_without_bytes_has_a_time_but_no_bandwidth(tmp_path: Path) -> None:
    traces = [Trace(rank).step(0, 100).annotate(label(sent=0, received=0), 10, 30) for rank in (0, 1)]
    row = only_row(tmp_path, *traces)
    assert (row.bytes, row.algbw_bytes_per_s, row.busbw_bytes_per_s) == (0, None, None)
    assert row.transfer_s == pytest.approx(20 * US)


def test_a_group_of_one_rank_has_no_bus(tmp_path: Path) -> None:
    row = only_row(tmp_path, Trace(0, world_size=1).step(0, 100).annotate(label(size=1), 10, 30))
    assert (row.busbw_bytes_per_s, row.bus_bytes_per_step) == (None, None)
    assert row.transfer_s == pytest.approx(20 * US)
    assert row.wait_s == pytest.approx(0)


# ---------------------------------------------------------------- adding up


def test_calls_add_up_within_a_step_and_steps_are_medians(tmp_path: Path) -> None:
    traces = []
    for rank in (0, 1):
        trace = Trace(rank)
        for index, transfers in enumerate([(10, 20), (10, 30), (10, 100)]):
            start = 1000 * index
            trace.step(start, start + 500, index)
            for k, transfer in enumerate(transfers):
                trace.annotate(label(), start + 200 * k, start + 200 * k + transfer)
        traces.append(trace)
    row = only_row(tmp_path, *traces, steps=3)
    assert row.calls_per_step == 2
    assert row.transfer_s == pytest.approx(40 * US)  # of 30, 40 and 110
    assert row.p50_s == pytest.approx(15 * US)  # of 10 10 10 20 30 100


@pytest.mark.parametrize(
    ("steps", "total", "on_bus"),
    [
        ([[(100, 100), (100, 100), (900, 900)]], 1100, 550),  # not 3 x the median call
        ([[(100, 300), (400, 0)]], 500, 250),  # rank 0 has most of both together, though not of each
        ([[(100, 100)], [(100, 100), (200, 200)], [(900, 900)]], 300, 150),  # of steps the median
    ],
)
def test_bytes_of_a_step_are_summed_over_its_calls(
    tmp_path: Path, steps: list[list[tuple[int, int]]], total: float, on_bus: float
) -> None:
    traces = [Trace(rank) for rank in (0, 1)]
    for index, calls in enumerate(steps):
        for rank, trace in enumerate(traces):
            trace.step(1000 * index, 1000 * index + 500, index)
            for k, sizes in enumerate(calls):
                begin = 1000 * index + 100 * k
                trace.annotate(label(sent=sizes[rank], received=sizes[rank]), begin, begin + 50)
    row = only_row(tmp_path, *traces, steps=len(steps))
    assert (row.bytes_per_step, row.bus_bytes_per_step) == (total, on_bus)


def test_groups_are_matched_apart_and_the_slowest_one_counts(tmp_path: Path) -> None:
    def trace(rank: int, root: int, start: float, end: float) -> Trace:
        return Trace(rank, world_size=4).step(0, 1000).annotate(label(root=root), start, end)

    traces = trace(0, 0, 10, 20), trace(1, 0, 10, 20), trace(2, 2, 500, 530), trace(3, 2, 505, 530)
    row = only_row(tmp_path, *traces)
    assert row.transfer_s == pytest.approx(25 * US)
    assert row.wait_s == pytest.approx(5 * US)
    assert row.calls_per_step == 1


def test_kinds_are_rows_of_their_own_longest_first(tmp_path: Path) -> None:
    traces = [
        Trace(rank)
        .step(0, 100)
        .annotate(label("dispatch"), 0, 10)
        .annotate(label("combine"), 20, 50)
        .annotate(label("dispatch", phase="backward"), 60, 80, AUTOGRAD)
        for rank in (0, 1)
    ]
    rows = collective_rows(write(tmp_path, *traces), steps=1)
    assert [(row.purpose, row.phase) for row in rows] == [
        ("combine", "forward"),
        ("dispatch", "backward"),
        ("dispatch", "forward"),
    ]


def test_what_lies_outside_of_the_steps_is_not_counted(tmp_path: Path) -> None:
    traces = [Trace(rank).step(0, 100).annotate(label(), 10, 20).annotate(label(), 200, 300) for rank in (0, 1)]
    assert only_row(tmp_path, *traces).calls_per_step == 1


# ---------------------------------------------------------------- clocks


def test_the_bases_of_two_traces_may_differ(tmp_path: Path) -> None:
    a = Trace(0, base_ns=10**18).step(5000, 5100).annotate(label(), 5010, 5060)
    b = Trace(1, base_ns=10**18 + 5_000_000).step(0, 100).annotate(label(), 40, 60)
    row = only_row(tmp_path, a, b)
    assert row.transfer_s == pytest.approx(20 * US)
    assert row.wait_s == pytest.approx(30 * US)


def test_ranks_of_two_hosts_share_no_clock(tmp_path: Path) -> None:
    a = Trace(0, host="a").step(0, 100).annotate(label(), 10, 60)
    b = Trace(1, host="b").step(90000, 90100).annotate(label(), 90040, 90058)
    row = only_row(tmp_path, a, b)
    assert row.transfer_s == pytest.approx(18 * US)  # the shortest duration: a lower bound
    assert row.wait_s == pytest.approx(32 * US)
    assert row.last_rank_share == {}  # nobody can tell


# ---------------------------------------------------------------- CUDA


def test_the_kernel_is_the_collective_and_its_copy_is_not_counted(tmp_path: Path) -> None:
    a = Trace(0).step(0, 30).annotate(label(), 5, 8).nccl(100, 160, launched=6)
    b = Trace(1).step(0, 30).annotate(label(), 5, 8).nccl(140, 162, launched=6)
    row = only_row(tmp_path, a, b)
    assert row.calls_per_step == 1
    assert row.transfer_s == pytest.approx(22 * US)
    assert row.wait_s == pytest.approx(38 * US)


def test_exposed_and_overlapped_are_parts_of_the_transfer(tmp_path: Path) -> None:
    def trace(rank: int, start: float) -> Trace:
        kernels = Trace(rank).step(0, 30).annotate(label(), 5, 8).nccl(start, 160, launched=6)
        # Two streams whose kernels overlap each other: under the transfer 120-160 they cover 130-150.
        return kernels.kernel("gemm", 100, 140, launched=1).kernel("norm", 130, 150, launched=2, stream=9)

    row = only_row(tmp_path, trace(0, 110), trace(1, 120))
    assert row.transfer_s == pytest.approx(40 * US)
    assert row.overlapped_s == pytest.approx(30 * US)  # 120-150
    assert row.exposed_s == pytest.approx(10 * US)  # 150-160


def test_the_wait_is_neither_exposed_nor_overlapped(tmp_path: Path) -> None:
    a = Trace(0).step(0, 30).annotate(label(), 5, 8).nccl(100, 160, launched=6).kernel("k", 100, 150, launched=1)
    b = Trace(1).step(0, 30).annotate(label(), 5, 8).nccl(150, 160, launched=6).kernel("k", 90, 91, launched=1)
    row = only_row(tmp_path, a, b)
    assert row.exposed_s == pytest.approx(10 * US)
    assert row.overlapped_s == pytest.approx(0)


def test_kernels_belong_to_the_annotation_of_their_thread(tmp_path: Path) -> None:
    traces = [
        Trace(rank)
        .step(0, 50)
        .annotate(label("dispatch"), 5, 20)
        .annotate(label("combine", phase="backward"), 6, 19, AUTOGRAD)
        .nccl(100, 110, launched=10)
        .nccl(200, 230, launched=11, tid=AUTOGRAD)
        for rank in (0, 1)
    ]
    rows = {row.purpose: row for row in collective_rows(write(tmp_path, *traces), steps=1)}
    assert rows["dispatch"].transfer_s == pytest.approx(10 * US)
    assert rows["combine"].transfer_s == pytest.approx(30 * US)


def test_a_rank_without_a_kernel_leaves_the_transfer_to_the_others(tmp_path: Path) -> None:
    """NCCL launches nothing on a rank that neither sends nor receives."""
    idle = Trace(0, world_size=3).step(0, 30).annotate(label(size=3, sent=0, received=0), 5, 8)
    idle.kernel("k", 10, 11, launched=1)
    busy = [
        Trace(rank, world_size=3).step(0, 30).annotate(label(size=3), 5, 8).nccl(100 * rank, 220, launched=6)
        for rank in (1, 2)
    ]
    row = only_row(tmp_path, idle, *busy)
    assert row.transfer_s == pytest.approx(20 * US)
    assert row.wait_s == pytest.approx(100 * US)


def fsdp_kernel(trace: Trace, name: str, start: float, end: float, **launch: Any) -> Trace:
    args: dict[str, Any] = {
        "Collective name": name,
        "In msg nelems": 512,
        "Out msg nelems": 1024,
        "Group size": 2,
        "dtype": "BFloat16",
        "Process Group Description": "mesh_fsdp",
        "Process Group Ranks": "[0, 1]",
    }
    return trace.nccl(start, end, name="AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", **launch, **args)


def test_fsdp_kernels_are_read_by_their_arguments(tmp_path: Path) -> None:
    traces = []
    for rank in (0, 1):
        trace = Trace(rank).step(0, 50).annotate("FSDP::all_gather (layers.0)", 2, 9)
        trace.annotate("FSDP::all_gather (layers.1)", 24, 26, AUTOGRAD)
        trace.annotate("FSDP::post_backward_reduce (layers.1)", 29, 31, AUTOGRAD)
        fsdp_kernel(trace, "_allgather_base", 100, 110, launched=5)
        fsdp_kernel(trace, "_allgather_base", 200, 230, launched=25, tid=AUTOGRAD)
        fsdp_kernel(trace, "_reduce_scatter_base", 300, 340, launched=30, tid=AUTOGRAD)
        traces.append(trace)
    rows = collective_rows(write(tmp_path, *traces), steps=1)
    assert [(row.op, row.purpose, row.phase, row.axis) for row in rows] == [
        ("reduce_scatter", "fsdp", "backward", "fsdp"),
        ("all_gather", "fsdp", "backward", "fsdp"),
        ("all_gather", "fsdp", "forward", "fsdp"),
    ]
    assert rows[0].bytes == 2048
    assert rows[0].busbw_bytes_per_s == pytest.approx(2048 / (40 * US) / 2)
