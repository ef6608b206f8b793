"""What a machine is, read once into plain values, so that every check is a function of them.

Nothing here imports torch: a broken torch must not break the doctor. It is imported in a process of its own, with
a time-out, while the rest is read.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

from epbench.errors import UnfitMachineError
from epbench.nvml import GpuLostError, Nvml, open_nvml
from epbench.provenance import Gpus, find_gpus, nccl_version, torch_cuda_version

__all__ = ["Gpu", "Host", "Machine", "Pair", "Process", "Software", "Wanted", "read_machine"]

_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda else None
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "nccl": nccl, "sees_gpus": cuda}))
"""
_PROBE_TIMEOUT_S = 3.5


@dataclass(frozen=True)
class Process:
    """Something that computes on a GPU. The name is unknown beyond this container."""

    process_id: int
    name: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One visible GPU; None where the driver cannot tell."""

    uuid: str
    name: str
    memory_bytes: int
    lost: bool = False
    utilization: int | None = None
    memory_used: int | None = None
    processes: tuple[Process, ...] | None = None
    mig: bool | None = None
    exclusive: bool | None = None
    ecc_errors: int | None = None
    persistence: bool | None = None
    application_clock: int | None = None
    highest_clock: int | None = None
    reasons: int | None = None
    temperature: int | None = None
    nvlinks: int | None = None


@dataclass(frozen=True)
class Pair:
    """Two GPUs by their index, and whether one can read the other's memory."""

    first: int
    second: int
    p2p: bool | None
    nvlink: bool | None


@dataclass(frozen=True)
class Software:
    """Versions as torch tells, or as far as they are known without it and why it does not tell."""

    torch: str | None
    cuda: str | None
    nccl: str | None
    sees_gpus: bool | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Host:
    """The machine around the GPUs; None where this system does not tell."""

    system: str
    cores: int
    load: float | None
    cpu_quota: float | None
    governor: str | None
    clock_source: str | None
    memory_available_bytes: int | None
    shm_bytes: int | None
    open_files: int
    compiler: str | None
    disk_bytes: Mapping[str, int]  # free, by the directory that is written to


@dataclass(frozen=True)
class Wanted:
    """What a scenario needs: how many cells on how many ranks, and the device that it gets, or why it gets none."""

    name: str
    cells: int
    world_size: int
    device: str | None
    reason: str


@dataclass(frozen=True)
class Machine:
    """All that the checks know."""

    host: Host
    gpus: tuple[Gpu, ...] = ()
    pairs: tuple[Pair, ...] = ()
    driver: str | None = None
    cuda_driver: int | None = None  # 13000 is CUDA 13.0
    has_driver_files: bool = False
    trouble: str | None = None  # why the GPUs could not be listed
    software: Software | None = None  # None: not looked at
    variables: Mapping[str, str] = field(default_factory=dict)
    wanted: Wanted | None = None


def read_machine(
    directories: Sequence[Path],
    *,
    wanted: Wanted | None = None,
    with_software: bool = True,
    variables: Mapping[str, str] = os.environ,
) -> Machine:
    """This machine. ``directories`` are what a run writes to; torch is looked at only ``with_software``."""
    probe = _start_probe(variables) if with_software else None
    visible, trouble = _visible_gpus(variables)
    with open_nvml() as nvml:
        gpus = tuple(_gpu(nvml, visible, index) for index in range(len(visible))) if nvml else ()
        pairs = tuple(_pair(nvml, gpus, *pair) for pair in combinations(range(len(gpus)), 2)) if nvml else ()
        cuda_driver = nvml.ask("cuda_driver") if nvml else None
    return Machine(
        host=_host(directories),
        gpus=gpus,
        pairs=pairs,
        driver=visible.driver,
        cuda_driver=cuda_driver,
        has_driver_files=Path("/dev/nvidiactl").exists(),
        trouble=trouble,
        software=_software(probe) if probe else None,
        variables=dict(variables),
        wanted=wanted,
    )


# ---------------------------------------------------------------- GPUs

_OF_A_GPU = (
    "utilization",
    "memory_used",
    "mig",
    "exclusive",
    "ecc_errors",
    "persistence",
    "application_clock",
    "highest_clock",
    "reasons",
    "temperature",
    "nvlinks",
)


def _visible_gpus(variables: Mapping[str, str]) -> tuple[Gpus, str | None]:
    """The GPUs, or none of them and why."""
    try:
        return find_gpus(variables), None
    except UnfitMachineError as error:
        return Gpus(), str(error)


def _gpu(nvml: Nvml, visible: Gpus, index: int) -> Gpu:
    uuid = visible.uuids[index]
    known: dict[str, Any] = {"uuid": uuid, "name": visible.names[index], "memory_bytes": visible.memory_bytes[index]}
    try:
        known |= {what: nvml.ask(what, uuid) for what in _OF_A_GPU}
        processes = nvml.ask("processes", uuid)
    except GpuLostError:
        return Gpu(**known, lost=True)
    if processes is not None:
        known["processes"] = tuple(Process(number, _name_of(number), size) for number, size in processes)
    return Gpu(**known)


def _pair(nvml: Nvml, gpus: Sequence[Gpu], first: int, second: int) -> Pair:
    uuids = gpus[first].uuid, gpus[second].uuid
    try:
        return Pair(first, second, p2p=nvml.ask("p2p", *uuids), nvlink=nvml.ask("p2p_nvlink", *uuids))
    except GpuLostError:
        return Pair(first, second, p2p=None, nvlink=None)


def _name_of(process_id: int) -> str | None:
    return _read(f"/proc/{process_id}/comm")


# ---------------------------------------------------------------- software


def _start_probe(variables: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _PROBE],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PYTORCH_NVML_BASED_CUDA_CHECK": "1", **variables},
    )  # fmt: skip


def _software(probe: "subprocess.Popen[str]") -> Software:
    with probe:
        try:
            output, errors = probe.communicate(timeout=_PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            probe.kill()
            return _installed(f"not imported within {_PROBE_TIMEOUT_S:g} s")
    if probe.returncode == 0:
        return Software(**json.loads(output.splitlines()[-1]))
    lines = [line for line in errors.splitlines() if line.strip()]
    return _installed(f"cannot be imported: {lines[-1][:200]}" if lines else f"import ended with {probe.returncode}")


def _installed(trouble: str) -> Software:
    """What the packages say, when torch itself does not."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Software(None, None, None, trouble="not installed")
    return Software(version, torch_cuda_version(), nccl_version(), trouble=trouble)


# ---------------------------------------------------------------- host


def _host(directories: Sequence[Path]) -> Host:
    return Host(
        system=sys.platform,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        cpu_quota=_cpu_quota(Path("/sys/fs/cgroup")),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        clock_source=_read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        memory_available_bytes=_available_memory(_read("/proc/meminfo") or ""),
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        compiler=next(filter(None, map(shutil.which, _compilers())), None),
        disk_bytes={str(path): shutil.disk_usage(_existing(path)).free for path in directories},
    )


def _compilers() -> list[str]:
    return [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]


def _existing(path: Path) -> Path:
    """The nearest directory that is there already."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of time that the control group may use (v2, then v1); None: as much as there is."""
    quota, _, period = (_read(str(root / "cpu.max")) or "").partition(" ")
    if not period:
        quota = _read(str(root / "cpu/cpu.cfs_quota_us")) or ""
        period = _read(str(root / "cpu/cpu.cfs_period_us")) or ""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _available_memory(meminfo: str) -> int | None:
    line = next((line for line in meminfo.splitlines() if line.startswith("MemAvailable:")), None)
    return int(line.split()[1]) * 1024 if line else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
