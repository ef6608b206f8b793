"""How much device memory one steady training step needs, what holds it at the worst moment, and when that is.

A pass of its own, after the timing. On CUDA the peaks are the allocator's own counters over a step that nothing
watches; a second step is recorded (:mod:`epbench.measure.memory_events`) and replayed
(:mod:`epbench.measure.memory_timeline`) for what the counters cannot tell: which blocks were alive at the peak, its
time and phase, the timeline. On the CPU, which keeps no counters, the recorded step gives the peak as well.

The five parts sum to the allocated peak. Of a stack that names its tensors (``resident_tensors``) they are what was
alive at the peak: gradients that do not exist yet are not counted. Of any other they are the resident shares that it
describes, ``other`` is what else was there when the step began, and ``activations`` all that the step added.
"""

import gc
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from epbench.measure.memory_counters import AllocatorFailures, AllocatorPeaks, driver_view
from epbench.measure.memory_events import record_cpu_step, record_cuda_step, residents
from epbench.measure.memory_timeline import Parts, Replay, phase_at, split_peak
from epbench.measure.ranks import line_up
from epbench.memory_records import MemoryBytes, MemoryDetail, MemoryTimeline, RankMemory

if TYPE_CHECKING:
    from epbench.stacks.protocol import Batch, Step, StepDescription, World

__all__ = ["MemoryPass", "memory_pass", "timeline_of_worst_rank"]

AGREE_WITHIN = 0.01  # between two ways of counting one peak
GIB = 2**30


@dataclass(frozen=True)
class MemoryPass:
    """What one rank found; no replay if its step could not be recorded."""

    memory: RankMemory
    replay: Replay | None


def memory_pass(step: "Step", batch: "Batch", world: "World") -> MemoryPass:
    """Runs two steps and says what they needed. A collective: the steps communicate.

    Call it when at least one step has run, so that gradients and optimizer state are resident.
    """
    gc.collect()
    line_up(world)
    return _cuda_pass(step, batch, world) if world.device.type == "cuda" else _cpu_pass(step, batch, world)


def _cpu_pass(step: "Step", batch: "Batch", world: "World") -> MemoryPass:
    recording, before = record_cpu_step(step, batch)
    replay = Replay(recording)
    peak, resident = replay.peak_bytes, int(replay.levels[0])
    after, described = residents(step, world.device), step.describe()
    seen = _Seen(replay, before, after, described, peak_bytes=peak, resident_bytes=resident)
    memory = RankMemory(
        peak_allocated_bytes=peak,
        peak_reserved_bytes=None,
        memory_bytes=seen.parts(),
        detail=MemoryDetail(rank=world.rank, **seen.moment(), note=disagreement(peak, replay)),
    )
    return MemoryPass(memory, replay)


def _cuda_pass(step: "Step", batch: "Batch", world: "World") -> MemoryPass:
    device = world.device
    failures = AllocatorFailures.read(device)
    resident = torch.cuda.memory_allocated(device)
    AllocatorPeaks.reset(device)
    step.run(batch)
    peaks = AllocatorPeaks.read(device)
    driver = driver_view(device)
    before = residents(step, device)
    AllocatorPeaks.reset(device)
    recorded = record_cuda_step(step, batch, device)
    watched = AllocatorPeaks.read(device)
    replay = None if recorded.step is None else Replay(recorded.step)
    after, described = residents(step, device), step.describe()
    seen = _Seen(replay, before, after, described, peak_bytes=peaks.allocated, resident_bytes=resident)
    detail = MemoryDetail(
        rank=world.rank,
        **seen.moment(),
        **asdict(failures),
        **asdict(driver),
        fragmentation=None if replay is None else replay.fragmentation(recorded.segments),
        inactive_split_bytes=peaks.inactive_split,
        note=disagreement(peaks.allocated, replay, watched_bytes=watched.allocated),
    )
    memory = RankMemory(
        peak_allocated_bytes=peaks.allocated,
        peak_reserved_bytes=peaks.reserved,
        memory_bytes=seen.parts(),
        detail=detail,
    )
    return MemoryPass(memory, replay)


@dataclass(frozen=True)
class _Seen:
    """A recorded step with what is needed to read it; residents are those before and after it."""

    replay: Replay | None
    before: Parts
    after: Parts
    described: "StepDescription"
    peak_bytes: int
    resident_bytes: int  # when the step began

    @property
    def is_told_apart(self) -> bool:
        """Whether it is known which blocks are what."""
        return bool(self.after) and self.replay is not None

    def parts(self) -> MemoryBytes:
        """The peak by what held it."""
        if self.replay is not None and self.is_told_apart:
            return self.replay.parts(before=self.before, after=self.after, peak_bytes=self.peak_bytes)
        shares = {
            "params": self.described.parameter_bytes,
            "grads": self.described.gradient_bytes,
            "optimizer": self.described.optimizer_bytes,
        }
        return split_peak(self.peak_bytes, **shares, other=max(0, self.resident_bytes - sum(shares.values())))

    def moment(self) -> dict[str, Any]:
        """Fields of MemoryDetail: of what the parts are, and when the peak was."""
        found: dict[str, Any] = {"parts_of": "peak" if self.is_told_apart else "residents"}
        if self.replay is not None:
            recording, peak_at_s = self.replay.recording, float(self.replay.times_s[self.replay.peak])
            found |= {"peak_at_s": peak_at_s, "step_s": recording.step_s}
            found["peak_phase"] = phase_at(peak_at_s, recording.backward_s)
        return found


def disagreement(peak_bytes: int, replay: Replay | None, *, watched_bytes: int | None = None) -> str | None:
    """What differs by over 1 % of the measured peak, as a sentence; None if all ways of counting agree.

    ``watched_bytes`` is the allocator's peak in the recorded step, where there is one apart from the measured one.
    """
    if replay is None:
        return "the step allocated more often than is recorded: no timeline"
    kept_bytes = sum(replay.recording.after.values())
    counts = (
        ("at the peak", peak_bytes, "in the recorded step", peak_bytes if watched_bytes is None else watched_bytes),
        ("at the peak", peak_bytes, "in its replay", replay.peak_bytes),
        ("after the step", kept_bytes, "in its replay", int(replay.levels[-1])),
    )
    apart = [
        f"{counted / GIB:.3f} GiB are allocated {when}, {other / GIB:.3f} GiB {where}"
        for when, counted, where, other in counts
        if abs(counted - other) > AGREE_WITHIN * peak_bytes
    ]
    return "; ".join(apart) or None


def timeline_of_worst_rank(found: MemoryPass, world: "World") -> MemoryTimeline | None:
    """The timeline of the first rank with the highest peak, on that rank; None on the others. A collective."""
    peaks = _on_all_ranks(found.memory.peak_allocated_bytes, world)
    if world.rank != peaks.index(max(peaks)) or found.replay is None:
        return None
    recording = found.replay.recording
    return MemoryTimeline(
        rank=world.rank,
        step_s=recording.step_s,
        **found.replay.envelope()._asdict(),
        backward_s=list(recording.backward_s),
        peak_allocated_bytes_per_rank=peaks,
    )


def _on_all_ranks(value: int, world: "World") -> list[int]:
    if world.world_size == 1:
        return [value]
    every = torch.zeros(world.world_size, dtype=torch.int64, device=world.device)
    every[world.rank] = value
    dist.all_reduce(every)
    return [int(one) for one in every.tolist()]
