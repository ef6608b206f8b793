"""Checks of the machine around the GPUs, all of which a CPU run needs too."""

from collections.abc import Callable

from epbench.doctor.machine import Machine
from epbench.records import MachineCheck

__all__ = ["host_checks"]

_GIB = 2**30
_SHM_BYTES = _GIB  # Docker's default of 64 MiB is too small for NCCL between ranks without peer access
_MEMORY_BYTES = 4 * _GIB  # four ranks that have imported torch
_DISK_FAILS_BYTES = _GIB // 4
_DISK_WARNS_BYTES = 5 * _GIB
_OPEN_FILES = 1024
_BUSY = 0.5  # load for each core
_SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "xen")  # read by a system call or a slow bus


def host_checks(machine: Machine) -> list[MachineCheck]:
    """All checks of the host."""
    return [check(machine) for check in _CHECKS]


def _check(name: str, found: str, *, trouble: bool | None, fix: str) -> MachineCheck:
    """``trouble`` None: this system does not tell."""
    if trouble is None:
        return MachineCheck(name=name, status="unknown", found=found)
    return MachineCheck(name=name, status="warn" if trouble else "ok", found=found, fix=fix if trouble else "")


def _system(machine: Machine) -> MachineCheck:
    if machine.host.system != "linux":
        found = f"{machine.host.system}: that no process is left behind rests on Linux"
        return MachineCheck(name="system", status="fail", found=found, fix="run on Linux, or in a Linux container")
    return MachineCheck(name="system", status="ok", found="linux")


def _cores(machine: Machine) -> MachineCheck:
    host, wanted = machine.host, machine.wanted
    load = "" if host.load is None else f", load {host.load:.1f}"
    found = f"{host.cores} cores{load}"
    if wanted and wanted.device == "cpu" and wanted.world_size > host.cores:
        found += f" for {wanted.world_size} ranks, which take turns"
        return _check("cpu", found, trouble=True, fix="read the result as a proof of the path, or use fewer ranks")
    busy = None if host.load is None else host.load > _BUSY * host.cores
    return _check("cpu", found, trouble=busy, fix="wait until others are done: the host's noise is the step's noise")


def _quota(machine: Machine) -> MachineCheck:
    quota, cores = machine.host.cpu_quota, machine.host.cores
    if quota is None:
        return _check("cpu quota", "none", trouble=False, fix="")
    found = f"the control group may use {quota:g} of {cores} cores"
    fix = "raise it (docker --cpus, a pod's CPU limit): a group that has spent its share stops all ranks at once"
    return _check("cpu quota", found, trouble=quota < cores, fix=fix)


def _governor(machine: Machine) -> MachineCheck:
    governor = machine.host.governor
    if governor is None:
        return _check("cpu governor", "this system does not tell", trouble=None, fix="")
    fix = "cpupower frequency-set -g performance: launch-bound steps follow the clock of one core"
    return _check("cpu governor", governor, trouble=governor != "performance", fix=fix)


def _clock(machine: Machine) -> MachineCheck:
    source = machine.host.clock_source
    if source is None:
        return _check("clock source", "this system does not tell", trouble=None, fix="")
    fix = "boot with clocksource=tsc: reading this clock is slow, and is done around each step on CPU"
    return _check("clock source", source, trouble=source in _SLOW_CLOCKS, fix=fix)


def _memory(machine: Machine) -> MachineCheck:
    available = machine.host.memory_available_bytes
    if available is None:
        return _check("memory", "this system does not tell", trouble=None, fix="")
    found = f"{available / _GIB:.1f} GiB available"
    return _check("memory", found, trouble=available < _MEMORY_BYTES, fix="free some: ranks may be killed")


def _shm(machine: Machine) -> MachineCheck:
    size = machine.host.shm_bytes
    fix = "docker run --shm-size=8g or --ipc=host: NCCL talks through it where GPUs have no peer access"
    if size is None:
        return _check("/dev/shm", "not there", trouble=True, fix=fix)
    return _check("/dev/shm", f"{size / _GIB:.2f} GiB", trouble=size < _SHM_BYTES, fix=fix)


def _disk(machine: Machine) -> MachineCheck:
    free = machine.host.disk_bytes
    found = ", ".join(f"{size / _GIB:.1f} GiB free for {path}" for path, size in free.items())
    least = min(free.values(), default=None)
    fix = "free some, or write elsewhere (--reports-dir, TORCHINDUCTOR_CACHE_DIR)"
    if least is not None and least < _DISK_FAILS_BYTES:
        return MachineCheck(name="disk", status="fail", found=found, fix=fix)
    return _check(
        "disk", found or "not looked at", trouble=None if least is None else least < _DISK_WARNS_BYTES, fix=fix
    )


def _files(machine: Machine) -> MachineCheck:
    limit = machine.host.open_files
    found = "no limit" if limit < 0 else str(limit)
    return _check("open files", found, trouble=0 <= limit < _OPEN_FILES, fix="ulimit -n 65536")


def _compiler(machine: Machine) -> MachineCheck:
    compiler = machine.host.compiler
    fix = "install g++ (apt-get install g++): without it every compiled cell is 'crashed'"
    return _check("c++ compiler", compiler or "none found", trouble=compiler is None, fix=fix)


_CHECKS: tuple[Callable[[Machine], MachineCheck], ...] = (
    _system, _cores, _quota, _governor, _clock, _memory, _shm, _disk, _files, _compiler,
)  # fmt: skip
