"""What the memory pass leaves: the peak and its parts, what the allocator and the driver say, one step's timeline.

A value that a device cannot give is ``None``; the CPU has no allocator that reserves and no driver that counts.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from epbench.cells import Frozen

__all__ = ["MemoryBytes", "MemoryDetail", "MemoryTimeline", "PeakMemory", "Phase", "RankMemory"]

Phase = Literal["forward", "backward", "optimizer"]


class MemoryBytes(Frozen):
    """Memory of the worst rank by what it holds at its peak."""

    params: int | None = None
    grads: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    other: int | None = None


class MemoryDetail(Frozen):
    """Of the rank that allocates most, but for the two lists, which have every rank's in order."""

    rank: int | None = None
    peak_allocated_bytes_per_rank: list[int] = Field(default_factory=list)
    peak_reserved_bytes_per_rank: list[int] = Field(default_factory=list, description="empty: nothing is reserved")
    parts_of: Literal["peak", "residents"] | None = Field(
        None, description="peak: what was alive then; residents: the stack does not name its tensors"
    )
    peak_at_s: float | None = Field(None, description="from the beginning of the recorded step, of its duration too")
    step_s: float | None = Field(None, description="of the recorded step, which is slower than a timed one")
    peak_phase: Phase | None = Field(None, description="optimizer: after the last backward; None: no marks in the step")
    alloc_retries: int | None = Field(None, description="from the launch's start to the last timed step")
    ooms: int | None = Field(None, description="likewise; errors that were caught, or the launch would have ended")
    fragmentation: float | None = Field(None, description="at the peak: free but not returnable, share of reserved")
    inactive_split_bytes: int | None = Field(None, description="the allocator's own peak of what is not returnable")
    driver_process_bytes: int | None = Field(None, description="of this rank's process, as the driver counts it")
    driver_device_bytes: int | None = Field(None, description="of all processes on the device, likewise")
    outside_torch_bytes: int | None = Field(None, description="of the process and not reserved: CUDA context, NCCL")
    note: str | None = Field(None, description="where two ways of counting disagree, or one of them failed")


class RankMemory(Frozen):
    """Bytes of one rank over one step; the five parts sum to ``peak_allocated_bytes``."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int | None = Field(description="None: the CPU's allocator reserves nothing")
    memory_bytes: MemoryBytes
    detail: MemoryDetail = MemoryDetail()


class PeakMemory(Frozen):
    """Of the rank that allocates most, the first of those, but for ``peak_reserved_bytes``, the highest of all ranks.

    The rank that reserves most need not be the one that allocates most; ``detail`` has every rank's peaks of both.
    """

    rank: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int | None = Field(description="the highest of all ranks, not only of ``rank``")
    memory_bytes: MemoryBytes
    detail: MemoryDetail = MemoryDetail()

    @classmethod
    def of(cls, ranks: Sequence[RankMemory]) -> "PeakMemory":
        """The worst of all ranks, given in order."""
        allocated = [one.peak_allocated_bytes for one in ranks]
        reserved = [one.peak_reserved_bytes for one in ranks if one.peak_reserved_bytes is not None]
        rank = allocated.index(max(allocated))
        worst = ranks[rank]
        lists = {"peak_allocated_bytes_per_rank": allocated, "peak_reserved_bytes_per_rank": reserved}
        return cls(
            rank=rank,
            peak_allocated_bytes=worst.peak_allocated_bytes,
            peak_reserved_bytes=max(reserved, default=None),
            memory_bytes=worst.memory_bytes,
            detail=worst.detail.model_copy(update=lists),
        )


class MemoryTimeline(Frozen):
    """``cells/<id>/memory.json``: allocated bytes of the worst rank over one step.

    From ``time_s[i]`` to the next entry they were never below ``low_bytes[i]`` nor above ``high_bytes[i]``, and
    reached both. At most 2000 values in all, so a bucket of time holds many events where there are many.
    """

    rank: int
    step_s: float
    time_s: list[float] = Field(description="from the beginning of the step")
    low_bytes: list[int]
    high_bytes: list[int]
    backward_s: list[tuple[float, float]] = Field(description="beginning and end of each backward, if it is marked")
    peak_allocated_bytes_per_rank: list[int]
