"""Intervals against hand-computed numbers, and their coverage against seeded simulations."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.analysis.statistics import Interval, launch_interval, ratio_interval, ties, unpaired_ratio

T_2 = 4.302652729911275  # Student's t, 2 degrees of freedom, two-sided 95 %
T_4 = 2.7764451051977987


def arm(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_three_launches_by_hand() -> None:
    interval = launch_interval([1.0, math.e, math.e**2])  # logs 0, 1, 2: mean 1, sd 1
    assert interval is not None
    half = T_2 / math.sqrt(3)
    assert interval.value == pytest.approx(math.e)
    assert interval.low == pytest.approx(math.exp(1 - half))
    assert interval.high == pytest.approx(math.exp(1 + half))


@pytest.mark.parametrize(("values", "median"), [([2.0], 2.0), ([2.0, 3.0], 2.5)])
def test_fewer_than_three_launches_have_a_value_and_no_interval(values: list[float], median: float) -> None:
    interval = launch_interval(values)
    assert interval == Interval(median, None, None)
    assert interval is not None and not interval.known


def test_no_launches_have_no_value() -> None:
    assert launch_interval([]) is None
    assert ratio_interval({}, arm(1.0)) is None
    assert ratio_interval(arm(1.0), {}) is None


def test_equal_launches_have_an_interval_of_no_width() -> None:
    interval = launch_interval([0.25, 0.25, 0.25])
    assert interval is not None
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_skewed_median_stays_inside_its_interval() -> None:
    interval = launch_interval([1.0] * 30 + [2.0] * 29)  # the centre is near sqrt 2, the median is 1
    assert interval is not None and interval.low is not None and interval.high is not None
    assert interval.low == 1.0 < interval.high


def test_unpaired_ratio_keeps_what_both_arms_share() -> None:
    base, other = [1.0, math.e, math.e**2], [math.e, math.e**2, math.e**3]  # logs of sd 1, one apart
    ratio = unpaired_ratio(base, other)
    assert ratio is not None
    half = T_4 * math.sqrt(2 / 3)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((math.exp(1 - half), math.e, math.exp(1 + half)))
    assert unpaired_ratio([1.0, 1.1], other) == Interval(math.e**2 / 1.05)
    assert unpaired_ratio([], other) is None


def test_paired_ratio_removes_what_both_arms_share() -> None:
    base = arm(1.0, 2.0, 4.0)  # a machine that slows down between rounds
    other = {index: 1.1 * value for index, value in base.items()}
    ratio = ratio_interval(base, other)
    assert ratio is not None
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.1, 1.1, 1.1))
    assert ratio.excludes(1.0)


def test_paired_ratio_by_hand() -> None:
    ratio = ratio_interval(arm(1.0, 1.0, 1.0), arm(1.0, math.e, math.e**2))
    assert ratio is not None
    assert ratio.value == pytest.approx(math.e)
    assert ratio.low == pytest.approx(math.exp(1 - T_2 / math.sqrt(3)))
    assert not ratio.excludes(1.0)


def test_a_missing_launch_makes_it_welch() -> None:
    base = {0: 1.0, 1: math.e, 2: math.e**2}
    other = {1: math.e**10, 2: math.e**11, 3: math.e**12}  # same count, other launches: not pairs
    ratio = ratio_interval(base, other)
    assert ratio is not None
    half = T_4 * math.sqrt(2 / 3)  # equal variances of 1 and counts of 3: Welch's degrees are 4
    assert ratio.low == pytest.approx(math.exp(10 - half))
    assert ratio.high == pytest.approx(math.exp(10 + half))


def test_welch_of_arms_without_spread() -> None:
    ratio = ratio_interval({0: 2.0, 1: 2.0, 2: 2.0}, {3: 3.0, 4: 3.0, 5: 3.0})
    assert ratio is not None
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_ratio_of_two_launches_has_no_bounds() -> None:
    assert ratio_interval(arm(2.0, 2.0), arm(3.0, 3.0, 3.0)) == Interval(1.5)


def test_ties_name_the_fastest_first_and_leave_out_the_slower() -> None:
    arms = {
        "slow": arm(1.5, 1.51, 1.49),
        "near": arm(1.0, 1.02, 1.01),
        "fast": arm(1.0, 1.01, 0.99),
        "none": {},
    }
    assert ties(arms) == ["fast", "near"]
    assert ties({"slow": arms["slow"], "fast": arms["fast"]}) == ["fast"]
    assert ties({"none": {}}) == []


def test_arms_tied_with_a_noisy_fastest_are_told_from_each_other() -> None:
    arms = {"noisy": arm(90, 100, 135), "sure": arm(101, 101.1, 101.2), "slow": arm(120, 120.1, 120.2)}
    assert ties(arms) == ["noisy", "sure"]


def test_an_arm_of_two_launches_is_never_told_apart() -> None:
    assert ties({"a": arm(1.0, 1.01, 0.99), "b": arm(9.0, 9.0)}) == ["a", "b"]


positive = st.floats(1e-6, 1e3)


@given(st.lists(positive, min_size=3, max_size=9))
def test_an_interval_holds_its_value_and_scales_with_the_unit(values: list[float]) -> None:
    interval, scaled = launch_interval(values), launch_interval([1e3 * value for value in values])
    assert interval is not None and interval.low is not None and interval.high is not None
    assert scaled is not None
    assert interval.low <= interval.value <= interval.high
    assert (scaled.low, scaled.high) == pytest.approx((1e3 * interval.low, 1e3 * interval.high), rel=1e-6)


@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=7))
def test_swapping_the_arms_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    base, other = arm(*(a for a, _ in pairs)), arm(*(b for _, b in pairs))
    forth, back = ratio_interval(base, other), ratio_interval(other, base)
    assert forth is not None and back is not None and forth.low is not None and back.high is not None
    assert forth.low == pytest.approx(1 / back.high, rel=1e-6)


TRIALS = 4000


def simulated(rng: np.random.Generator, sd: float, count: int = 3) -> Sequence[float]:
    values: list[float] = np.exp(rng.normal(0.0, sd, count)).tolist()
    return values


@pytest.mark.parametrize("sd", [0.01, 0.058])  # between-launch spread of a quiet and of a noisy machine
def test_three_launches_cover_the_truth_95_times_in_100(sd: float) -> None:
    rng = np.random.default_rng(20261122)
    intervals = [launch_interval(simulated(rng, sd)) for _ in range(TRIALS)]
    covered = sum(interval is not None and not interval.excludes(1.0) for interval in intervals)
    assert covered / TRIALS == pytest.approx(0.95, abs=0.0103)  # 3 standard errors of 4000 trials


def test_the_ratio_of_equal_arms_covers_one_95_times_in_100() -> None:
    rng = np.random.default_rng(20261123)
    ratios = [ratio_interval(arm(*simulated(rng, 0.03)), arm(*simulated(rng, 0.03))) for _ in range(TRIALS)]
    covered = sum(ratio is not None and not ratio.excludes(1.0) for ratio in ratios)
    assert covered / TRIALS == pytest.approx(0.95, abs=0.0103)


@pytest.mark.parametrize("num_arms", [2, 6])
def test_equal_arms_rarely_get_a_winner(num_arms: int) -> None:
    rng = np.random.default_rng(20261124)
    trials = 1000
    winners = sum(len(ties({str(i): arm(*simulated(rng, 0.03)) for i in range(num_arms)})) == 1 for _ in range(trials))
    assert winners / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
