"""Memory of steps with known allocations, of the real step on two ranks, and of CUDA with a scripted device."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from epbench.cells import Cell, TrainSpec
from epbench.layout import Layout
from epbench.measure import memory, memory_counters
from epbench.measure.memory import MemoryPass, memory_pass, timeline_of_worst_rank
from epbench.measure.memory_counters import DriverView, view_of
from epbench.measure.memory_events import CudaRecording, cpu_storages
from epbench.measure.memory_timeline import MemoryEvent, Recording
from epbench.memory_records import MemoryBytes, MemoryDetail, MemoryTimeline, PeakMemory, RankMemory
from epbench.stacks.data import batches
from epbench.stacks.protocol import Batch, InspectableStep, ResidentTensors, StepDescription, World
from epbench.stacks.qwen3_moe import build
from tests.measure.conftest import FakeStep
from tests.ranks import run_on_ranks
from tests.runner.fake_nvml import FakeNvml

MB = 1_000_000
GPU = torch.device("cuda", 0)


def floats(size_bytes: int) -> torch.Tensor:
    return torch.empty(size_bytes // 4)


class TrainLike(FakeStep):
    """12 MB of parameters, 4 MB of optimizer state, 12 MB of gradients that are freed and made anew in every step.

    ``early`` bytes are allocated and freed before there are gradients, ``late`` bytes beside them.
    """

    def __init__(self, *, early: int, late: int) -> None:
        super().__init__(self._work)
        self.early, self.late = early, late
        self.parameter = torch.nn.Parameter(floats(12 * MB))
        self.moment = floats(4 * MB)
        self.description = StepDescription(3 * MB, 12 * MB, 12 * MB, 4 * MB)

    def _work(self) -> None:
        self.parameter.grad = None
        first = floats(self.early)
        del first
        second = floats(self.late)
        self.parameter.grad = floats(12 * MB)
        del second


class Named(TrainLike):
    """The same, and says which tensors are what."""

    def resident_tensors(self) -> ResidentTensors:
        return ResidentTensors.of([self.parameter], [self.moment])


PEAKS: dict[str, tuple[type[TrainLike], dict[str, int], MemoryBytes]] = {
    "with its gradients": (
        Named,
        {"early": 3 * MB, "late": 5 * MB},
        MemoryBytes(params=12 * MB, grads=12 * MB, optimizer=4 * MB, activations=5 * MB),
    ),
    "before its gradients": (
        Named,
        {"early": 30 * MB, "late": 5 * MB},
        MemoryBytes(params=12 * MB, grads=0, optimizer=4 * MB, activations=30 * MB),
    ),
    "of a stack that names nothing": (
        TrainLike,
        {"early": 30 * MB, "late": 5 * MB},
        MemoryBytes(params=12 * MB, grads=12 * MB, optimizer=4 * MB, activations=18 * MB),
    ),
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_of_a_known_step(name: str, world: World, batch: Batch) -> None:
    kind, sizes, expected = PEAKS[name]
    gc.collect()
    elsewhere = sum(cpu_storages().values())
    step = kind(**sizes)
    step.run(batch)
    found = memory_pass(step, batch, world)
    assert found.memory.memory_bytes == expected.model_copy(update={"other": elsewhere})
    assert sum(found.memory.memory_bytes.model_dump().values()) == found.memory.peak_allocated_bytes
    assert found.memory.peak_reserved_bytes is None
    detail = found.memory.detail
    assert detail.parts_of == ("peak" if isinstance(step, InspectableStep) else "residents")
    assert (detail.note, detail.peak_phase, detail.alloc_retries, detail.driver_process_bytes) == (None,) * 4


def test_a_step_without_allocations_peaks_at_what_is_resident(world: World, batch: Batch) -> None:
    held = floats(2 * MB)
    found = memory_pass(FakeStep(), batch, world).memory
    assert found.peak_allocated_bytes >= held.nbytes
    assert found.memory_bytes.activations is not None
    assert found.memory_bytes.activations < 1000  # the loss itself


def test_views_and_shared_storages_count_once() -> None:
    gc.collect()
    before = sum(cpu_storages().values())
    held = floats(MB)
    views = [held[:10], held.view(10, -1), held.detach()]
    assert sum(cpu_storages().values()) - before == MB
    assert len(views) == 3


# ---- the real step ----


class Seen(NamedTuple):
    """What one rank says of one cell."""

    memory: RankMemory
    timeline: MemoryTimeline | None
    highest_bytes: int
    described: StepDescription


def _pass(cell: Cell, world: World) -> Seen:
    step, (batch,) = build(cell, world), batches(cell, 1, world.device)
    step.run(batch)
    found = memory_pass(step, batch, world)
    assert found.replay is not None
    highest = max(found.replay.envelope().high_bytes)
    return Seen(found.memory, timeline_of_worst_rank(found, world), highest, step.describe())


CELLS = {
    "forward": Cell(layout=Layout(dp_shard=2, ep=2)),
    "backward": Cell(layout=Layout(dp_shard=2), train=TrainSpec(activation_checkpointing="full")),
}


def _on_this_rank() -> dict[str, Seen]:
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    return {phase: _pass(cell, world) for phase, cell in CELLS.items()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Seen]]:
    found: list[dict[str, Seen]] = run_on_ranks(2, _on_this_rank)
    return found


@pytest.mark.parametrize("phase", CELLS)
def test_parts_of_the_real_step(ranks: list[dict[str, Seen]], phase: str) -> None:
    """All of a step's gradients are there after it; at the peak none is, or some are."""
    for seen in (rank[phase] for rank in ranks):
        parts, detail, described = seen.memory.memory_bytes, seen.memory.detail, seen.described
        assert sum(parts.model_dump().values()) == seen.memory.peak_allocated_bytes == seen.highest_bytes
        assert (parts.params, parts.optimizer) == (described.parameter_bytes, described.optimizer_bytes)
        assert (detail.peak_phase, detail.note) == (phase, None)
        assert detail.peak_at_s is not None and detail.step_s is not None
        assert 0 < detail.peak_at_s < detail.step_s
        assert parts.grads is not None
        lowest, highest = (0, 0) if phase == "forward" else (1, described.gradient_bytes - 1)
        assert lowest <= parts.grads <= highest


@pytest.mark.parametrize("phase", CELLS)
def test_the_worst_rank_keeps_its_timeline(ranks: list[dict[str, Seen]], phase: str) -> None:
    peaks = [rank[phase].memory.peak_allocated_bytes for rank in ranks]
    worst = peaks.index(max(peaks))
    timelines = [rank[phase].timeline for rank in ranks]
    (timeline,) = [one for one in timelines if one is not None]
    assert (timeline.rank, timeline.peak_allocated_bytes_per_rank) == (worst, peaks)
    assert timelines[worst] is timeline
    assert max(timeline.high_bytes) == max(peaks)
    assert len(timeline.low_bytes) + len(timeline.high_bytes) <= 2000
    assert len(timeline.model_dump_json()) < 200_000
    ((start_s, end_s),) = timeline.backward_s
    assert 0 < start_s < end_s < timeline.step_s


def test_the_record_of_a_launch_is_of_the_worst_rank() -> None:
    parts = [MemoryBytes(params=1), MemoryBytes(params=2), MemoryBytes(params=3)]
    ranks = [
        RankMemory(
            peak_allocated_bytes=peak, peak_reserved_bytes=reserved, memory_bytes=part, detail=MemoryDetail(rank=n)
        )
        for n, (peak, reserved, part) in enumerate(zip((5, 9, 9), (14, 10, 11), parts, strict=True))
    ]
    found = PeakMemory.of(ranks)
    assert (found.rank, found.peak_allocated_bytes) == (1, 9)
    assert found.peak_reserved_bytes == 14  # of rank 0, which allocates least
    assert found.memory_bytes == parts[1]
    assert found.detail == MemoryDetail(
        rank=1, peak_allocated_bytes_per_rank=[5, 9, 9], peak_reserved_bytes_per_rank=[14, 10, 11]
    )


# ---- CUDA, with a device that says what it was told to ----

P, G, A = 4096, 8192, 16384  # addresses
RECORDED = Recording(
    events=[MemoryEvent(0.1, A, 6 * MB), MemoryEvent(0.2, A, -6 * MB), MemoryEvent(0.3, G, 2 * MB)],
    before={P: 2 * MB},
    after={P: 2 * MB, G: 2 * MB},
    step_s=0.5,
    backward_s=((0.15, 0.35),),
)


class OnGpu(FakeStep):
    """A step whose tensors are on a GPU that is not there."""

    def resident_tensors(self) -> ResidentTensors:
        storages = [SimpleNamespace(data_ptr=lambda address=address: address) for address in (P, G)]
        param, grad = (SimpleNamespace(device=GPU, untyped_storage=lambda held=held: held) for held in storages)
        return ResidentTensors([param], [grad], [])  # type: ignore[list-item]


@pytest.fixture
def cuda_pass(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> Callable[..., MemoryPass]:
    """The pass on a scripted allocator; ``peaks`` are those of the measured and of the recorded step."""

    def run(*, recording: Recording | None = RECORDED, peaks: tuple[int, int] = (8 * MB, 8 * MB)) -> MemoryPass:
        counters = {"num_alloc_retries": 3, "num_ooms": 0}
        bytes_of = {"reserved_bytes.all.peak": 20 * MB, "inactive_split_bytes.all.peak": 7 * MB}
        answers = iter([counters, *(counters | bytes_of | {"allocated_bytes.all.peak": peak} for peak in peaks)])
        for name, stand_in in {
            "memory_stats": lambda _: next(answers),
            "memory_allocated": lambda _: 2 * MB,
            "reset_peak_memory_stats": lambda _: None,
            "synchronize": lambda _: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(memory, "line_up", lambda _: None)
        monkeypatch.setattr(memory, "driver_view", lambda _: DriverView(25 * MB, 30 * MB, 5 * MB))
        monkeypatch.setattr(memory, "record_cuda_step", lambda *_: CudaRecording(recording, {0: 20 * MB}))
        return memory_pass(OnGpu(), batch, World(0, 1, 0, GPU))

    return run


def test_the_cuda_pass_joins_counters_replay_and_driver(cuda_pass: Callable[..., MemoryPass]) -> None:
    found = cuda_pass(peaks=(8 * MB + 24, 8 * MB)).memory
    assert (found.peak_allocated_bytes, found.peak_reserved_bytes) == (8 * MB + 24, 20 * MB)
    assert found.memory_bytes == MemoryBytes(params=2 * MB, grads=0, optimizer=0, activations=6 * MB + 24, other=0)
    assert found.detail == MemoryDetail(
        rank=0,
        parts_of="peak",
        peak_at_s=0.1,
        step_s=0.5,
        peak_phase="forward",
        alloc_retries=3,
        ooms=0,
        fragmentation=0.6,
        inactive_split_bytes=7 * MB,
        driver_process_bytes=25 * MB,
        driver_device_bytes=30 * MB,
        outside_torch_bytes=5 * MB,
    )


NOTES: dict[str, tuple[dict[str, Any], str | None]] = {
    "all agree": ({"peaks": (8 * MB, 8 * MB)}, None),
    "the recorded step needed more": (
        {"peaks": (8 * MB, 9 * MB)},
        "0.007 GiB are allocated at the peak, 0.008 GiB in the recorded step",
    ),
    "the replay missed a tenth": (
        {"peaks": (9 * MB, 9 * MB)},
        "0.008 GiB are allocated at the peak, 0.007 GiB in its replay",
    ),
    "too long to be recorded": (
        {"recording": None},
        "the step allocated more often than is recorded: no timeline",
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_disagrees_is_said(cuda_pass: Callable[..., MemoryPass], name: str) -> None:
    arguments, note = NOTES[name]
    found = cuda_pass(**arguments)
    assert found.memory.detail.note == note
    assert found.memory.detail.parts_of == ("residents" if "recording" in arguments else "peak")
    assert sum(found.memory.memory_bytes.model_dump().values()) == found.memory.peak_allocated_bytes


def test_without_a_replay_there_is_no_timeline(cuda_pass: Callable[..., MemoryPass], world: World) -> None:
    assert timeline_of_worst_rank(cuda_pass(recording=None), world) is None


VIEWS: dict[str, tuple[dict[str, Any], DriverView]] = {
    "this process among others": (
        {"processes": [(1, 10), (42, 25)], "memory_used": 40},
        DriverView(25, 40, 5),
    ),
    "one process under another number, in a container": (
        {"processes": [(1, 25)], "memory_used": 40},
        DriverView(25, 40, 5),
    ),
    "several, none of which is known": ({"processes": [(1, 10), (2, 25)]}, DriverView(None, None, None)),
    "a process whose memory the driver does not tell": (
        {"processes": [(42, None)], "memory_used": 40},
        DriverView(None, 40, None),
    ),
    "a driver that tells nothing": ({}, DriverView(None, None, None)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_drivers_view(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, expected = VIEWS[name]
    nvml = FakeNvml(**{"GPU-1": [answers]})
    assert view_of(nvml, "GPU-1", reserved=20, process_id=42) == expected

    @contextmanager
    def opened() -> Iterator[FakeNvml]:
        yield nvml

    monkeypatch.setattr(memory_counters, "open_nvml", opened)
    monkeypatch.setattr("os.getpid", lambda: 42)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 20)
    assert memory_counters.driver_view(GPU) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_on_cuda_is_the_allocators(batch: Batch) -> None:
    world = World(0, 1, 0, GPU)
    base = torch.cuda.memory_allocated(GPU)
    step = FakeStep(lambda: torch.empty(8 << 20, dtype=torch.uint8, device=GPU))
    found = memory_pass(step, batch, world)
    assert found.memory.peak_allocated_bytes - base == 8 << 20
    assert found.memory.memory_bytes.activations == 8 << 20
    assert found.memory.peak_reserved_bytes is not None
    assert found.memory.peak_reserved_bytes >= found.memory.peak_allocated_bytes
    assert found.replay is not None
    assert found.replay.peak_bytes == found.memory.peak_allocated_bytes
    assert found.memory.detail.note is None
