"""The gate against a baseline of many nights: the night is the unit."""

import math

import numpy as np
import pytest

from epbench.analysis.arms import Arm, Night
from epbench.analysis.gate import judge
from epbench.gate_records import Word
from tests.analysis.gate_cells import QUIET, SPEC, arm_like, cell_of, metric, night_of, pair_of, verdict_of


def nights_of(count: int, sd: float = 0.002, launches: int = 5) -> tuple[Night, ...]:
    random = np.random.default_rng(3)
    return tuple(
        night_of(*0.2 * np.exp(start + sd / 5 * random.normal(size=launches)), peak_allocated_bytes=1e9 + at)
        for at, start in enumerate(sd * random.normal(size=count))
    )


def baseline_of(nights: tuple[Night, ...], *, is_settling: bool = False) -> Arm:
    return Arm(outcome="ok", reason=None, expected=True, nights=nights, is_settling=is_settling)


def test_a_baseline_of_many_nights_by_hand() -> None:
    """Nights' mean logs 0, .01, .02, .03, .04: sd sqrt(2.5) / 100; tonight 0.2; four degrees of freedom."""
    nights = tuple(night_of(*[math.exp(at / 100)] * 3) for at in range(5))
    verdict = verdict_of(baseline_of(nights), cell_of(*[math.exp(0.2)] * 3))
    work = metric(verdict, "step_s")
    half = 2.7764451051977987 * math.sqrt(2.5) / 100 * math.sqrt(1.2)
    assert (work.base_nights, work.base_launches, work.paired) == (5, 15, False)
    assert (work.base, work.ratio) == pytest.approx((math.exp(0.02), math.exp(0.18)))
    assert (work.ratio_low, work.ratio_high) == pytest.approx((math.exp(0.18 - half), math.exp(0.18 + half)))
    assert verdict.word == "regression"


def test_nights_count_as_many_launches_of_each_as_tonight_has() -> None:
    """The first three of four: the others would make the nights calmer than tonight can be."""
    nights = tuple(night_of(*[math.exp(at / 100)] * 3, 9.0) for at in range(5))
    change = metric(verdict_of(baseline_of(nights), cell_of(*[math.exp(0.2)] * 3)), "step_s")
    assert change.ratio_high == pytest.approx(math.exp(0.18 + 2.7764451051977987 * math.sqrt(2.5 * 1.2) / 100))


@pytest.mark.parametrize(("scale", "word"), [(1.0, "no change"), (1.1, "regression"), (1 / 1.1, "improvement")])
def test_tonight_against_many_nights(scale: float, word: Word) -> None:
    verdict = verdict_of(baseline_of(nights_of(8)), cell_of(*QUIET, scale=scale))
    assert verdict.word == word, verdict.why
    assert metric(verdict, "peak_allocated_bytes").base == 1e9 + 3.5


def test_nights_of_two_launches_are_no_nights() -> None:
    nights = (*nights_of(4), night_of(0.2, 0.2))
    verdict = verdict_of(baseline_of(nights), cell_of(*QUIET, scale=1.5))
    assert verdict.word == "inconclusive"
    assert "4 nights of the baseline have 3 launches, 5 are needed" in verdict.why


@pytest.mark.parametrize("count", [1, 4])
def test_a_settling_baseline_is_shown_and_fails_only_what_has_no_number(count: int) -> None:
    base = baseline_of(nights_of(count), is_settling=True)
    judged = judge([pair_of(base, cell_of(*QUIET, scale=2, peak_allocated_bytes=10**10))], SPEC)
    (verdict,) = judged.cells
    assert (verdict.word, judged.family) == ("new", 0)
    assert f"{count} of 5 nights" in verdict.why
    assert metric(verdict, "step_s").word == metric(verdict, "peak_allocated_bytes").word == "regression"
    assert not any(change.gated for change in verdict.metrics)
    assert verdict_of(base, arm_like("crashed")).word == "broken"
