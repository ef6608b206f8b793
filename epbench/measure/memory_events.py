"""One step's allocations and frees as one stream, from the CPU's profiler or the CUDA allocator's history.

**CPU.** The profiler writes a ``[memory]`` event for each block, but it knows a block only if it was on when the
block was allocated, and a free only on a thread that it follows. Two steps are therefore recorded and the second is
read: what the first allocated and the second frees (the gradients) is then known. Its running total, ``Total
Allocated``, is not used: a block freed on a thread of gloo's stays in it for ever (measured: 4 to 9 % of the tiny
model's peak, on one rank of two). What is alive before and after the step is found as the storages of all tensors.

**CUDA.** The allocator keeps its history while it is asked to, without stacks, and a snapshot before and after tells
what is alive, with exact sizes. The history holds the bytes that were requested; they are rounded up here as the
allocator does it, to 512. A free counts when it is requested, as in ``torch.cuda.memory_allocated``.
"""

import gc
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile, record_function

from epbench.measure.memory_timeline import MemoryEvent, Parts, Recording
from epbench.stacks.protocol import BACKWARD_MARK, InspectableStep

if TYPE_CHECKING:
    from epbench.stacks.protocol import Batch, Step

__all__ = [
    "CudaRecording",
    "cpu_storages",
    "of_profile",
    "of_snapshot",
    "record_cpu_step",
    "record_cuda_step",
    "residents",
    "segments_of",
]

STEP = "epbench:memory"
MAX_ENTRIES = 1_000_000  # of the allocator's history, some 200 bytes of host memory each
CUDA_GRANULE = 512  # bytes that every block of CUDA's caching allocator is a multiple of

Json = dict[str, Any]
Span = tuple[float, float]


def residents(step: "Step", device: torch.device) -> Parts:
    """Address of every storage that the step calls its parameters, gradients or optimizer state: which it is.

    Empty if the stack does not tell.
    """
    if not isinstance(step, InspectableStep):
        return {}
    named = step.resident_tensors()._asdict()
    return {
        tensor.untyped_storage().data_ptr(): part
        for part, tensors in named.items()
        for tensor in map(_local, tensors)
        if tensor.device.type == device.type
    }


def _local(tensor: Tensor) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


# ---------------------------------------------------------------- CPU


def cpu_storages() -> dict[int, int]:
    """The CPU storages of all tensors alive in this process: address -> bytes.

    Python sees every tensor that a module, an optimizer or a closure holds; gradients are reached through
    their parameters. A storage that only C++ holds between steps is not seen.
    """
    tensors = [thing for thing in gc.get_objects() if _is_plain_tensor(thing)]
    gradients = [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return dict(_storages([*tensors, *gradients]))


def _is_plain_tensor(thing: Any) -> bool:
    """A strided CPU tensor with memory of its own: a DTensor's memory is counted through its local tensor."""
    if type(thing) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return bool(thing.device.type == "cpu" and thing.layout == torch.strided)


def _storages(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    for tensor in filter(_is_plain_tensor, tensors):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            yield storage.data_ptr(), storage.nbytes()


def record_cpu_step(step: "Step", batch: "Batch") -> tuple[Recording, Parts]:
    """Runs two steps; of the second the recording, and its residents as they were before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.run(batch)
        before, named = cpu_storages(), residents(step, torch.device("cpu"))
        with record_function(STEP):
            step.run(batch)
    after = cpu_storages()
    return of_profile(_trace_events(profiler), before=before, after=after), named


def _trace_events(profiler: profile) -> list[Json]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "memory.json"
        profiler.export_chrome_trace(str(path))
        events: list[Json] = json.loads(path.read_bytes())["traceEvents"]
    return events


def of_profile(trace: Sequence[Json], *, before: Mapping[int, int], after: Mapping[int, int]) -> Recording:
    """The step inside the annotation ``epbench:memory`` of a chrome trace."""
    (start_us, end_us), *_ = _annotated(trace, STEP)
    memory = sorted(
        (event for event in trace if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0),
        key=lambda event: (event["ts"], event["args"]["Ev Idx"]),
    )
    return Recording(
        events=[
            MemoryEvent((event["ts"] - start_us) * 1e-6, event["args"]["Addr"], event["args"]["Bytes"])
            for event in memory
            if event["ts"] >= start_us
        ],
        before=before,
        after=after,
        step_s=(end_us - start_us) * 1e-6,
        backward_s=_within(_annotated(trace, BACKWARD_MARK), start_us, end_us),
    )


def _annotated(trace: Iterable[Json], name: str) -> list[Span]:
    """Beginning and end in microseconds of every annotation of a name, in order."""
    return sorted((event["ts"], event["ts"] + event["dur"]) for event in trace if event.get("name") == name)


def _within(spans: Iterable[Span], start_us: float, end_us: float) -> tuple[Span, ...]:
    """The spans inside of a step, in seconds from its beginning."""
    inside = [span for span in spans if start_us <= span[0] and span[1] <= end_us]
    return tuple(((first - start_us) * 1e-6, (last - start_us) * 1e-6) for first, last in inside)


# ---------------------------------------------------------------- CUDA


@dataclass(frozen=True)
class CudaRecording:
    """A recorded step, None if there was more history than is kept, and what the driver gave: address -> bytes."""

    step: Recording | None
    segments: dict[int, int]


def record_cuda_step(step: "Step", batch: "Batch", device: torch.device) -> CudaRecording:
    """Runs one step while the allocator keeps its history."""
    with _history():
        before = torch.cuda.memory._snapshot()
        with record_function(STEP):
            step.run(batch)
        torch.cuda.synchronize(device)
        after = torch.cuda.memory._snapshot()
    index = device.index
    overflown = len(after["device_traces"][index]) >= MAX_ENTRIES
    recording = None if overflown else of_snapshot(after, before=_blocks(before, index), index=index)
    return CudaRecording(recording, segments_of(after, index))


@contextmanager
def _history() -> Iterator[None]:
    """Allocator history without stacks, with annotations; off again whatever happens, which also forgets it."""
    torch.cuda.memory._record_memory_history(
        "all",
        context=None,
        stacks="python",
        max_entries=MAX_ENTRIES,
        clear_history=True,
        global_record_annotations=True,
    )
    try:
        yield
    finally:
        torch.cuda.memory._record_memory_history(None)


def of_snapshot(snapshot: Json, *, before: Mapping[int, int], index: int) -> Recording:
    """The step inside the annotation ``epbench:memory`` of the history in a snapshot, of device ``index``."""
    marks = _marks(snapshot)
    trace: list[Json] = snapshot["device_traces"][index]
    (start_us, end_us), *_ = marks.get(STEP) or [_extent(trace)]
    return Recording(
        events=[
            MemoryEvent(max(0, entry["time_us"] - start_us) * 1e-6, entry["addr"], _change(entry))
            for entry in trace
            if entry["action"] in {"alloc", "free_requested"}
        ],
        before=before,
        after=_blocks(snapshot, index),
        step_s=(end_us - start_us) * 1e-6,
        backward_s=_within(marks.get(BACKWARD_MARK, []), start_us, end_us),
    )


def _change(entry: Json) -> int:
    rounded = -(-int(entry["size"]) // CUDA_GRANULE) * CUDA_GRANULE
    return rounded if entry["action"] == "alloc" else -rounded


def _marks(snapshot: Json) -> dict[str, list[Span]]:
    """Beginning and end in microseconds of every annotation, by name; one that has not ended is left out."""
    found: dict[str, list[Span]] = {}
    started: dict[str, list[float]] = {}
    for mark in snapshot.get("external_annotations", ()):
        if mark["stage"] == "START":
            started.setdefault(mark["name"], []).append(mark["time_us"])
        elif started.get(mark["name"]):
            found.setdefault(mark["name"], []).append((started[mark["name"]].pop(), mark["time_us"]))
    return {name: sorted(spans) for name, spans in found.items()}


def _extent(trace: Sequence[Json]) -> Span:
    """First and last time of a history without marks."""
    return (trace[0]["time_us"], trace[-1]["time_us"]) if trace else (0, 0)


def _blocks(snapshot: Json, index: int) -> dict[int, int]:
    """The blocks that tensors hold: address -> bytes."""
    return {
        block["address"]: block["size"]
        for segment in snapshot["segments"]
        if segment["device"] == index
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }


def segments_of(snapshot: Json, index: int) -> dict[int, int]:
    """What the allocator got from the driver: address -> bytes; nothing where segments grow (expandable ones).

    Those can be returned page by page, so what is stuck in them cannot be told from blocks.
    """
    segments = [segment for segment in snapshot["segments"] if segment["device"] == index]
    if any(segment.get("is_expandable") for segment in segments):
        return {}
    return {segment["address"]: segment["total_size"] for segment in segments}
