"""Peak memory of known allocation patterns; every expected number is the sum of the tensors in the step."""

import gc
from typing import Any

import pytest
import torch

from epbench.measure.memory import memory_pass, peak_rise_bytes, resident_bytes
from epbench.stacks.protocol import Batch, StepDescription, World
from tests.measure.conftest import FakeStep

MB = 1_000_000


def floats(size_bytes: int) -> torch.Tensor:
    return torch.empty(size_bytes // 4)


class TrainLike(FakeStep):
    """12 MB of parameters, 4 MB of optimizer state, 12 MB of gradients that are freed and made anew."""

    def __init__(self) -> None:
        super().__init__(self._work)
        self.parameter = torch.nn.Parameter(floats(12 * MB))
        self.moment = floats(4 * MB)
        self.description = StepDescription(3 * MB, 12 * MB, 12 * MB, 4 * MB)

    def _work(self) -> None:
        self.parameter.grad = None
        first, second = floats(3 * MB), floats(5 * MB)
        del first
        self.parameter.grad = floats(12 * MB)
        del second


def test_the_peak_of_a_known_step(world: World, batch: Batch) -> None:
    gc.collect()
    before = resident_bytes()
    step = TrainLike()
    step.run(batch)
    memory = memory_pass(step, batch, world)
    # At the peak: parameters, moment and second; plus the new gradients, which replaced the freed ones.
    assert memory.peak_allocated_bytes - before == (12 + 4 + 5 + 12) * MB
    assert (memory.params, memory.grads, memory.optimizer) == (12 * MB, 12 * MB, 4 * MB)
    assert memory.activations == 5 * MB
    assert memory.other == before
    assert memory.peak_reserved_bytes is None


def test_a_step_without_allocations_peaks_at_what_is_resident(world: World, batch: Batch) -> None:
    held = floats(2 * MB)
    step = FakeStep()
    memory = memory_pass(step, batch, world)
    assert memory.peak_allocated_bytes >= held.nbytes
    assert memory.activations < 1000  # the loss itself


def test_a_description_larger_than_the_peak_gives_way(world: World, batch: Batch) -> None:
    step = FakeStep()
    step.description = StepDescription(1, 10**15, 10**15, 10**15)
    memory = memory_pass(step, batch, world)
    assert memory.params == memory.peak_allocated_bytes
    assert (memory.grads, memory.optimizer, memory.activations, memory.other) == (0, 0, 0, 0)


def test_views_and_shared_storages_count_once() -> None:
    gc.collect()
    before = resident_bytes()
    held = floats(MB)
    views = [held[:10], held.view(10, -1), held.detach()]
    assert resident_bytes() - before == MB
    assert len(views) == 3


def event(ts: float, size: int, total: int, device: int = 0) -> dict[str, Any]:
    args = {"Total Allocated": total, "Bytes": size, "Device Type": device, "Ev Idx": int(ts)}
    return {"name": "[memory]", "ts": ts, "args": args}


def test_the_rise_counts_from_the_total_before_the_first_event() -> None:
    events = [event(2, 50, 150), event(1, 20, 100), event(3, -70, 80), {"name": "aten::mm", "ts": 0}]
    assert peak_rise_bytes(events) == 150 - 80


def test_blocks_freed_on_threads_that_are_not_profiled_leave_the_total() -> None:
    assert peak_rise_bytes([event(1, 100, 100), event(2, 100, 100)]) == 100


def test_other_devices_and_falling_totals_are_no_rise() -> None:
    assert peak_rise_bytes([event(1, 10**9, 10**9, device=1)]) == 0
    assert peak_rise_bytes([event(1, -50, 50), event(2, -50, 0)]) == 0


def test_parts_sum_to_the_peak(world: World, batch: Batch) -> None:
    step = TrainLike()
    step.run(batch)
    memory = memory_pass(step, batch, world)
    parts = memory.memory_bytes.model_dump()
    assert sum(parts.values()) == memory.peak_allocated_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_on_cuda_is_the_allocators(batch: Batch) -> None:
    device = torch.device("cuda", 0)
    world = World(0, 1, 0, device)
    base = torch.cuda.memory_allocated(device)
    step = FakeStep(lambda: torch.empty(8 << 20, dtype=torch.uint8, device=device))
    memory = memory_pass(step, batch, world)
    assert memory.peak_allocated_bytes - base == 8 << 20
    assert memory.activations == 8 << 20
    assert memory.peak_reserved_bytes is not None
    assert memory.peak_reserved_bytes >= memory.peak_allocated_bytes
