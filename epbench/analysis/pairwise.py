"""The ratio of every arm to every other: the numbers of ``statistics.ratio_interval``, a whole row at once.

A page whose reader may choose the reference needs all of them, 40,000 for 200 cells. One pair at a time takes
seconds; here each arm's logarithms are taken once, and a row of pairs is a few operations on arrays.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from epbench.analysis.statistics import CONFIDENCE, MIN_LAUNCHES, Interval, Round

__all__ = ["ratios_to"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Arms:
    """What a comparison needs of each arm; one entry an arm."""

    median: _Floats
    mean: _Floats  # of the logarithms, as all below
    square: _Floats  # variance of the mean; NaN below two launches
    count: _Floats

    @classmethod
    def of(cls, arms: Sequence[Mapping[Round, float]]) -> "_Arms":
        logs = [np.log(list(arm.values())) for arm in arms]
        squares = [values.var(ddof=1) / len(values) if len(values) > 1 else math.nan for values in logs]
        return cls(
            median=np.array([median(arm.values()) for arm in arms]),
            mean=np.array([values.mean() for values in logs]),
            square=np.array(squares),
            count=np.array([len(values) for values in logs], dtype=np.float64),
        )


def ratios_to(arms: Sequence[Mapping[Round, float]]) -> Iterator[list[Interval]]:
    """For each arm in turn, ``arm / other`` for all others in order, itself among them.

    An arm maps the round of a valid launch to its value, as for ``ratio_interval``, and has one at least.
    """
    if not arms:
        return
    found = _Arms.of(arms)
    logs = _by_rounds(arms)
    for index, arm in enumerate(arms):
        centre, half = _welch(found, index)
        alike, same = logs[frozenset(arm)]
        if len(arm) > 1:  # launches of one round ran close together, so they are pairs
            centre[alike], half[alike] = _paired(same, row=alike.index(index))
        yield _intervals(found, index, centre, half)


def _by_rounds(arms: Sequence[Mapping[Round, float]]) -> dict[frozenset[Round], tuple[list[int], _Floats]]:
    """Which arms have the same launches, and the logarithms of those, arm by arm."""
    alike: dict[frozenset[Round], list[int]] = {}
    for place, arm in enumerate(arms):
        alike.setdefault(frozenset(arm), []).append(place)
    return {
        rounds: (places, np.log([[arms[place][one] for one in arms[places[0]]] for place in places]))
        for rounds, places in alike.items()
    }


def _paired(logs: _Floats, *, row: int) -> tuple[_Floats, _Floats]:
    """Centre and half width of ``row - other`` for each row of ``logs``."""
    differences = logs[row] - logs
    count = logs.shape[1]
    half = _t_quantile(np.array(count - 1.0)) * differences.std(axis=1, ddof=1) / math.sqrt(count)
    return differences.mean(axis=1), half


def _welch(arms: _Arms, index: int) -> tuple[_Floats, _Floats]:
    """Centre and half width of the difference of means with unequal variances (Welch 1947)."""
    both = arms.square[index] + arms.square
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = arms.square[index] ** 2 / (arms.count[index] - 1) + arms.square**2 / (arms.count - 1)
        half = np.where(both > 0, _t_quantile(both**2 / shares) * np.sqrt(both), both)
    return arms.mean[index] - arms.mean, half


def _intervals(arms: _Arms, index: int, centre: _Floats, half: _Floats) -> list[Interval]:
    value = arms.median[index] / arms.median
    low, high = np.minimum(value, np.exp(centre - half)), np.maximum(value, np.exp(centre + half))
    known = np.minimum(arms.count, arms.count[index]) >= MIN_LAUNCHES
    rows = zip(value.tolist(), low.tolist(), high.tolist(), known.tolist(), strict=True)
    return [Interval(one, below, above) if enough else Interval(one) for one, below, above, enough in rows]


def _t_quantile(degrees: _Floats) -> _Floats:
    from scipy.special import stdtrit

    return np.asarray(stdtrit(degrees, (1 + CONFIDENCE) / 2), dtype=np.float64)
