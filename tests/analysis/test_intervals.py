"""Interval arithmetic against a count of unit cells."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from epbench.analysis.intervals import Intervals, clip, covered_s, intervals, length_s, union

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple), max_size=8)


def cells(spans: list[tuple[int, int]]) -> set[int]:
    return {cell for start, end in spans for cell in range(start, end)}


def as_array(spans: list[tuple[int, int]]) -> Intervals:
    return intervals((float(start), float(end)) for start, end in spans)


@given(SPANS)
def test_a_union_has_the_same_points_once(spans: list[tuple[int, int]]) -> None:
    joined = union(as_array(spans))
    assert length_s(joined) == len(cells(spans))
    assert (joined[1:, 0] > joined[:-1, 1]).all()


@given(SPANS, SPANS)
def test_cover_is_the_common_part(spans: list[tuple[int, int]], by: list[tuple[int, int]]) -> None:
    covered = covered_s(as_array(spans), union(as_array(by)))
    expected = [len(cells([span]) & cells(by)) for span in spans]
    np.testing.assert_allclose(covered, expected, atol=1e-12)


@given(SPANS, st.integers(0, 15), st.integers(15, 30))
def test_a_clip_keeps_what_is_in_the_window(spans: list[tuple[int, int]], start: int, end: int) -> None:
    clipped = union(clip(as_array(spans), start, end))
    assert length_s(clipped) == len(cells(spans) & cells([(start, end)]))
