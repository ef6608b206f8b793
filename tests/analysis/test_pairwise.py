"""All pairs at once say what one pair at a time says."""

from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.analysis.pairwise import ratios_to
from epbench.analysis.statistics import Interval, ratio_interval

SECONDS = st.floats(0.01, 10.0)
ROUNDS = st.tuples(st.integers(0, 4), st.sampled_from(["", "another machine start"]))
ARMS = st.lists(st.dictionaries(st.integers(0, 4) | ROUNDS, SECONDS, min_size=1, max_size=5), min_size=1, max_size=6)


def bounds(ratio: Interval | None) -> tuple[float, ...]:
    """Value, low and high; the value alone where there are no bounds."""
    assert ratio is not None
    return tuple(x for x in (ratio.value, ratio.low, ratio.high) if x is not None)


@settings(max_examples=60, deadline=None)  # the first example imports scipy
@given(ARMS)
def test_every_pair_is_that_of_ratio_interval(arms: Sequence[dict[Hashable, float]]) -> None:
    """Paired where the launches are the same, Welch's where one is missing, no bounds below three."""
    for row, arm in zip(ratios_to(arms), arms, strict=True):
        for found, other in zip(row, arms, strict=True):
            assert bounds(found) == pytest.approx(bounds(ratio_interval(other, arm)), rel=1e-9)


def test_no_arms_have_no_ratios() -> None:
    assert list(ratios_to([])) == []


def test_equal_launches_in_unlike_rounds_have_an_interval_of_no_width() -> None:
    (first, _) = ratios_to([{0: 2.0, 1: 2.0, 2: 2.0}, {0: 1.0, 1: 1.0, 3: 1.0}])
    assert bounds(first[1]) == pytest.approx((2.0, 2.0, 2.0))
