"""Scatter by hand-computed numbers; the smallest detectable change by simulated nights."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from epbench.analysis.noise import noise_of, smallest_detectable_change
from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import CellResult, LaunchValue
from epbench.store import CellEntry, result_of

CELL = result_of(CellEntry(order=0, cell=Cell(layout=Layout(dp_shard=2))))


def run_of(start: str, *logs: float, sd: float | None = 0.01, valid: bool = True) -> CellResult:
    """A run whose launches took exp(log) seconds on one machine start."""
    values = [
        LaunchValue(
            index=i, order=i, step_s=math.exp(log), step_sd_s=sd and sd * math.exp(log), valid=valid,
            host={"names": [start]},
        )
        for i, log in enumerate(logs)
    ]  # fmt: skip
    return CELL.model_copy(update={"launch_values": values})


def test_three_kinds_of_scatter_by_hand() -> None:
    noise = noise_of([run_of("a", -0.01, 0.01), run_of("b", 0.09, 0.10, 0.11)], "step_s")
    assert noise is not None
    between = math.sqrt((0.0002 + 2 * 0.0001) / 3)  # squares about each start's own mean over 1 + 2 degrees
    starts = math.sqrt(0.10**2 / 2 - between**2 * (1 / 2 + 1 / 3) / 2)
    assert (noise.launches, noise.starts) == (5, 2)
    assert noise.median == pytest.approx(math.exp(0.09))
    assert noise.within == pytest.approx(0.01)
    assert noise.between == pytest.approx(between)
    assert noise.between_starts == pytest.approx(starts)


def test_what_cannot_be_told_is_none() -> None:
    one = noise_of([run_of("a", 0.0, sd=None)], "step_s")
    assert one is not None
    assert (one.within, one.between, one.between_starts) == (None, None, None)
    assert noise_of([run_of("a", 0.0, 0.1)], "device_work_s") is None
    assert noise_of([run_of("a", 0.0, 0.1, valid=False)], "step_s") is None


def test_starts_that_differ_by_chance_only_add_nothing() -> None:
    noise = noise_of([run_of("a", -0.05, 0.05), run_of("b", -0.05, 0.06)], "step_s")
    assert noise is not None
    assert noise.between_starts == 0.0


@pytest.mark.parametrize("launches", [3, 5, 8])
def test_the_smallest_detectable_change_is_found_in_95_of_100_nights_and_nothing_in_1(launches: int) -> None:
    between, nights = 0.01, 40_000
    change = smallest_detectable_change(between, launches)
    assert change is not None
    random = np.random.default_rng(launches)
    for shift, expected in ((math.log1p(change), 0.95), (0.0, 0.01)):
        arms = random.normal(0, between, (2, nights, launches))
        paired = arms[1] + shift - arms[0]
        statistic = paired.mean(1) / (paired.std(1, ddof=1) / math.sqrt(launches))
        found = float((statistic > student.ppf(0.99, launches - 1)).mean())
        assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / nights))


def test_one_launch_an_arm_finds_nothing() -> None:
    assert smallest_detectable_change(0.01, 1) is None


def test_more_launches_find_less() -> None:
    changes = [smallest_detectable_change(0.01, launches) for launches in (2, 3, 5, 50, 200, 1000)]
    known = [change for change in changes if change is not None]
    assert len(known) == len(changes)
    assert known == sorted(known, reverse=True)
    assert known[-1] < 0.002
