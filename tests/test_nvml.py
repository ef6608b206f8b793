"""The library's own errors, through a stand-in for the binding: null, never zero, never a crash; a lost GPU is said."""

import sys
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from epbench.errors import UnfitMachineError
from epbench.nvml import _QUESTIONS, GpuLostError, open_nvml
from epbench.provenance import find_gpus


class Binding(SimpleNamespace):
    """The real binding's names and errors; what it is not given fails with ``error``."""

    def __init__(self, error: int, **answers: Any) -> None:
        super().__init__(closed=0, error=error, **answers)

    def nvmlInit(self) -> None:  # noqa: N802
        return

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.closed += 1

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            return getattr(pynvml, name)

        def fail(*arguments: Any) -> Any:
            assert all(isinstance(one, int | str) for one in arguments), f"{name} takes handles and integers"
            raise pynvml.NVMLError(self.error)

        return fail


@pytest.fixture
def bind(monkeypatch: pytest.MonkeyPatch) -> Any:
    def bind(binding: Binding) -> Binding:
        monkeypatch.setitem(sys.modules, "pynvml", binding)
        return binding

    return bind


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND]
)
def test_a_question_that_is_not_answered_is_null(bind: Any, error: int) -> None:
    binding = bind(Binding(error, nvmlDeviceGetHandleByUUID=lambda uuid: uuid))
    with open_nvml() as nvml:
        assert nvml is not None
        pairs = {"p2p": 2, "p2p_nvlink": 2, "cuda_driver": 0}
        answers = {what: nvml.ask(what, *["GPU-aa", "GPU-bb"][: pairs.get(what, 1)]) for what in _QUESTIONS}
    assert set(answers.values()) == {None}
    assert binding.closed == 1


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_lost_gpu_is_an_exception(bind: Any, error: int) -> None:
    bind(Binding(error, nvmlDeviceGetHandleByUUID=lambda uuid: uuid))
    with open_nvml() as nvml, pytest.raises(GpuLostError):
        assert nvml is not None
        nvml.ask("power", "GPU-aa")


def test_every_question_asks_what_the_binding_has(bind: Any) -> None:
    """Each name that a question uses exists in nvidia-ml-py; answers are in the driver's units."""
    link = SimpleNamespace(gpu=97, used=2**30, violationTime=5)
    asked: list[str] = []

    class Recorder(Binding):
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("nvml"):
                return getattr(pynvml, name)
            assert hasattr(pynvml, name), f"nvidia-ml-py has no {name}"
            asked.append(name)
            return {
                "nvmlDeviceGetUtilizationRates": lambda _: link,
                "nvmlDeviceGetMemoryInfo": lambda _: link,
                "nvmlDeviceGetViolationStatus": lambda *_: link,
                "nvmlDeviceGetMigMode": lambda _: [1, 0],
                "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=7, usedGpuMemory=None)],
            }.get(name, lambda *_: 1)

    bind(Recorder(0))
    with open_nvml() as nvml:
        assert nvml is not None
        counts = {"p2p": 2, "p2p_nvlink": 2, "cuda_driver": 0}
        answers = {what: nvml.ask(what, *["GPU-aa"] * counts.get(what, 1)) for what in _QUESTIONS}
    assert (answers["utilization"], answers["memory_used"], answers["thermal_violation"]) == (97, 2**30, 5)
    assert (answers["mig"], answers["processes"], answers["nvlinks"]) == (True, [(7, None)], 36)
    assert (answers["p2p"], answers["exclusive"], answers["persistence"]) == (False, True, True)
    assert asked.count("nvmlDeviceGetHandleByUUID") == 1, "a handle is looked up once"


def test_links_are_counted_up_to_the_last_one(bind: Any) -> None:
    def state(_: Any, link: int) -> int:
        if link >= 18:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return int(link != 3)

    bind(Binding(0, nvmlDeviceGetHandleByUUID=lambda uuid: uuid, nvmlDeviceGetNvLinkState=state))
    with open_nvml() as nvml:
        assert nvml is not None
        assert nvml.ask("nvlinks", "GPU-aa") == 17


def test_a_gpu_that_cannot_be_listed_is_a_sentence(bind: Any) -> None:
    binding = bind(Binding(pynvml.NVML_ERROR_GPU_IS_LOST, nvmlDeviceGetCount=lambda: 2))
    with pytest.raises(UnfitMachineError, match="cannot describe its GPUs"):
        find_gpus({})
    assert binding.closed == 1


def test_a_machine_without_a_driver_has_no_library(bind: Any) -> None:
    class WithoutDriver(Binding):
        def nvmlInit(self) -> None:  # noqa: N802
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    binding = bind(WithoutDriver(0))
    with open_nvml() as nvml:
        assert nvml is None
    assert binding.closed == 0
