"""Profiler traces and allocator snapshots, written by hand in the words of torch 2.11 and 2.13."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch

from epbench.measure import memory_events
from epbench.measure.memory_events import of_profile, of_snapshot, record_cuda_step, segments_of
from epbench.stacks.protocol import Batch
from tests.measure.conftest import FakeStep

DEVICE = torch.device("cuda", 0)


def block_event(ts: float, address: int, size: int, *, device: int = 0) -> dict[str, Any]:
    args = {"Addr": address, "Bytes": size, "Device Type": device, "Ev Idx": int(ts), "Total Allocated": 10**9}
    return {"name": "[memory]", "ts": ts, "args": args}


def annotation(name: str, ts: float, dur: float) -> dict[str, Any]:
    return {"name": name, "ts": ts, "dur": dur}


def test_a_profile_is_read_from_the_recorded_step_on() -> None:
    trace = [
        block_event(1_500, 7, -64),
        block_event(900, 7, 64),  # of the step before, which is there to make blocks known
        block_event(1_200, 8, 32),
        block_event(1_300, 9, 10**6, device=1),
        annotation("epbench:backward", 500, 100),
        annotation("epbench:memory", 1_000, 600),
        annotation("epbench:backward", 1_250, 200),
        {"name": "aten::mm", "ts": 1_100, "dur": 5},
    ]
    recording = of_profile(trace, before={7: 64}, after={8: 32})
    assert [(event.address, event.size) for event in recording.events] == [(8, 32), (7, -64)]
    assert [event.time_s for event in recording.events] == pytest.approx([200e-6, 500e-6])
    assert recording.step_s == pytest.approx(600e-6)
    assert list(chain(*recording.backward_s)) == pytest.approx([250e-6, 450e-6])
    assert (recording.before, recording.after) == ({7: 64}, {8: 32})


def entry(action: str, time_us: int, address: int, size: int) -> dict[str, Any]:
    where = "device_free" if action == "oom" else "addr"
    return {"action": action, "time_us": time_us, where: address, "size": size, "stream": 0}


def mark(name: str, stage: str, time_us: int) -> dict[str, Any]:
    return {"name": name, "stage": stage, "device": 0, "time_us": time_us}


def segment(address: int, *blocks: tuple[int, str], device: int = 0, expandable: bool = False) -> dict[str, Any]:
    place, listed = address, []
    for size, state in blocks:
        listed.append({"address": place, "size": size, "requested_size": size - 12, "state": state})
        place += size
    return {
        "device": device,
        "address": address,
        "total_size": place - address,
        "is_expandable": expandable,
        "blocks": listed,
    }


def snapshot(trace: list[dict[str, Any]], marks: list[dict[str, Any]], *segments: dict[str, Any]) -> dict[str, Any]:
    return {"device_traces": [trace, []], "external_annotations": marks, "segments": list(segments)}


HISTORY = [
    entry("segment_alloc", 1_000, 4096, 2**21),
    entry("alloc", 1_001, 4096, 1),
    entry("alloc", 1_002, 8192, 1024),
    entry("oom", 1_002, 17, 2**40),
    entry("free_requested", 1_003, 8192, 1024),
    entry("free_completed", 1_004, 8192, 1024),
    entry("snapshot", 1_005, 0, 0),
]
MARKS = [
    mark("epbench:memory", "START", 1_000),
    mark("epbench:backward", "START", 1_001),
    mark("epbench:backward", "END", 1_002),
    mark("epbench:backward", "START", 1_003),  # never ends
    mark("epbench:memory", "END", 1_010),
]


def test_a_history_is_requests_rounded_up_and_freed_when_that_is_asked_for() -> None:
    held = segment(4096, (512, "active_allocated"), (512, "active_awaiting_free"), (1024, "inactive"))
    elsewhere = segment(2**30, (512, "active_allocated"), device=1)
    recording = of_snapshot(snapshot(HISTORY, MARKS, held, elsewhere), before={7: 64}, index=0)
    assert [(event.address, event.size) for event in recording.events] == [(4096, 512), (8192, 1024), (8192, -1024)]
    assert [event.time_s for event in recording.events] == pytest.approx([1e-6, 2e-6, 3e-6])
    assert recording.step_s == pytest.approx(10e-6)
    assert list(chain(*recording.backward_s)) == pytest.approx([1e-6, 2e-6])
    assert (recording.before, recording.after) == ({7: 64}, {4096: 512})


def test_a_history_without_marks_begins_with_its_first_entry() -> None:
    recording = of_snapshot(snapshot(HISTORY, []), before={}, index=0)
    assert recording.step_s == pytest.approx(5e-6)
    assert recording.backward_s == ()
    assert of_snapshot(snapshot([], []), before={}, index=0).step_s == 0


def test_segments_that_grow_tell_nothing_of_fragmentation() -> None:
    fixed, growing = segment(0, (512, "inactive")), segment(4096, (512, "inactive"), expandable=True)
    other = segment(9000, (512, "inactive"), device=1)
    assert segments_of(snapshot([], [], fixed, other), 0) == {0: 512}
    assert segments_of(snapshot([], [], fixed, growing), 0) == {}


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Stands for the allocator's history: what it was told, while every snapshot is HISTORY."""
    told: list[str | None] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled, **_: told.append(enabled))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: snapshot(HISTORY, MARKS, segment(0, (512, "inactive"))))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return told


def test_history_is_recorded_during_one_step(history: list[str | None], batch: Batch) -> None:
    step = FakeStep(lambda: history.append("step"))
    recorded = record_cuda_step(step, batch, DEVICE)
    assert history == ["all", "step", None]
    assert recorded.step is not None
    assert len(recorded.step.events) == 3
    assert recorded.segments == {0: 512}


def test_history_ends_with_a_step_that_fails(history: list[str | None], batch: Batch) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        record_cuda_step(FakeStep(fail), batch, DEVICE)
    assert history == ["all", None]


def test_a_history_that_is_full_has_lost_its_beginning(
    history: list[str | None], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_events, "MAX_ENTRIES", len(HISTORY))
    assert record_cuda_step(FakeStep(), batch, DEVICE).step is None


def test_the_allocators_history_takes_these_arguments() -> None:
    """The private function of the installed torch, which tests without a GPU replace."""
    from inspect import signature

    function: Callable[..., None] = torch.cuda.memory._record_memory_history
    settings = {"context", "stacks", "max_entries", "clear_history", "global_record_annotations"}
    assert settings <= set(signature(function).parameters)
