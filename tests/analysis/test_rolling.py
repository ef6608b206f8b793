"""Two nights running against a robust window: single cases by hand, rates by simulation."""

import math

import numpy as np
import pytest

from epbench.analysis.rolling import MIN_WINDOW, WINDOW, Floats, alarms, beyond, tonight

QUIET = [1.0, 1.01, 0.99, 1.0, 1.005, 0.995, 1.0, 1.01, 0.99, 1.0]  # median 1, robust deviation 0.0074
SERIES = 20_000

CASES = {
    "two above": ([*QUIET, 1.04, 1.05], "slower"),
    "two below": ([*QUIET, 0.96, 0.95], "faster"),
    "one above": ([*QUIET, 1.0, 1.05], "quiet"),
    "one of each": ([*QUIET, 0.95, 1.05], "quiet"),
    "beyond the noise but not the limit": ([*[1.0] * 10, 1.014, 1.014], "quiet"),
    "beyond the limit of a series without noise": ([*[1.0] * 10, 1.016, 1.016], "slower"),
    "beyond the limit but not the noise": ([1.0, 1.1, 0.9, 1.05, 0.95] * 3 + [1.03, 1.03], "quiet"),
    "a bad night in the window": ([*QUIET[:9], 3.0, 1.04, 1.04], "slower"),
    "nights that are missing": ([*QUIET, None, 1.04, math.nan, 1.04, None], "slower"),
    "too few before": ([*QUIET[1:], 1.04, 1.05], "too few nights"),
    "one night": ([1.0], "too few nights"),
}


@pytest.mark.parametrize(("values", "word"), CASES.values(), ids=CASES)
def test_word_of_tonight(values: list[float | None], word: str) -> None:
    found = tonight(values)
    assert found is not None
    assert found.word == word
    assert (len(values) - 1 in alarms(values)) == (word in ("slower", "faster") and values[-1] is not None)


def test_numbers_of_tonight() -> None:
    found = tonight([*QUIET, 1.0, 1.05])
    assert found is not None
    assert found.nights == 10
    assert (found.median, found.ratio) == pytest.approx((1.0, 1.05))
    assert found.deviation == pytest.approx(1.4826 * 0.005, rel=0.01)
    assert found.is_beyond


def test_no_night_is_no_answer() -> None:
    assert tonight([None, math.nan, 0.0, -1.0]) is None
    assert alarms([None]) == {}


def test_window_is_of_the_nights_just_before() -> None:
    """Old nights at another level are forgotten: the window is short of them."""
    assert tonight([5.0] * 30 + [1.0] * WINDOW + [1.04, 1.04]).word == "slower"  # type: ignore[union-attr]


def nights(random: np.random.Generator, count: int) -> Floats:
    """Logarithms of the medians of five launches: nights scatter by 0.8 %, launches by 0.6 %."""
    launches = np.median(random.normal(0.0, 0.006, (SERIES, count, 5)), axis=2)
    return launches + random.normal(0.0, 0.008, (SERIES, count))


def both(values: Floats, at: int) -> Floats:
    """Of each series 1 or -1 if night ``at`` and the one before are beyond on that side, else 0."""
    sides = beyond(values[:, at - 1 - WINDOW : at - 1], values[:, at - 1 : at + 1])
    result: Floats = np.where(sides[:, 0] == sides[:, 1], sides[:, 0], 0.0)
    return result


def test_rates_by_simulation() -> None:
    random = np.random.default_rng(8)
    quiet, slow = nights(random, WINDOW + 2), nights(random, WINDOW + 3)
    slow[:, WINDOW:] += math.log(1.03)
    false_alarms = np.mean(both(quiet, WINDOW + 1) != 0)
    found = np.mean((both(slow, WINDOW + 1) == 1) | (both(slow, WINDOW + 2) == 1))
    assert 0.001 < false_alarms < 0.0045  # 0.3 %
    assert 0.86 < found < 0.90  # 88 %


def test_a_fixed_golden_value_finds_less() -> None:
    """What the window replaces: a golden value with 5 % either way finds 3 % once in a blue moon."""
    slow = nights(np.random.default_rng(9), 3) + math.log(1.03)
    assert np.mean((np.abs(slow) > math.log(1.05)).any(axis=1)) < 0.15


def test_least_window_is_said() -> None:
    assert tonight([*QUIET, 1.04, 1.04]).nights == MIN_WINDOW  # type: ignore[union-attr]
