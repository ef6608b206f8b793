"""How much device memory one steady training step needs, and what holds it.

A pass of its own, after the timing: on CUDA the allocator's peak counters over one step; on the CPU, which
keeps no such counters, the ``[memory]`` events of the profiler, which slow the step down and so must not be
timed.

The parts sum to the allocated peak. ``params``, ``grads`` and ``optimizer`` are the resident shares that
the stack describes; ``other`` is what else is resident when a step begins (the batch, buffers, caches);
``activations`` is all that a step adds on top at its worst moment: saved activations, gathered weights,
communication buffers and temporaries.

**CPU.** The profiler knows a block only if it was on when the block was allocated. Two steps are therefore
recorded and the second is read: what the first allocated and the second frees (the gradients) is then
known. An event's ``Total Allocated`` counts known blocks of the whole process, so the step's rise above its
start is the largest total minus the total before the first event. What was resident at the start is counted
directly, as the storages of all living tensors.
"""

import gc
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from epbench.measure.ranks import line_up
from epbench.records import MemoryBytes

if TYPE_CHECKING:
    from epbench.stacks.protocol import Batch, Step, StepDescription, World

__all__ = ["RankMemory", "memory_pass", "peak_rise_bytes", "resident_bytes"]


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank over one step; the five parts sum to ``peak_allocated_bytes``."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int | None  # None: the CPU's allocator reserves nothing
    params: int
    grads: int
    optimizer: int
    activations: int
    other: int

    @property
    def memory_bytes(self) -> MemoryBytes:
        """The parts as a record."""
        return MemoryBytes(
            params=self.params,
            grads=self.grads,
            optimizer=self.optimizer,
            activations=self.activations,
            other=self.other,
        )


def memory_pass(step: "Step", batch: "Batch", world: "World") -> RankMemory:
    """Runs one or two steps and says what they needed. A collective: the steps communicate.

    Call it when at least one step has run, so that gradients and optimizer state are resident.
    """
    gc.collect()
    line_up(world)
    if world.device.type == "cuda":
        return _cuda_pass(step, batch, world)
    _profiled_step(step, batch)
    resident = resident_bytes()
    rise = peak_rise_bytes(_profiled_step(step, batch))
    return _parts(step.describe(), resident=resident, peak=resident + rise, reserved=None)


def _cuda_pass(step: "Step", batch: "Batch", world: "World") -> RankMemory:
    torch.cuda.reset_peak_memory_stats(world.device)
    resident = torch.cuda.memory_allocated(world.device)
    step.run(batch)
    torch.cuda.synchronize(world.device)
    peak = torch.cuda.max_memory_allocated(world.device)
    reserved = torch.cuda.max_memory_reserved(world.device)
    return _parts(step.describe(), resident=resident, peak=peak, reserved=reserved)


def _parts(described: "StepDescription", *, resident: int, peak: int, reserved: int | None) -> RankMemory:
    """Splits the peak; a stack that describes more than was ever there gives way to what was measured."""
    params = min(described.parameter_bytes, peak)
    grads = min(described.gradient_bytes, peak - params)
    optimizer = min(described.optimizer_bytes, peak - params - grads)
    left = peak - params - grads - optimizer
    other = min(left, max(0, resident - params - grads - optimizer))
    return RankMemory(peak, reserved, params, grads, optimizer, activations=left - other, other=other)


# ---------------------------------------------------------------- CPU


def resident_bytes() -> int:
    """Bytes of the CPU storages of all tensors alive in this process, each storage once.

    Python sees every tensor that a module, an optimizer or a closure holds; gradients are reached through
    their parameters. A storage that only C++ holds between steps is not seen.
    """
    tensors = [thing for thing in gc.get_objects() if _is_plain_tensor(thing)]
    gradients = [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return sum(dict(_storages([*tensors, *gradients])).values())


def _is_plain_tensor(thing: Any) -> bool:
    """A strided CPU tensor with memory of its own: a DTensor's memory is counted through its local tensor."""
    if type(thing) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return bool(thing.device.type == "cpu" and thing.layout == torch.strided)


def _storages(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[int, int]]:
    for tensor in filter(_is_plain_tensor, tensors):
        storage = tensor.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()


def _profiled_step(step: "Step", batch: "Batch") -> list[dict[str, Any]]:
    """Runs one step; returns the trace's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.run(batch)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "memory.json"
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_bytes())["traceEvents"]
    return events


def peak_rise_bytes(events: Iterable[dict[str, Any]]) -> int:
    """How far allocated CPU memory rose above its start, from a trace's ``[memory]`` events; never below 0.

    ``Total Allocated`` rather than a sum of ``Bytes``: a block freed on a thread that is not profiled has no
    event of its own, but the next total knows of it.
    """
    memory = sorted(
        (event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0),
        key=lambda event: (event["ts"], event["args"]["Ev Idx"]),
    )
    if not memory:
        return 0
    totals: list[int] = [event["args"]["Total Allocated"] for event in memory]
    before: int = totals[0] - memory[0]["args"]["Bytes"]
    return max(0, max(totals) - before)
