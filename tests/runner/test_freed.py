"""GPUs give their memory back before the next launch, or it is said who keeps it. On scripted drivers."""

import pytest

from epbench.errors import UnfitMachineError
from epbench.nvml import Nvml
from epbench.runner.freed import memory_in_use, wait_until_free
from tests.runner.fake_nvml import LOST, FakeNvml

GIB = 2**30


def driver(*used_gib: float, **more: object) -> FakeNvml:
    """A GPU ``g`` that uses so much memory at each look; at the last one for good."""
    return FakeNvml(g=[{"memory_used": int(used * GIB)} | more for used in used_gib])


def wait(nvml: FakeNvml | None, before: dict[str, int]) -> tuple[float, list[float]]:
    """What :func:`wait_until_free` returns, and how long it paused each time; a pause is the next look."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        assert nvml is not None
        pauses.append(seconds)
        if len(nvml.history["g"]) > 1:
            nvml.history["g"].pop(0)

    return wait_until_free(nvml, before, cap_s=2, pause=pause), pauses


@pytest.mark.parametrize(
    ("nvml", "before", "waited_s"),
    [
        (driver(1.0), {"g": GIB}, 0),
        (driver(1.2), {"g": GIB}, 0),  # the driver's own ups and downs
        (driver(0.5), {"g": GIB}, 0),  # of somebody else who has gone
        (driver(60.0, 60.0, 20.0, 1.0), {"g": GIB}, 1.5),
        (driver(60.0), {}, 0),  # nothing was known before
        (None, {}, 0),  # no driver
    ],
)
def test_a_launch_waits_for_its_memory(nvml: FakeNvml | None, before: dict[str, int], waited_s: float) -> None:
    seconds, pauses = wait(nvml, before)
    assert seconds == sum(pauses) == waited_s


@pytest.mark.parametrize(
    ("nvml", "sentence"),
    [
        (
            driver(1.0, 61.0, processes=[(4711, 59 * GIB), (12, None)]),
            r"GPU g holds 60.00 GiB more than before the launch, 2 s after its last process ended "
            r"\(process 4711: 59.00 GiB, process 12: unknown\)",
        ),
        (driver(1.0, 61.0), r"60.00 GiB more .* \(the driver names no process\)"),
        (FakeNvml(g=[{"memory_used": GIB}, LOST]), r"the driver lost GPU g \(GPU is lost\): it must be reset"),
    ],
)
def test_who_keeps_it_is_said(nvml: FakeNvml, sentence: str) -> None:
    before = memory_in_use(nvml, ["g"])
    nvml.history["g"].pop(0)
    with pytest.raises(UnfitMachineError, match=sentence):
        wait(nvml, before)


@pytest.mark.parametrize("nvml", [None, FakeNvml(g=[{}])])
def test_a_driver_that_cannot_tell_is_not_waited_for(nvml: Nvml | None) -> None:
    assert memory_in_use(nvml, ["g"]) == {}


def test_ctrl_c_ends_the_waiting() -> None:
    looks = iter([False, False, True])
    assert wait_until_free(driver(60.0), {"g": GIB}, interrupted=lambda: next(looks), pause=lambda _: None) == 1.0
