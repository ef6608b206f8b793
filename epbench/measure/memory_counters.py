"""What the CUDA allocator and NVIDIA's driver count by themselves; each answer is None where there is none."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from epbench.nvml import Nvml, open_nvml

__all__ = ["AllocatorFailures", "AllocatorPeaks", "DriverView", "driver_view", "view_of"]


@dataclass(frozen=True)
class AllocatorPeaks:
    """The largest values since :meth:`reset`, in bytes."""

    allocated: int
    reserved: int
    inactive_split: int  # free, in segments that cannot be returned whole

    @staticmethod
    def reset(device: torch.device) -> None:
        """Peaks start anew from what is allocated now."""
        torch.cuda.reset_peak_memory_stats(device)

    @classmethod
    def read(cls, device: torch.device) -> "AllocatorPeaks":
        """Peaks since the last reset, when the device has finished."""
        torch.cuda.synchronize(device)
        stats: dict[str, Any] = torch.cuda.memory_stats(device)
        names = ("allocated_bytes", "reserved_bytes", "inactive_split_bytes")
        return cls(*(int(stats[f"{name}.all.peak"]) for name in names))


@dataclass(frozen=True)
class AllocatorFailures:
    """Counted since the process began; a launch is a process of its own."""

    alloc_retries: int  # allocations that succeeded only after all cached blocks were returned
    ooms: int

    @classmethod
    def read(cls, device: torch.device) -> "AllocatorFailures":
        """As they stand now."""
        stats: dict[str, Any] = torch.cuda.memory_stats(device)
        return cls(int(stats["num_alloc_retries"]), int(stats["num_ooms"]))


@dataclass(frozen=True)
class DriverView:
    """Bytes on one GPU as the driver counts them; named as in :class:`epbench.memory_records.MemoryDetail`."""

    driver_process_bytes: int | None  # of this process
    driver_device_bytes: int | None  # of all processes
    outside_torch_bytes: int | None  # of this process and not reserved by the allocator: CUDA context, NCCL's buffers


def driver_view(device: torch.device) -> DriverView:
    """What NVML says now of this rank's GPU."""
    gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    with open_nvml() as nvml:
        if nvml is None:
            return DriverView(None, None, None)
        return view_of(nvml, gpu, reserved=torch.cuda.memory_reserved(device), process_id=os.getpid())


def view_of(nvml: Nvml, gpu: str, *, reserved: int, process_id: int) -> DriverView:
    """The view of one process. In a container the driver knows it by another number: a single one must be it."""
    listed = dict(nvml.ask("processes", gpu) or ())
    used = listed.get(process_id, next(iter(listed.values())) if len(listed) == 1 else None)
    return DriverView(used, nvml.ask("memory_used", gpu), None if used is None else used - reserved)
