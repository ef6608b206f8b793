"""Checks of the GPUs: are they alike, idle, whole, unthrottled, and can they reach each other."""

from collections import Counter
from collections.abc import Callable, Iterator

from epbench.doctor.machine import Gpu, Machine
from epbench.nvml import CLOCK_REASONS, SPOILING
from epbench.records import MachineCheck

__all__ = ["gpu_checks"]

_GIB = 2**30
_BUSY_PERCENT = 5
_USED_BYTES = 2 * _GIB  # a driver keeps up to one for itself


def gpu_checks(machine: Machine) -> list[MachineCheck]:
    """All checks of the GPUs; one line where there is none."""
    if not machine.gpus:
        return [_none(machine)]
    return [check(machine) for check in _CHECKS]


def _none(machine: Machine) -> MachineCheck:
    if machine.trouble is not None:
        fix = "nvidia-smi says which; reset it (nvidia-smi --gpu-reset) or restart the machine"
        return MachineCheck(name="gpus", status="fail", found=machine.trouble, fix=fix)
    hidden = machine.variables.get("CUDA_VISIBLE_DEVICES")
    if machine.has_driver_files and hidden is None:
        found = "there is an NVIDIA driver, but it shows no GPU: everything runs on CPU"
        return MachineCheck(name="gpus", status="warn", found=found, fix="nvidia-smi says why; restart the driver")
    why = f" (CUDA_VISIBLE_DEVICES is '{hidden[:40]}')" if hidden is not None and machine.has_driver_files else ""
    found = f"none{why}: scenarios run on CPU ranks over gloo, which proves the path and not the performance"
    return MachineCheck(name="gpus", status="ok", found=found)


def _gpus(machine: Machine) -> MachineCheck:
    models = Counter(f"{gpu.name} {gpu.memory_bytes / _GIB:.0f} GiB" for gpu in machine.gpus)
    found = ", ".join(f"{count} x {model}" for model, count in models.items())
    lost = _where(machine, lambda gpu: gpu.lost)
    if lost:
        fix = "reset it (nvidia-smi --gpu-reset), or leave it out with CUDA_VISIBLE_DEVICES"
        return MachineCheck(name="gpus", status="fail", found=f"{found}; the driver has lost {lost}", fix=fix)
    if len(models) > 1:
        fix = "choose GPUs of one model with CUDA_VISIBLE_DEVICES: a step is as slow as the slowest"
        return MachineCheck(name="gpus", status="warn", found=found, fix=fix)
    return MachineCheck(name="gpus", status="ok", found=found)


def _where(machine: Machine, holds: Callable[[Gpu], bool]) -> str:
    numbers = [f"GPU {index}" for index, gpu in enumerate(machine.gpus) if holds(gpu)]
    return ", ".join(numbers)


def _flag(
    machine: Machine, name: str, holds: Callable[[Gpu], object], *, bad: str, good: str, fix: str, fails: bool = False
) -> MachineCheck:
    """A check of one property: None of any GPU is unknown, truth of any GPU is bad."""
    answers = [holds(gpu) for gpu in machine.gpus if not gpu.lost]
    if any(answers):
        found = f"{bad} on {_where(machine, lambda gpu: bool(holds(gpu)))}"
        return MachineCheck(name=name, status="fail" if fails else "warn", found=found, fix=fix)
    if any(answer is None for answer in answers):
        return MachineCheck(name=name, status="unknown", found="the driver does not tell here")
    return MachineCheck(name=name, status="ok", found=good)


def _idle(machine: Machine) -> MachineCheck:
    busy = [
        f"GPU {index} at {gpu.utilization or 0} %, {(gpu.memory_used or 0) / _GIB:.1f} GiB used"
        for index, gpu in enumerate(machine.gpus)
        if (gpu.utilization or 0) > _BUSY_PERCENT or (gpu.memory_used or 0) > _USED_BYTES
    ]
    if busy:
        return MachineCheck(name="idle", status="warn", found="; ".join(busy), fix="end what runs there, or wait")
    if all(gpu.utilization is None and gpu.memory_used is None for gpu in machine.gpus):
        return MachineCheck(name="idle", status="unknown", found="the driver does not tell here")
    return MachineCheck(name="idle", status="ok", found="no GPU is in use")


def _processes(machine: Machine) -> MachineCheck:
    found = list(_foreign(machine))
    if found:
        fix = "end them, or choose other GPUs with CUDA_VISIBLE_DEVICES"
        return MachineCheck(name="processes", status="warn", found="; ".join(found), fix=fix)
    if any(gpu.processes is None for gpu in machine.gpus if not gpu.lost):
        return MachineCheck(name="processes", status="unknown", found="the driver does not tell here")
    return MachineCheck(name="processes", status="ok", found="nobody else computes on the GPUs")


def _foreign(machine: Machine) -> Iterator[str]:
    for index, gpu in enumerate(machine.gpus):
        for process in gpu.processes or ():
            size = "" if process.memory_bytes is None else f", {process.memory_bytes / 2**20:.0f} MiB"
            name = process.name or "outside this container"
            yield f"GPU {index}: process {process.process_id} ({name}{size})"


def _mig(machine: Machine) -> MachineCheck:
    return _flag(
        machine, "mig", lambda gpu: gpu.mig, bad="Multi-Instance GPU is on", good="off", fails=True,
        fix="NCCL does not span MIG instances: use whole GPUs (nvidia-smi -i N -mig 0)",
    )  # fmt: skip


def _exclusive(machine: Machine) -> MachineCheck:
    return _flag(
        machine, "compute mode", lambda gpu: gpu.exclusive, bad="exclusive or prohibited", good="default",
        fix="nvidia-smi -c DEFAULT, or a second process on the GPU is refused",
    )  # fmt: skip


def _ecc(machine: Machine) -> MachineCheck:
    return _flag(
        machine, "ecc", lambda gpu: gpu.ecc_errors, bad="uncorrected memory errors since the last reset",
        good="no uncorrected errors", fix="reset the GPU; if they come back, have it replaced", fails=True,
    )  # fmt: skip


def _persistence(machine: Machine) -> MachineCheck:
    return _flag(
        machine, "persistence", lambda gpu: None if gpu.persistence is None else not gpu.persistence,
        bad="persistence mode is off", good="on", fix="nvidia-smi -pm 1, or each launch waits for the driver to load",
    )  # fmt: skip


def _names(gpu: Gpu) -> set[str]:
    return {name for bit, name in CLOCK_REASONS.items() if (gpu.reasons or 0) & bit}


def _throttle(machine: Machine) -> MachineCheck:
    held = [
        f"GPU {index}: {', '.join(sorted(_names(gpu) & set(SPOILING)))}"
        + ("" if gpu.temperature is None else f" at {gpu.temperature} C")
        for index, gpu in enumerate(machine.gpus)
        if _names(gpu) & set(SPOILING)
    ]
    if held:
        fix = "check cooling and power; launches that are timed so will be invalid"
        return MachineCheck(name="throttling", status="warn", found="; ".join(held), fix=fix)
    if any(gpu.reasons is None for gpu in machine.gpus if not gpu.lost):
        return MachineCheck(name="throttling", status="unknown", found="the driver does not tell here")
    return MachineCheck(name="throttling", status="ok", found="no GPU is slowed down by heat or hardware")


def _clocks(machine: Machine) -> MachineCheck:
    fix = "nvidia-smi --reset-applications-clocks --reset-gpu-clocks, unless you locked them on purpose"
    held = [gpu for gpu in machine.gpus if "application clocks" in _names(gpu)]
    highest = ", ".join(sorted({f"{gpu.highest_clock} MHz" for gpu in machine.gpus if gpu.highest_clock}))
    if held:
        limits = ", ".join(sorted({f"{gpu.application_clock} MHz" for gpu in held if gpu.application_clock}))
        found = f"held at {limits or 'a fixed value'} of at most {highest or 'an unknown one'}"
        return MachineCheck(name="clocks", status="warn", found=found, fix=fix)
    if not highest:
        return MachineCheck(name="clocks", status="unknown", found="the driver does not tell here")
    return MachineCheck(name="clocks", status="ok", found=f"free up to {highest}")


def _topology(machine: Machine) -> MachineCheck:
    if not machine.pairs:
        return MachineCheck(name="topology", status="ok", found="one GPU")
    apart = [f"{pair.first}-{pair.second}" for pair in machine.pairs if pair.p2p is False]
    if apart:
        fix = "their traffic goes through host memory: use GPUs of one switch, or see NCCL_DEBUG=INFO"
        return MachineCheck(name="topology", status="warn", found=f"no peer access between {', '.join(apart)}", fix=fix)
    if any(pair.p2p is None for pair in machine.pairs):
        return MachineCheck(name="topology", status="unknown", found="the driver does not tell here")
    linked = sum(pair.nvlink is True for pair in machine.pairs)
    links = sorted({gpu.nvlinks for gpu in machine.gpus if gpu.nvlinks})
    each = f" ({' or '.join(map(str, links))} links a GPU)" if links and linked else ""
    found = f"peer access between all {len(machine.pairs)} pairs, {linked} of them over NVLink{each}"
    return MachineCheck(name="topology", status="ok", found=found)


_CHECKS: tuple[Callable[[Machine], MachineCheck], ...] = (
    _gpus, _idle, _processes, _mig, _exclusive, _ecc, _persistence, _clocks, _throttle, _topology,
)  # fmt: skip
