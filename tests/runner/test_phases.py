"""Phases of a launch: hand-made times of ranks, and what must hold of any."""

from pathlib import Path

import pytest

from epbench.runner.phases import Stopwatch, launch_phases, median_phases
from epbench.runner.ranklog import RankTail
from epbench.runner.watch import LaunchEnd
from tests.runner.conftest import make_spec

ORDERED_S = 1000.0
Times = dict[str, float]


def end(directory: Path, *ranks: Times, elapsed_s: float) -> LaunchEnd:
    """A launch whose ranks entered phases these many seconds after it was ordered."""
    spec = make_spec(directory, "good")
    tails = []
    for rank, times in enumerate(ranks):
        tail = RankTail(spec.rank_log(rank), rank)
        tail.entered = {phase: ORDERED_S + after_s for phase, after_s in times.items()}
        tails.append(tail)
    return LaunchEnd(spec, elapsed_s, 0, tails=tails, ordered_s=ORDERED_S)


FAST = {"start": 0.5, "ready": 1.0, "build": 1.0, "warmup": 3.0, "timing": 8.0, "trace": 9.0, "done": 10.0}
SLOW = {"start": 0.75, "ready": 1.5, "build": 1.5, "warmup": 2.5, "timing": 8.25, "trace": 9.0, "done": 11.0}
CASES = {
    "a phase begins when its last rank enters it": (
        (FAST, SLOW), None,
        {"start_up": 1.5, "build": 1.5, "warmup": 5.25, "timing": 0.75, "trace": 2.0, "teardown": 1.0},
    ),
    "compilation is taken out of the warm-up": (
        (FAST,), 4.5,
        {"start_up": 1.0, "build": 2.0, "compile": 4.5, "warmup": 0.5, "timing": 1.0, "trace": 1.0, "teardown": 2.0},
    ),
    "and is never more than it": (
        (FAST,), 7.0,
        {"start_up": 1.0, "build": 2.0, "compile": 5.0, "warmup": 0.0, "timing": 1.0, "trace": 1.0, "teardown": 2.0},
    ),
    "the stages of verification": (
        ({"start": 0.5, "ready": 1.0, "verify_reference": 1.0, "verify_layout": 4.0, "verify_own_dtype": 9.0,
          "done": 11.0},), None,
        {"start_up": 1.0, "verify_reference": 3.0, "verify_layout": 5.0, "verify_own_dtype": 2.0, "teardown": 1.0},
    ),
    "a rank that is behind for good holds no other back": (
        ({"start": 0.5, "ready": 1.0, "build": 1.0, "warmup": 2.0}, {"start": 0.5, "ready": 4.0, "build": 5.0}), None,
        {"start_up": 5.0, "build": 0.0, "warmup": 7.0},
    ),
    "nobody came": (({}, {}), None, {"start_up": 12.0}),
}  # fmt: skip


@pytest.mark.parametrize(("ranks", "compile_s", "expected"), CASES.values(), ids=CASES)
def test_phases_are_exclusive_and_sum_to_the_launch(
    tmp_path: Path, ranks: tuple[Times, ...], compile_s: float | None, expected: Times
) -> None:
    found = launch_phases(end(tmp_path, *ranks, elapsed_s=12.0), analysis_s=0.25, compile_s=compile_s)
    assert found == pytest.approx(expected | {"analysis": 0.25})
    assert list(found) == [*expected, "analysis"]
    assert sum(found.values()) == pytest.approx(12.25)


def test_a_median_is_over_the_launches_that_came_to_the_phase() -> None:
    launches = [{"build": 1.0, "memory": 5.0}, {"build": 3.0}, {"build": 2.0}]
    assert median_phases(launches) == {"build": 2.0, "memory": 5.0}


def test_a_stopwatch_leaves_no_second_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("epbench.runner.phases.time.monotonic", lambda: now_s[0])
    watch = Stopwatch()
    for name, seconds in (("launches", 5.0), ("canary", 2.0), ("launches", 3.0)):
        now_s[0] += 0.5
        with watch.of(name):
            now_s[0] += seconds
    assert watch.seconds == {"launches": 8.0, "canary": 2.0, "elsewhere": 1.5}
    assert sum(watch.seconds.values()) == watch.elapsed_s
