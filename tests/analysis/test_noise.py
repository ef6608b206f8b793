"""Scatter by hand-computed numbers; the smallest detectable change by simulated nights."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2
from scipy.stats import t as student

from epbench.analysis.noise import MIN_DEGREES, machine_starts, noise_of, smallest_detectable_change
from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import CellResult, LaunchValue
from epbench.store import CellEntry, result_of

ROOT = Path(__file__).parents[2]
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
    assert (noise.launches, noise.starts, noise.degrees) == (5, 2, 3)
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


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_what_is_no_time_is_left_out(value: float) -> None:
    """The device work of a launch whose trace kept no kernel is 0, and has no logarithm."""
    cell = run_of("a", 0.0, 0.1, 0.2)
    lost = cell.launch_values[0].model_copy(update={"step_s": value})
    noise = noise_of([cell.model_copy(update={"launch_values": [lost, *cell.launch_values[1:]]})], "step_s")
    assert noise is not None and (noise.launches, noise.degrees) == (2, 1)
    assert noise_of([cell.model_copy(update={"launch_values": [lost]})], "step_s") is None


def test_one_launch_a_start_tells_nothing_of_starts() -> None:
    noise = noise_of([run_of("a", 0.0), run_of("b", 0.01), run_of("c", 0.03)], "step_s")
    assert noise is not None
    assert (noise.starts, noise.degrees, noise.between, noise.between_starts) == (3, 0, None, None)


@pytest.mark.parametrize(
    ("starts", "is_told"),
    [
        ([(0.0, 0.001), (0.02,)], False),  # one pair: 1 degree
        ([(0.0, 0.01, 0.02, 0.03)], False),
        ([(0.0, 0.01, 0.02, 0.03, 0.04)], True),
        ([(0.0, 0.01, 0.02), (0.0, 0.01)], False),
        ([(0.0, 0.01, 0.02), (0.0, 0.01, 0.02)], True),
    ],
)
def test_what_launches_find_is_told_from_four_degrees_of_freedom(
    starts: list[tuple[float, ...]], is_told: bool
) -> None:
    noise = noise_of([run_of(str(at), *logs) for at, logs in enumerate(starts)], "step_s")
    assert noise is not None and noise.between is not None
    assert (noise.finds(5) is not None) is is_told


def test_with_so_few_degrees_the_scatter_may_be_three_times_the_estimate_and_not_with_more() -> None:
    too_small = [math.sqrt(degrees / chi2.ppf(0.025, degrees)) for degrees in (MIN_DEGREES - 1, MIN_DEGREES)]
    assert too_small[0] > 3 > too_small[1]


PUBLISHED = [  # docs/noise.md: between launches, then what 3, 5 and 8 find, in per cent
    ("eager", "step_s", 0.57, [5.9, 2.3, 1.4]),
    ("eager", "device_work_s", 0.34, [3.4, 1.3, 0.8]),
    ("compiled", "step_s", 1.06, [11.2, 4.3, 2.7]),
    ("compiled", "device_work_s", 0.30, [3.1, 1.2, 0.8]),
]


@pytest.mark.parametrize(("mode", "metric", "between", "finds"), PUBLISHED)
def test_the_published_numbers_come_from_the_published_launches(
    mode: str, metric: str, between: float, finds: list[float]
) -> None:
    with (ROOT / "reports/samples/noise-2xh200/launches.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["mode"] == mode and row["start"] in "23"]
    launches = [
        LaunchValue(
            index=int(row["index"]), order=int(row["order"]), step_s=float(row["step_s"]),
            device_work_s=float(row["device_work_s"]), host={"names": [row["start"]]},
        )
        for row in rows
    ]  # fmt: skip
    noise = noise_of([CELL.model_copy(update={"launch_values": launches})], metric)
    assert noise is not None and noise.between is not None
    assert 100 * noise.between == pytest.approx(between, abs=0.0051)
    assert [100 * (noise.finds(count) or 0) for count in (3, 5, 8)] == pytest.approx(
        finds, abs=0.06
    )  # of launches rounded to microseconds


GATED = [(3, [17.7, 9.2, 29.8, 8.3]), (5, [8.5, 4.0, 11.5, 3.8]), (8, [6.9, 3.1, 8.6, 3.0]), (10, [6.6, 2.9, 7.9, 2.8])]


@pytest.mark.parametrize(("launches", "finds"), GATED)
def test_what_the_gate_is_published_to_find(launches: int, finds: list[float]) -> None:
    row = f"| {launches} | {' | '.join(f'{found} %' for found in finds)} |"
    assert row in (ROOT / "docs/noise.md").read_text()
    for (_, metric, between, _), expected in zip(PUBLISHED, finds, strict=True):
        limit = 0.05 if metric == "step_s" else 0.02
        found = smallest_detectable_change(between / 100, launches, alpha=0.01 / 4, limit=limit)
        assert found is not None
        assert 100 * found == pytest.approx(expected, abs=0.051)


MACHINES = [  # host and GPUs of each launch, and how many machine starts they are
    (["a 01", "a 0123"], 1),  # cells of two ranks and of four
    (["a 0123", "a 01", "a 23"], 1),
    (["a 01", "b 01"], 2),
    (["a 01", "a 23"], 2),
    (["a 01", "a 12"], 2),
    (["a ", "a 01"], 1),
    ([" ", " "], 1),
]


@pytest.mark.parametrize(("machines", "count"), MACHINES)
def test_launches_with_fewer_gpus_are_on_the_machine_start_of_the_others(machines: list[str], count: int) -> None:
    hosts = [machine.split(" ") for machine in machines]
    launches = [
        LaunchValue(index=at, order=at, step_s=1.0, host={"names": [name] if name else [], "gpu_uuids": list(gpus)})
        for at, (name, gpus) in enumerate(hosts)
    ]
    assert len(set(machine_starts(launches).values())) == count


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
