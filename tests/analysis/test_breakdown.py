"""The parts of a step on hand-made device time lines."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epbench.analysis.breakdown import breakdown
from epbench.errors import RunError
from epbench.records import Breakdown
from tests.analysis.handmade import AUTOGRAD, US, Trace, label, write


def total_s(parts: Breakdown) -> float:
    values = (parts.compute, parts.overlapped, parts.exposed, parts.idle.host, parts.idle.kernel)
    return sum(value for value in values if value is not None)


def test_the_four_parts(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 300).annotate(label(size=1), 5, 8)
    trace.kernel("gemm", 100, 150, launched=1)
    trace.nccl(140, 180, launched=6)  # 10 under the gemm, 20 alone, 10 under the copy
    trace.kernel("Memcpy DtoD", 170, 200, launched=7, category="gpu_memcpy", stream=9)
    trace.kernel("late", 230, 240, launched=220)  # idle 200-230: the host launched only at 220
    found = breakdown(write(tmp_path, trace), steps=1)
    assert found.breakdown.compute == pytest.approx((40 + 20 + 10) * US)
    assert found.breakdown.overlapped == pytest.approx(20 * US)
    assert found.breakdown.exposed == pytest.approx(20 * US)
    assert found.breakdown.idle.host == pytest.approx(20 * US)
    assert found.breakdown.idle.kernel == pytest.approx(10 * US)
    assert found.step_s == pytest.approx(140 * US)
    assert found.device_work_s == pytest.approx((50 + 20 + 30 + 10) * US)


def test_device_work_leaves_out_the_waiting_for_others(tmp_path: Path) -> None:
    waiting = Trace(0).step(0, 50).annotate(label(), 5, 8)
    waiting.kernel("gemm", 100, 110, launched=1).nccl(110, 200, launched=6)
    late = Trace(1).step(0, 50).annotate(label(), 5, 8)
    late.kernel("gemm", 100, 130, launched=1).nccl(180, 200, launched=6)
    found = breakdown(write(tmp_path, waiting, late), steps=1)
    assert found.critical_rank == 1
    assert found.device_work_s == pytest.approx((30 + 20) * US)
    assert found.breakdown.exposed == pytest.approx(20 * US)


def test_a_transfer_under_a_kernel_is_no_more_work(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 50).annotate(label(size=1), 5, 8)
    trace.kernel("gemm", 100, 160, launched=1).nccl(120, 150, launched=6)
    assert breakdown(write(tmp_path, trace), steps=1).device_work_s == pytest.approx(60 * US)


def test_steps_are_told_apart_by_when_the_host_launched(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1)
    for index, length in enumerate((10, 20, 90)):  # the host is done before the device begins
        trace.step(10 * index, 10 * index + 9, index)
        trace.kernel("gemm", 1000 + 100 * index, 1000 + 100 * index + length, launched=10 * index + 1)
    found = breakdown(write(tmp_path, trace), steps=3)
    assert found.device_work_s == pytest.approx(20 * US)  # median of 10, 20, 90
    assert found.step_s == pytest.approx(290 * US / 3)
    assert found.breakdown.compute == pytest.approx(120 * US / 3)
    assert found.breakdown.idle.kernel == pytest.approx(170 * US / 3)


def test_kernels_are_counted_where_they_were_launched(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).kernel("warm-up", 100, 110, launched=2)  # runs late, was launched before the steps
    for index, count in enumerate((3, 4)):
        trace.step(10 + 10 * index, 19 + 10 * index, index)
        for number in range(count):
            trace.kernel(
                "gemm", 200 + 100 * index + 10 * number, 205 + 100 * index + 10 * number, launched=11 + 10 * index
            )
    trace.kernel("after", 400, 410, launched=60)
    assert breakdown(write(tmp_path, trace), steps=2).kernel_count == 3.5


def test_on_a_cpu_operators_stand_for_kernels(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 100).annotate(label(size=1), 50, 80)
    trace.cpu("aten::linear", 5, 35).cpu("aten::t", 6, 10).cpu("aten::addmm", 10, 30)  # own time 6, host, 20
    trace.cpu("epbench::all_to_all", 49, 81).gloo("all_to_all", 55, 75)
    trace.cpu("aten::add", 70, 90, tid=AUTOGRAD).cpu("autograd::engine::evaluate_function: X", 91, 99)
    found = breakdown(write(tmp_path, trace), steps=1)
    assert found.device_work_s is None
    assert found.kernel_count is None
    assert found.breakdown.compute == pytest.approx((26 + 15) * US)
    assert found.breakdown.overlapped == pytest.approx(5 * US)
    assert found.breakdown.exposed == pytest.approx(15 * US)
    assert found.breakdown.idle.host == pytest.approx((100 - 61) * US)
    assert found.breakdown.idle.kernel is None
    assert found.kernels_s == pytest.approx({"gemm": 26 * US, "communication": 20 * US, "pointwise": 20 * US})
    assert found.unclassified_share == 0


def test_kinds_of_the_critical_rank_and_what_no_pattern_knows(tmp_path: Path) -> None:
    idle = Trace(0).step(0, 50).kernel("gemm", 100, 110, launched=1)
    busy = Trace(1).step(0, 50).kernel("nvjet_tst_128x256", 100, 160, launched=1)
    busy.kernel("my_very_own_thing", 150, 190, launched=2, stream=9)
    found = breakdown(write(tmp_path, idle, busy), steps=1)
    assert found.kernels_s == pytest.approx({"gemm": 60 * US, "other": 40 * US})
    assert found.unclassified_share == pytest.approx(0.4)
    assert [parts.rank for parts in found.per_rank] == [0, 1]
    assert [parts.compute for parts in found.per_rank] == pytest.approx([10 * US, 90 * US])


def test_kernels_of_no_length_change_nothing(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 130).kernel("gemm", 100, 110, launched=1)
    trace.kernel("empty", 120, 120, launched=1).kernel("late", 130, 140, launched=125).kernel("x", 130, 130, launched=2)
    found = breakdown(write(tmp_path, trace), steps=1)
    assert found.breakdown.compute == pytest.approx(20 * US)
    assert found.breakdown.idle.host == pytest.approx(15 * US)
    assert found.breakdown.idle.kernel == pytest.approx(5 * US)


def test_a_rank_without_kernels_among_others_is_a_broken_trace(tmp_path: Path) -> None:
    write(tmp_path, Trace(0).step(0, 9).kernel("gemm", 1, 2, launched=1), Trace(1).step(0, 9))
    with pytest.raises(RunError, match="no kernel in the trace of rank 1"):
        breakdown(tmp_path, steps=1)


# ---------------------------------------------------------------- what belongs to the steps


def test_kernels_outside_of_the_steps_are_not_counted(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(100, 200).kernel("of the warm-up", 50, 130, launched=10)
    trace.kernel("gemm", 120, 180, launched=110).kernel("gemm", 230, 250, launched=190)
    trace.kernel("after the last step", 260, 400, launched=205)
    found = breakdown(write(tmp_path, trace), steps=1)
    assert found.step_s == pytest.approx((250 - 120) * US)
    assert found.breakdown.compute == pytest.approx((60 + 20) * US)  # the warm-up's rest lies under the first gemm
    assert found.device_work_s == found.kernel_union_s == pytest.approx(80 * US)


def test_a_step_without_kernels_is_a_step_of_no_length(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 10, 0).step(20, 30, 1).step(40, 50, 2)
    trace.kernel("gemm", 100, 130, launched=1).kernel("gemm", 150, 160, launched=41)
    found = breakdown(write(tmp_path, trace), steps=3)
    assert found.device_work_s == found.kernel_union_s == pytest.approx(10 * US)  # median of 30, 0, 10
    assert found.step_s == pytest.approx((160 - 100) / 3 * US)
    assert found.breakdown.compute == pytest.approx(40 / 3 * US)
    assert total_s(found.breakdown) == pytest.approx(found.step_s)


def test_a_trace_in_whose_steps_nothing_was_launched_has_no_time(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 10).kernel("gemm", 100, 130, launched=50)
    found = breakdown(write(tmp_path, trace), steps=1)
    assert (found.step_s, found.device_work_s, found.kernel_union_s, found.kernels_s) == (0, 0, 0, {})


def test_replayed_graphs_have_kernels_of_which_no_launch_tells(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1)
    for index in range(2):
        at = 100 * index
        trace.step(at, at + 100, index).replayed("nvjet_a", at + 10, at + 50).replayed("nvjet_b", at + 70, at + 90)
    found = breakdown(write(tmp_path, trace), steps=2)
    assert found.step_s == pytest.approx((190 - 10) / 2 * US)
    assert found.device_work_s == found.kernel_union_s == pytest.approx(60 * US)
    assert found.breakdown.idle.kernel == pytest.approx((20 + 20 + 20) / 2 * US)  # within, between, within
    assert found.breakdown.idle.host == 0


def test_kernels_of_one_graph_share_its_launch(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 50).kernel("nvjet_a", 60, 70, launched=40)
    trace.replayed("nvjet_b", 75, 95, correlation=1)  # the correlation id of the launch of the first
    found = breakdown(write(tmp_path, trace), steps=1)
    assert found.breakdown.compute == pytest.approx(30 * US)
    assert found.breakdown.idle.kernel == pytest.approx(5 * US)


def test_the_kernel_union_holds_the_waiting_that_device_work_leaves_out(tmp_path: Path) -> None:
    waiting = Trace(0).step(0, 50).annotate(label(), 5, 8)
    waiting.kernel("gemm", 100, 170, launched=1).nccl(170, 300, launched=6)
    late = Trace(1).step(0, 50).annotate(label(), 5, 8)
    late.kernel("gemm", 100, 130, launched=1).nccl(280, 300, launched=6)
    found = breakdown(write(tmp_path, waiting, late), steps=1)
    assert found.critical_rank == 0
    assert found.device_work_s == pytest.approx((70 + 20) * US)
    assert found.kernel_union_s == pytest.approx((70 + 130) * US)


# ---------------------------------------------------------------- any trace


@st.composite
def device_events(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Kernels, copies and collectives on three streams, some of them replayed, launched in three steps of 100."""
    events = []
    for _ in range(draw(st.integers(1, 12))):
        launched = draw(st.integers(0, 299))
        start = launched + draw(st.integers(0, 80))
        events.append(
            {
                "name": draw(st.sampled_from(["nvjet_x", "Memcpy DtoD (Device -> Device)", "ncclDevKernel_SendRecv"])),
                "start": start,
                "end": start + draw(st.integers(0, 60)),
                "launched": draw(st.sampled_from([launched, None])),
                "stream": draw(st.integers(7, 9)),
            }
        )
    return events


def cells(events: list[dict[str, Any]], window: range) -> set[int]:
    return {cell for event in events for cell in range(event["start"], event["end"]) if cell in window}


@given(device_events())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_parts_are_those_of_a_count_of_microseconds(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    trace = Trace(0, world_size=1)
    for index in range(3):
        trace.step(100 * index, 100 * index + 99.5, index)
    for event in events:
        trace.on_device(**event)
    found = breakdown(write(tmp_path, trace), steps=3)
    in_steps = [e for e in events if (e["start"] if e["launched"] is None else e["launched"]) < 300]
    window = range(
        min((e["start"] for e in in_steps), default=0),
        max(e["end"] for e in events),
    )
    moving = [event for event in events if event["name"].startswith("nccl")]
    work, communication = cells([e for e in events if e not in moving], window), cells(moving, window)
    parts, per_step = found.breakdown, US / 3
    if not in_steps:
        window = range(0)
        work = communication = set()
    assert parts.step_s == pytest.approx(len(window) * per_step)
    assert parts.compute == pytest.approx(len(work - communication) * per_step)
    assert parts.overlapped == pytest.approx(len(work & communication) * per_step)
    assert parts.exposed == pytest.approx(len(communication - work) * per_step)
    assert total_s(parts) == pytest.approx(len(window) * per_step)
