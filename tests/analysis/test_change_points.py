"""E-divisive: single series by hand, rates and places by simulation with fixed seeds."""

import math
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.analysis.change_points import ALPHA, MIN_SEGMENT, change_points

SD = 0.0085  # of a night's median: nights 0.8 %, five launches of 0.6 %
NIGHTS = 60


def noise(seed: int, nights: int = NIGHTS) -> list[float]:
    return list(0.2 * np.exp(np.random.default_rng(seed).normal(0.0, SD, nights)))


def shifted(values: list[float], *changes: tuple[int, float]) -> list[float]:
    """The series with its level multiplied from each night on."""
    return [value * math.prod(1 + size for at, size in changes if night >= at) for night, value in enumerate(values)]


def places(values: list[float | None] | list[float]) -> list[int]:
    return [found.index for found in change_points(values)]


def test_divergence_is_that_of_the_definition() -> None:
    """Two levels without noise: the only split of any merit is between them."""
    found = change_points([1.0] * 6 + [2.0] * 6)
    assert [one.index for one in found] == [6]
    assert found[0].ratio == pytest.approx(2.0)
    assert found[0].p <= ALPHA


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 60, [1.0, 1.0, 2.0, 2.0, 2.0], [None] * 30, [math.nan] * 9])
def test_nothing_to_split(values: list[float | None]) -> None:
    assert places(values) == []


def test_quiet_series_stay_quiet() -> None:
    """At most about alpha of them: 150 series, so that 5 is three standard deviations above 1.5."""
    assert sum(bool(places(noise(seed))) for seed in range(150)) <= 5


def test_planted_change_is_found_within_one_night() -> None:
    """A change of four standard deviations, 3.4 % here, anywhere but in the first or last five nights."""
    for seed in range(20):
        at = 5 + (seed * 7) % 50
        found = places(shifted(noise(seed + 1000), (at, 4 * SD)))
        assert any(abs(place - at) <= 1 for place in found), (seed, at, found)


def test_several_changes_and_their_ratios() -> None:
    found = change_points(shifted(noise(3), (20, 0.06), (40, -0.05)))
    assert [one.index for one in found] == pytest.approx([20, 40], abs=1)
    assert [one.ratio for one in found] == pytest.approx([1.06, 0.95], abs=0.01)


def test_missing_nights_are_left_out_and_places_are_of_the_whole_series() -> None:
    values: list[float | None] = [*shifted(noise(4), (30, 0.05))]
    values[10], values[11], values[30] = None, math.nan, None
    assert places(values) == [31]


def test_same_answer_every_time() -> None:
    values = shifted(noise(5), (25, 0.02))
    assert change_points(values) == change_points(values)


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.floats(0.9, 1.1) | st.none() | st.just(5.0), max_size=25),
    factor=st.sampled_from([0.001, 1.0, 1e6]),
)
def test_segments_are_long_enough_and_units_do_not_matter(values: list[float | None], factor: float) -> None:
    found = places(values)
    known = [at for at, value in enumerate(values) if value is not None]
    edges = [0, *(known.index(at) for at in found), len(known)]
    assert all(after - before >= MIN_SEGMENT for before, after in pairwise(edges) if found)
    assert places([None if value is None else value * factor for value in values]) == found


def test_sixty_nights_take_well_under_a_second() -> None:
    values = shifted(noise(6), (20, 0.06), (40, -0.05))
    began = time.process_time()
    change_points(values)
    assert time.process_time() - began < 1.0
