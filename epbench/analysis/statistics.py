"""Intervals and comparisons whose unit of replication is the launch, never the step and never the rank.

Pooling the steps of a launch calls two identical builds different 70-89 % of the time; launch medians do so
at the stated rate. Every function here therefore takes one value per launch.

Why Student's t on logarithms: three launches are what a person can afford, and an interval from ranks (order
statistics) of three launches covers 75 % at most, however wide the spread. Launch medians are medians over
30 or more steps and so near enough to normal on the log scale, where a ratio becomes a difference and a time
cannot go below zero. ``tests/test_statistics.py`` holds the coverage by simulation.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TypeVar

import numpy as np

from epbench.analysis.differences import Difference, Floats, paired, welch

__all__ = [
    "CONFIDENCE",
    "MIN_LAUNCHES",
    "Interval",
    "Round",
    "launch_interval",
    "rank_p",
    "ratio_interval",
    "ratio_of",
    "ties",
    "unpaired_ratio",
]

CONFIDENCE = 0.95
Round = TypeVar("Round", bound=Hashable)  # what tells launches that ran close together: their index, or more
_LARGEST_LOG = 700.0  # few wild launches give an interval that no number can hold
MIN_LAUNCHES = 3  # fewer give a value, no interval, and are never ranked


@dataclass(frozen=True)
class Interval:
    """A value with its two-sided 95 % interval; ``low`` and ``high`` are None below three launches."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        """Whether there were launches enough for an interval."""
        return self.low is not None and self.high is not None

    def excludes(self, point: float) -> bool:
        """Whether the interval is known and ``point`` lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= point <= self.high


def launch_interval(values: Sequence[float]) -> Interval | None:
    """Median over launches with a 95 % t interval of their logarithms; None if there are no values.

    ``values`` are positive, one per valid launch. The interval is centred on the geometric mean and, where
    the launches are so skewed that their median falls outside, stretched to hold it: a printed value never
    lies outside its own interval, and stretching cannot lower the coverage.
    """
    if not values:
        return None
    logs = [math.log(value) for value in values]
    if len(logs) < MIN_LAUNCHES:
        return Interval(median(values))
    half = _t_quantile(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return _interval(median(values), centre=fmean(logs), half=half)


def ratio_interval(base: Mapping[Round, float], other: Mapping[Round, float]) -> Interval | None:
    """``other / base`` with its 95 % interval; each argument maps the round of a valid launch to its value.

    The value is the ratio of the two medians over launches, so that dividing two printed numbers gives it.
    Launches of one run are interleaved, so launches of one round ran close together: where both arms have the
    same rounds the interval is that of the paired differences of logarithms; where a launch of one arm is
    missing it is Welch's. A round is the launch's index, and whatever else must be the same for a pair. None if
    an arm is empty; without bounds if an arm has fewer than three launches.
    """
    if base.keys() != other.keys() or len(base) < MIN_LAUNCHES:
        return unpaired_ratio(list(base.values()), list(other.values()))
    difference = paired(_logs([base[one] for one in base]), _logs([other[one] for one in base]))
    return ratio_of(difference, median(other.values()) / median(base.values()))


def unpaired_ratio(base: Sequence[float], other: Sequence[float]) -> Interval | None:
    """``other / base`` with Welch's 95 % interval: of launches that nothing pairs, such as those of two runs.

    None if an arm is empty; without bounds if an arm has fewer than three launches.
    """
    if not base or not other:
        return None
    value = median(other) / median(base)
    if min(len(base), len(other)) < MIN_LAUNCHES:
        return Interval(value)
    return ratio_of(welch(_logs(base), _logs(other)), value)


def ratio_of(difference: Difference, value: float) -> Interval:
    """A ratio of medians with the 95 % interval of a difference of mean logs, stretched where needed to hold it."""
    return _interval(value, centre=float(difference.centre), half=float(difference.half(CONFIDENCE)))


def rank_p(base: Sequence[float], other: Sequence[float]) -> float | None:
    """Two-sided p that the arms are alike, by Mann-Whitney's U; None if one is empty.

    Exact where an arm has up to eight values and none are equal: then no difference, however large, has a p below 0.1
    at 3 against 3, 0.029 at 4 against 4 and 0.008 at 5 against 5.
    """
    from scipy.stats import mannwhitneyu

    if not len(base) or not len(other):
        return None
    if len({*base, *other}) == 1:
        return 1.0
    return float(mannwhitneyu(base, other, alternative="two-sided").pvalue)


def ties(arms: Mapping[str, Mapping[Round, float]]) -> list[str]:
    """The arms that none is faster than, as far as intervals tell: the lowest median first, no two told apart.

    An arm is left out if the interval of its ratio to any other, be it the fastest or not, says that it is slower:
    where the fastest scatters so much that nothing can be told from it, the others still can from each other. One
    name in the answer means that this arm is fastest; that claim needs no correction for the number of arms, because
    the best of many equal arms must beat the *second* best, which selection made fast too (Gutmann and Maymin, Annals
    of Statistics 15, 1987).
    """
    ranked = sorted((name for name in arms if arms[name]), key=lambda name: median(arms[name].values()))
    # An interval holds its value, so only an arm with a lower median can be told to be faster.
    return [
        name
        for place, name in enumerate(ranked)
        if not any(_differ(arms[faster], arms[name]) for faster in ranked[:place])
    ]


def _differ(base: Mapping[Round, float], other: Mapping[Round, float]) -> bool:
    ratio = ratio_interval(base, other)
    return ratio is not None and ratio.excludes(1.0)


def _logs(values: Sequence[float]) -> Floats:
    return np.log(np.asarray(values, dtype=np.float64))


def _interval(value: float, *, centre: float, half: float) -> Interval:
    """The interval ``exp(centre +- half)``, stretched where needed to hold ``value``."""
    return Interval(value, min(value, _exp(centre - half)), max(value, _exp(centre + half)))


def _exp(shift: float) -> float:
    return math.exp(min(max(shift, -_LARGEST_LOG), _LARGEST_LOG))


def _t_quantile(degrees: float) -> float:
    """Two-sided critical value of Student's t at CONFIDENCE."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
