"""After a launch that ended badly: its GPUs have their memory back before the next launch, or the run ends.

The driver frees what a killed process held some time after the process is gone, and a process that hangs in the
driver holds it on. A launch that started before would run out of memory that is not the cell's fault.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from epbench.errors import UnfitMachineError
from epbench.nvml import GpuLostError, Nvml

__all__ = ["memory_in_use", "wait_until_free"]

CAP_S = 30.0
SLACK_BYTES = 256 << 20  # what the driver itself takes or gives back from one moment to the next
_POLL_S = 0.5


def memory_in_use(nvml: Nvml | None, gpus: Sequence[str]) -> dict[str, int]:
    """Bytes in use on each GPU, of all processes; without those that cannot be asked."""
    if nvml is None:
        return {}
    answers = {gpu: _ask(nvml, "memory_used", gpu) for gpu in gpus}
    return {gpu: answer for gpu, answer in answers.items() if isinstance(answer, int)}


def _ask(nvml: Nvml, what: str, gpu: str) -> object:
    try:
        return nvml.ask(what, gpu)
    except GpuLostError as error:
        fix = "it must be reset, or the machine restarted"
        raise UnfitMachineError(f"the driver lost GPU {gpu} ({error}): {fix}") from None


def wait_until_free(
    nvml: Nvml | None,
    before: Mapping[str, int],
    *,
    interrupted: Callable[[], bool] = lambda: False,
    cap_s: float = CAP_S,
    pause: Callable[[float], object] = time.sleep,
) -> float:
    """Waits until no GPU of ``before`` holds more than it did then, or Ctrl-C came; returns the seconds that it took.

    Raises UnfitMachineError after ``cap_s``, naming the GPU, what it holds and who holds it as far as the driver
    tells (in a container it may know no process), or at once if the driver has lost a GPU.
    """
    waited_s = 0.0
    while not interrupted() and (held := _held(nvml, before)):
        if waited_s >= cap_s:
            raise UnfitMachineError("; ".join(_sentence(nvml, gpu, more, cap_s) for gpu, more in held.items()))
        pause(_POLL_S)
        waited_s += _POLL_S
    return waited_s


def _held(nvml: Nvml | None, before: Mapping[str, int]) -> dict[str, int]:
    """Bytes beyond those of ``before``, of the GPUs where they are worth waiting for."""
    now = memory_in_use(nvml, list(before))
    return {gpu: used - before[gpu] for gpu, used in now.items() if used - before[gpu] > SLACK_BYTES}


def _sentence(nvml: Nvml | None, gpu: str, more: int, waited_s: float) -> str:
    assert nvml is not None, "a GPU that holds memory was asked"
    processes = _ask(nvml, "processes", gpu)
    known = [f"process {pid}: {_gib(size)}" for pid, size in processes] if isinstance(processes, list) else []
    held = f"GPU {gpu} holds {_gib(more)} more than before the launch, {waited_s:g} s after its last process ended"
    return f"{held} ({', '.join(known) or 'the driver names no process'})"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.2f} GiB"
