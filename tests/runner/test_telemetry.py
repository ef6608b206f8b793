"""What NVML said, cut to the timed window: throttling in and outside it, what a driver cannot tell, a lost GPU."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import LaunchValue, Telemetry
from epbench.runner import telemetry
from epbench.runner.aggregate import cell_result
from epbench.runner.launched import LaunchRecord, measured
from epbench.runner.outcome import Verdict, judge
from epbench.runner.ranklog import RankLog, RankTail
from epbench.runner.server import ForkServer
from epbench.runner.telemetry import (
    History,
    Sampler,
    Tick,
    energy_j_per_token,
    held_back,
    held_back_lately,
    sampling,
    slowed_down,
    telemetry_of,
    timed_window,
)
from epbench.runner.watch import LaunchEnd, watch_launch
from epbench.store import CellEntry
from tests.report.sample import environment
from tests.runner.conftest import MEASURE, make_spec
from tests.runner.fake_nvml import LOST, FakeNvml

IDLE, CAP, HW, SW_HOT, HW_HOT, BRAKE = 0x1, 0x4, 0x8, 0x20, 0x40, 0x80
WINDOW = (10.0, 20.0)


def history(masks: dict[float, int], **constant: int) -> History:
    """One GPU, sampled at the given times; its energy counter rises by 500 J a second, from 7 kJ."""
    ticks = [
        Tick(time_s, {"a": {"reasons": mask, "energy": int(7_000_000 + 500_000 * time_s)} | constant})
        for time_s, mask in masks.items()
    ]
    return History(["a"], ticks)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ({9.0: HW_HOT, 10.5: 0, 15.0: 0, 19.0: 0, 21.0: HW_HOT}, None),  # outside the window only
        ({9.0: 0, 12.0: CAP, 14.0: CAP, 18.0: CAP, 21.0: 0}, None),  # a power cap is no fault
        ({9.0: 0, 12.0: IDLE, 21.0: 0}, None),
        ({9.0: 0, 12.0: HW | HW_HOT, 14.0: 0, 16.0: 0, 18.0: 0, 21.0: 0}, "HW thermal slowdown for 25 %"),
        ({9.0: 0, 12.0: SW_HOT, 14.0: SW_HOT, 21.0: 0}, "SW thermal slowdown for 100 %"),
        ({9.0: 0, 12.0: HW | BRAKE, 14.0: CAP, 21.0: 0}, "HW power brake for 50 %"),
        ({9.0: 0, 12.0: HW, 14.0: CAP, 21.0: 0}, "HW slowdown for 50 %"),
        ({9.0: HW, 21.0: HW}, None),  # no sample within: nothing is claimed
    ],
)
def test_only_heat_and_hardware_in_the_window_spoil_a_launch(masks: dict[float, int], reason: str | None) -> None:
    found = slowed_down(telemetry_of(history(masks, temperature=87), WINDOW))
    expected = None if reason is None else f"GPU 0 slowed down by {reason} of the timed window, 87 C"
    assert found == expected


def test_gauges_and_counters_in_their_units() -> None:
    ticks = [
        Tick(time_s, {"a": {"sm_clock": clock, "power": 650_000, "utilization": 98, "energy": energy, "reasons": mask}})
        for time_s, clock, energy, mask in [
            (9.0, 100, 1_000_000, 0),  # 500 W up to 11 s, then 600 W
            (11.0, 1980, 2_000_000, CAP),
            (15.0, 1900, 4_400_000, CAP),
            (19.0, 1980, 6_800_000, 0),
            (21.0, 100, 8_000_000, 0),
        ]
    ]
    found = telemetry_of(History(["a"], ticks, cost=0.001), WINDOW)
    (gpu,) = found.gpus
    assert (found.window_s, found.interval_s, found.cost, gpu.samples) == (10.0, 3.0, 0.001, 3)
    assert gpu.sm_clock_mhz is not None
    assert (gpu.sm_clock_mhz.low, gpu.sm_clock_mhz.median, gpu.sm_clock_mhz.high) == (1900, 1980, 1980)
    assert gpu.power_w is not None
    assert gpu.power_w.median == 650
    assert gpu.utilization is not None
    assert gpu.utilization.high == 0.98
    assert gpu.clock_reasons is not None
    assert list(gpu.clock_reasons) == ["SW power cap"]
    assert gpu.clock_reasons["SW power cap"] == pytest.approx(2 / 3)
    assert gpu.energy_j == pytest.approx(500 * 1 + 600 * 9)
    assert energy_j_per_token(found, step_s=0.25, tokens_per_step=1000) == pytest.approx(590 * 0.25 / 1000)


def test_what_is_not_supported_is_null_and_not_zero() -> None:
    found = telemetry_of(history({9.0: 0, 15.0: 0, 21.0: 0}), WINDOW)
    (gpu,) = found.gpus
    unknown = {"sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "utilization", "memory_used_bytes"}
    unknown |= {"power_violation_s", "thermal_violation_s"}
    assert {name for name, value in gpu.model_dump().items() if value is None} == unknown
    nothing = telemetry_of(History(["a"], [Tick(t, {"a": {"sm_clock": 1}}) for t in (9.0, 15.0, 21.0)]), WINDOW)
    assert nothing.gpus[0].clock_reasons is None
    assert energy_j_per_token(nothing, step_s=1.0, tokens_per_step=1) is None
    assert slowed_down(nothing) is None


def test_a_counter_without_samples_on_both_sides_is_not_known() -> None:
    assert telemetry_of(history({10.5: 0, 21.0: 0}), WINDOW).gpus[0].energy_j is None
    assert telemetry_of(history({9.0: 0, 19.5: 0}), WINDOW).gpus[0].energy_j is None
    assert telemetry_of(history({9.0: 0, 21.0: 0}), WINDOW).gpus[0].energy_j == pytest.approx(5000)


def test_the_window_is_when_all_ranks_were_timing(tmp_path: Path) -> None:
    tails = []
    for rank, moments in enumerate([(10.0, 20.0), (11.0, 19.0), (9.0, 25.0)]):
        lines: list[dict[str, Any]] = [
            {"t": 1.0, "kind": "phase", "phase": "warmup"},
            {"t": moments[0], "kind": "phase", "phase": "timing"},
            {"t": moments[1], "kind": "result", "name": "timing", "value": {}},
        ]
        path = tmp_path / f"rank-{rank}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        tails.append(RankTail(path, rank))
        assert timed_window(tails) is None
        assert tails[-1].poll()
    assert timed_window(tails) == (11.0, 19.0)
    RankLog(tmp_path / "rank-2.jsonl").phase("timing")  # this rank never reported
    silent = RankTail(tmp_path / "rank-2.jsonl", 2)
    silent.poll()
    assert timed_window([*tails[:2], silent]) is None


def test_a_gpu_lost_on_the_way_is_named_and_left_alone() -> None:
    nvml = FakeNvml(a=[{"reasons": 0}], b=[{"reasons": 0}, LOST, {"reasons": HW_HOT}])
    sampler = Sampler(nvml, ["a", "b"])
    for _ in range(4):
        sampler.sample()
    assert [sorted(tick.gpus) for tick in sampler.history.ticks] == [["a", "b"], ["a"], ["a"], ["a"]]
    assert sampler.history.loss == "the driver lost GPU 1"
    assert nvml.asked.count(("reasons", "b")) == 2


def test_a_question_without_an_answer_is_asked_once() -> None:
    nvml = FakeNvml(a=[{"reasons": 0, "sm_clock": 1980}])
    sampler = Sampler(nvml, ["a"])
    for _ in range(3):
        sampler.sample()
    counts = {what: nvml.asked.count((what, "a")) for what in ("reasons", "sm_clock", "energy", "thermal_violation")}
    assert counts == {"reasons": 3, "sm_clock": 3, "energy": 1, "thermal_violation": 1}


def test_a_long_launch_is_thinned_and_a_slow_driver_is_asked_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MOST_TICKS", 8)
    clock = iter(range(100))
    monkeypatch.setattr(time, "thread_time", lambda: next(clock) * 0.002)
    sampler = Sampler(FakeNvml(a=[{"reasons": 0}]), ["a"])
    for _ in range(7):
        sampler.sample(counters=False)
    assert sampler.pause_s == pytest.approx(0.4)  # 2 ms a tick at 0.5 % of a core
    sampler.sample(counters=False)
    assert len(sampler.history.ticks) == 4
    for _ in range(4):
        sampler.sample(counters=False)
    assert len(sampler.history.ticks) == 4
    assert sampler.pause_s == pytest.approx(0.8)


def test_slow_counters_do_not_keep_a_throttle_from_being_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, now = iter([0.0, 0.010, 0.010, 0.011]), [100.0]
    monkeypatch.setattr(time, "thread_time", lambda: next(busy))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    sampler = Sampler(FakeNvml(a=[{"reasons": HW, "energy": 1}]), ["a"])
    sampler.sample()
    assert sampler.pause_s == telemetry.INTERVAL_S
    sampler.sample(counters=False)
    now[0] = 101.9
    too_early = sampler.counters_due
    now[0] = 102.1
    assert (too_early, sampler.counters_due) == (False, True)  # 10 ms of counters are 0.5 % of two seconds
    assert [sorted(tick.gpus["a"]) for tick in sampler.history.ticks] == [["energy", "reasons"], ["reasons"]]


def test_a_crash_on_a_lost_gpu_names_it_first(tmp_path: Path) -> None:
    end = LaunchEnd(make_spec(tmp_path, "good"), elapsed_s=9.0, exit_code=1)
    lost = History(["a", "b"], [], lost=["b"])
    record = measured(end, Verdict("crashed", "rank 0 raised AcceleratorError"), environment="e", history=lost)
    assert record.reason == "the driver lost GPU 1; rank 0 raised AcceleratorError"


def launch_of(cell: Cell, index: int, value: LaunchValue) -> LaunchRecord:
    return LaunchRecord(
        cell=cell.id, kind="measure", index=index, order=index, environment="", protocol="", outcome="ok", reason=None,
        elapsed_s=9.0, value=value,
    )  # fmt: skip


def test_a_cell_has_the_median_energy_of_its_valid_launches() -> None:
    cell = Cell(layout=Layout())
    hot = "GPU 0 slowed down by HW slowdown for 3 % of the timed window"
    values = [
        LaunchValue(index=0, order=0, step_s=1.0, energy_j_per_token=0.3),
        LaunchValue(index=1, order=1, step_s=1.0, energy_j_per_token=9.0, valid=False, invalid_reason=hot),
        LaunchValue(index=2, order=2, step_s=1.0, energy_j_per_token=0.1),
        LaunchValue(index=3, order=3, step_s=1.0, energy_j_per_token=0.2),
    ]
    launches = [launch_of(cell, value.index, value) for value in values]
    row = cell_result(CellEntry(order=0, cell=cell), launches, asked=3, environment=environment())
    assert (row.outcome, row.energy_j_per_token) == ("ok", 0.2)
    doubtful = cell_result(CellEntry(order=0, cell=cell), launches[:3], asked=3, environment=environment())
    assert (doubtful.outcome, doubtful.reason) == ("unstable", f"2 of 3 launches are valid: {hot}")


def test_nothing_is_sampled_without_a_driver(tmp_path: Path) -> None:
    with sampling(None, ["a"], tmp_path) as without_driver, sampling(FakeNvml(), [], tmp_path) as without_gpu:
        assert without_driver is without_gpu is None
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def watched(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[LaunchValue, Path]:
    """A real launch on two gloo ranks, beside which one GPU stays well and the other is slowed down throughout."""
    directory = tmp_path_factory.mktemp("launch")
    well = {"reasons": CAP, "temperature": 60, "energy": 1_000_000}
    hot = {"reasons": HW | HW_HOT, "temperature": 91, "energy": 1_000_000}
    steps = MEASURE.model_copy(update={"min_steps": 800, "max_steps": 800})  # about a second
    spec = make_spec(directory, "good", measure=steps)
    with sampling(FakeNvml(a=[well], b=[hot]), ["a", "b"], spec.directory) as sampler:
        end = watch_launch(server, spec, interrupted=lambda: False, on_progress=lambda _: None)
    assert sampler is not None
    record = measured(end, judge(end), environment="e", history=sampler.history)
    assert record.value is not None, (directory / "stderr.log").read_text()
    return record.value, directory


def test_a_launch_on_a_hot_gpu_is_invalid(watched: tuple[LaunchValue, Path]) -> None:
    value, _ = watched
    assert not value.valid
    assert value.invalid_reason is not None
    reason, *others = value.invalid_reason.split("; ")
    assert reason == "GPU 1 slowed down by HW thermal slowdown for 100 % of the timed window, 91 C"
    assert all("stationary" in other for other in others), "a busy machine may not settle either"
    assert isinstance(value.telemetry, Telemetry)
    assert [gpu.samples > 0 for gpu in value.telemetry.gpus] == [True, True]
    assert value.energy_j_per_token == 0.0  # a counter that stands still is an answer


def test_samples_of_a_launch_are_kept_beside_it(watched: tuple[LaunchValue, Path]) -> None:
    value, directory = watched
    ticks = [json.loads(line) for line in (directory / telemetry.FILE).read_text().splitlines()]
    assert all(tick["gpus"]["b"]["temperature"] == 91 for tick in ticks)
    assert ticks == sorted(ticks, key=lambda tick: tick["t"])
    assert value.telemetry is not None
    assert 0 < value.telemetry.cost < 0.05


@pytest.mark.parametrize(
    ("gpus", "text"),
    [
        ([{}, {"idle": 0.5, "sync boost": 1.0}], "GPU ok"),
        ([{"SW power cap": 0.2}, {"SW power cap": 0.34, "HW slowdown": 0.001}], "SW power cap 34 %, HW slowdown 1 %"),
        ([None, {}], "GPU ok"),
        ([None, None], "GPU clocks unknown"),
    ],
)
def test_what_holds_gpus_back_in_a_few_words(gpus: list[dict[str, float] | None], text: str) -> None:
    assert held_back(gpus) == text


def test_of_a_running_launch_the_last_ticks_are_told() -> None:
    sampler = Sampler(FakeNvml(a=[{"reasons": HW}, {"reasons": CAP}]), ["a"])
    for _ in range(telemetry.RECENT_TICKS + 1):
        sampler.sample()
    assert held_back_lately(sampler.recent) == "SW power cap 100 %"
    assert len(sampler.recent.ticks) == telemetry.RECENT_TICKS
    assert held_back_lately(History(["a", "b"], (), lost=["b"])) == "the driver lost GPU 1"
