"""The parts of a step on hand-made device time lines."""

from pathlib import Path

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


def test_on_a_cpu_operators_stand_for_kernels(tmp_path: Path) -> None:
    trace = Trace(0, world_size=1).step(0, 100).annotate(label(size=1), 50, 80)
    trace.cpu("aten::linear", 5, 35).cpu("aten::t", 6, 10).cpu("aten::addmm", 10, 30)  # own time 6, host, 20
    trace.cpu("epbench::all_to_all", 49, 81).gloo("all_to_all", 55, 75)
    trace.cpu("aten::add", 70, 90, tid=AUTOGRAD).cpu("autograd::engine::evaluate_function: X", 91, 99)
    found = breakdown(write(tmp_path, trace), steps=1)
    assert found.device_work_s is None
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
    trace = Trace(0, world_size=1).step(0, 50).kernel("gemm", 100, 110, launched=1)
    trace.kernel("empty", 120, 120, launched=1).kernel("late", 130, 140, launched=125).kernel("x", 130, 130, launched=2)
    found = breakdown(write(tmp_path, trace), steps=1)
    assert found.breakdown.compute == pytest.approx(20 * US)
    assert found.breakdown.idle.host == pytest.approx(15 * US)
    assert found.breakdown.idle.kernel == pytest.approx(5 * US)


def test_a_rank_without_kernels_among_others_is_a_broken_trace(tmp_path: Path) -> None:
    write(tmp_path, Trace(0).step(0, 9).kernel("gemm", 1, 2, launched=1), Trace(1).step(0, 9))
    with pytest.raises(RunError, match="no kernel in the trace of rank 1"):
        breakdown(tmp_path, steps=1)


KERNELS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), st.booleans(), st.integers(0, 300)), min_size=1)


@given(KERNELS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_parts_sum_to_the_step(tmp_path: Path, kernels: list[tuple[int, int, bool, int]]) -> None:
    trace = Trace(0, world_size=1).step(0, 400)
    for start, length, communication, launched in kernels:
        add = trace.nccl if communication else trace.kernel
        name = "SendRecv" if communication else "gemm"
        add(start=start, end=start + length, launched=launched, name=name)
    found = breakdown(write(tmp_path, trace), steps=1)
    span = max(start + length for start, length, *_ in kernels) - min(start for start, *_ in kernels)
    assert found.step_s == pytest.approx(span * US)
    assert total_s(found.breakdown) == pytest.approx(span * US)
