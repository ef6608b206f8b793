"""What NVIDIA's management library tells of a GPU, one question at a time; the only module that calls it.

Half of the questions have no answer somewhere: virtual machines support few of them, and some need rights. Such
an answer is None, never zero and never an exception. A GPU that is gone is an exception, for nothing that it
would say can be trusted. Tests put a scripted fake behind the same protocol.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["CLOCK_REASONS", "SPOILING", "GpuLostError", "Nvml", "open_nvml"]

# Bits of the clock-event reasons in NVIDIA's nvml.h.
CLOCK_REASONS: Mapping[int, str] = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "SW power cap",
    0x8: "HW slowdown",
    0x10: "sync boost",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake",
    0x100: "display clocks",
}
# A power cap is how a GPU under load lives, and the same for every launch; these are not.
SPOILING = ("HW slowdown", "SW thermal slowdown", "HW thermal slowdown", "HW power brake")


class GpuLostError(Exception):
    """The driver has lost this GPU (it fell off the bus, or must be reset)."""


class Nvml(Protocol):
    """Questions about GPUs, which are named by UUID."""

    def ask(self, what: str, *gpus: str) -> Any:
        """The answer to the question ``what`` about one GPU, a pair, or (no GPU) the driver; None: cannot tell.

        Raises GpuLostError.
        """
        ...


@contextmanager
def open_nvml() -> Iterator[Nvml | None]:
    """The library, initialised; None where there is no NVIDIA driver, or no binding to it."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _Library(pynvml)
    finally:
        pynvml.nvmlShutdown()


class _Library:
    """The real one. Handles are looked up once; they stay good while the library is initialised."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles: dict[str, Any] = {}

    def ask(self, what: str, *gpus: str) -> Any:
        question = _QUESTIONS[what]
        try:
            return question(self._library, *(self._handle(gpu) for gpu in gpus))
        except self._library.NVMLError as error:
            if error.value in (self._library.NVML_ERROR_GPU_IS_LOST, self._library.NVML_ERROR_RESET_REQUIRED):
                raise GpuLostError(str(error)) from None
            return None

    def _handle(self, gpu: str) -> Any:
        if gpu not in self._handles:
            self._handles[gpu] = self._library.nvmlDeviceGetHandleByUUID(gpu)
        return self._handles[gpu]


def _processes(nvml: Any, gpu: Any) -> list[tuple[int, int | None]]:
    """(process id, bytes or None) of everything that computes on a GPU."""
    return [(one.pid, one.usedGpuMemory) for one in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]


def _active_links(nvml: Any, gpu: Any) -> int:
    """NVLinks that are up. A link beyond the last one is refused; if the first is, nothing is known."""
    active = int(bool(nvml.nvmlDeviceGetNvLinkState(gpu, 0)))
    for link in range(1, nvml.NVML_NVLINK_MAX_LINKS):
        try:
            active += bool(nvml.nvmlDeviceGetNvLinkState(gpu, link))
        except (nvml.NVMLError_InvalidArgument, nvml.NVMLError_NotSupported):
            break
    return active


_P2P_READ = 0  # NVML_P2P_CAPS_INDEX_READ of nvml.h, which the binding holds as a tuple

# The driver's own units: MHz, mW, mJ, C, per cent, bytes, ns.
_QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "sm_clock": lambda n, gpu: n.nvmlDeviceGetClockInfo(gpu, n.NVML_CLOCK_SM),
    "memory_clock": lambda n, gpu: n.nvmlDeviceGetClockInfo(gpu, n.NVML_CLOCK_MEM),
    "power": lambda n, gpu: n.nvmlDeviceGetPowerUsage(gpu),
    "temperature": lambda n, gpu: n.nvmlDeviceGetTemperature(gpu, n.NVML_TEMPERATURE_GPU),
    "utilization": lambda n, gpu: n.nvmlDeviceGetUtilizationRates(gpu).gpu,
    "memory_used": lambda n, gpu: n.nvmlDeviceGetMemoryInfo(gpu).used,
    "reasons": lambda n, gpu: n.nvmlDeviceGetCurrentClocksEventReasons(gpu),
    "energy": lambda n, gpu: n.nvmlDeviceGetTotalEnergyConsumption(gpu),
    "power_violation": lambda n, gpu: n.nvmlDeviceGetViolationStatus(gpu, n.NVML_PERF_POLICY_POWER).violationTime,
    "thermal_violation": lambda n, gpu: n.nvmlDeviceGetViolationStatus(gpu, n.NVML_PERF_POLICY_THERMAL).violationTime,
    "processes": _processes,
    "mig": lambda n, gpu: bool(n.nvmlDeviceGetMigMode(gpu)[0]),
    "ecc_errors": lambda n, gpu: n.nvmlDeviceGetTotalEccErrors(
        gpu, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, n.NVML_VOLATILE_ECC
    ),
    "persistence": lambda n, gpu: bool(n.nvmlDeviceGetPersistenceMode(gpu)),
    "application_clock": lambda n, gpu: n.nvmlDeviceGetApplicationsClock(gpu, n.NVML_CLOCK_SM),
    "highest_clock": lambda n, gpu: n.nvmlDeviceGetMaxClockInfo(gpu, n.NVML_CLOCK_SM),
    "exclusive": lambda n, gpu: n.nvmlDeviceGetComputeMode(gpu) != n.NVML_COMPUTEMODE_DEFAULT,
    "nvlinks": _active_links,
    "p2p": lambda n, a, b: n.nvmlDeviceGetP2PStatus(a, b, _P2P_READ) == n.NVML_P2P_STATUS_OK,
    "p2p_nvlink": lambda n, a, b: n.nvmlDeviceGetP2PStatus(a, b, n.NVML_P2P_CAPS_INDEX_NVLINK) == n.NVML_P2P_STATUS_OK,
    "cuda_driver": lambda n: n.nvmlSystemGetCudaDriverVersion_v2(),
}
