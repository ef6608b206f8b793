"""Where a series of nights changed its level: E-divisive with a permutation test.

The divergence of two stretches is their energy distance, which grows with any difference of their distributions and
needs no normal noise (Matteson and James, A Nonparametric Approach for Multiple Change Point Analysis of Multivariate
Data, JASA 109, 2014; the exponent of the distances is 1). The best split of a series is the one with the largest
divergence scaled by the lengths of both stretches; the second stretch may end before the series does, so that a short
excursion is not diluted by what follows it. It counts if at most ``alpha`` of random orders of the nights have one
as large. Then the two parts are searched in the same way, until no split counts.

Times are compared as logarithms: a change is a ratio. A night without a value is left out, and a change after it is
placed at the first night that has one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALPHA", "MIN_SEGMENT", "ChangePoint", "change_points"]

ALPHA = 0.01  # quiet series in which a change is found
MIN_SEGMENT = 3  # nights
PERMUTATIONS = 199
_BATCH = 50  # orders that are looked at together: enough to be fast, few enough to stop early
_SEED = 20140613

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ChangePoint:
    """The level from night ``index`` on differs from the one before; levels reach to the neighbouring changes."""

    index: int
    ratio: float  # median after over median before
    p: float  # share of random orders with a split as large


@dataclass(frozen=True)
class _Plan:
    alpha: float
    min_segment: int
    permutations: int


def change_points(
    values: Sequence[float | None],
    *,
    alpha: float = ALPHA,
    min_segment: int = MIN_SEGMENT,
    permutations: int = PERMUTATIONS,
) -> list[ChangePoint]:
    """Changes of a series of positive values, oldest first; None, NaN and what is not positive is a missing night.

    The answer is the same for the same values: the random orders have a fixed seed. Empty for fewer than
    ``2 * min_segment`` nights.
    """
    known = [at for at, value in enumerate(values) if value is not None and math.isfinite(value) and value > 0]
    logs = np.log(np.array([values[at] for at in known], dtype=np.float64))
    found = _splits(logs, _Plan(alpha, min_segment, permutations))
    edges = [0, *sorted(found), len(logs)]
    return [
        ChangePoint(known[at], _ratio(logs, before, at, after), found[at])
        for before, at, after in zip(edges, edges[1:], edges[2:], strict=False)
    ]


def _ratio(logs: Floats, before: int, at: int, after: int) -> float:
    return math.exp(float(np.median(logs[at:after]) - np.median(logs[before:at])))


def _splits(logs: Floats, plan: _Plan) -> dict[int, float]:
    """Places of all changes with their p, searched part by part."""
    random = np.random.default_rng(_SEED)
    found: dict[int, float] = {}
    waiting = [(0, len(logs))]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2 * plan.min_segment:
            continue
        part = logs[start:end]
        places, divergences = _best(_distances(part)[None], plan.min_segment)
        at, divergence = start + int(places[0]), float(divergences[0])
        p = _p_value(part, divergence, random, plan) if divergence > 0 else 1.0
        if p <= plan.alpha:
            found[at] = p
            waiting += [(start, at), (at, end)]
    return found


def _p_value(part: Floats, divergence: float, random: np.random.Generator, plan: _Plan) -> float:
    """Share of random orders that have a split as large, the order that was seen included; stops where it is clear."""
    distances, tried, as_large = _distances(part), 0, 0
    while tried < plan.permutations and (as_large + 1) / (plan.permutations + 1) <= plan.alpha:
        count = min(_BATCH, plan.permutations - tried)
        orders = random.permuted(np.tile(np.arange(len(part)), (count, 1)), axis=1)
        shuffled = distances[orders[:, :, None], orders[:, None, :]]
        _, largest = _best(shuffled, plan.min_segment)
        as_large += int(np.count_nonzero(largest >= divergence * (1 - 1e-12)))
        tried += count
    return (as_large + 1) / (tried + 1)


def _distances(part: Floats) -> Floats:
    return np.abs(part[:, None] - part[None, :])


def _best(distances: Floats, min_segment: int) -> tuple[NDArray[np.intp], Floats]:
    """Place and divergence of the best split of each of several series, given their distances: series x night x night.

    With n and m nights and the mean distances between (AB) and within (AA, BB) the stretches, the divergence is
    nm/(n+m) (2 AB - AA - BB).
    """
    nights = distances.shape[-1]
    middle, end = _places(nights, min_segment)
    n, m = middle, end - middle
    flat = _within(distances).reshape(len(distances), -1)
    left, right, both = (flat[:, at] for at in (middle, middle * (nights + 1) + end, end))
    between = 2 / (n + m)
    divergence = between * both - (between + 2 * m / ((n + m) * (n - 1))) * left
    divergence -= (between + 2 * n / ((n + m) * (m - 1))) * right
    best = np.argmax(divergence, axis=1)
    return middle[best], divergence[np.arange(len(best)), best]


def _within(distances: Floats) -> Floats:
    """Sum of the distances within nights a to b (b excluded), each pair once: series x (nights + 1) x (nights + 1)."""
    count, nights, _ = distances.shape
    sums = np.zeros((count, nights + 1, nights + 1))
    np.cumsum(np.cumsum(distances, axis=1), axis=2, out=sums[:, 1:, 1:])
    corner = np.diagonal(sums, axis1=1, axis2=2)
    within: Floats = (corner[:, None, :] + corner[:, :, None]) / 2 - sums  # the sums are symmetric
    return within


def _places(nights: int, min_segment: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every first stretch from the start, followed by a second one, both of ``min_segment`` nights or more."""
    middle, end = np.triu_indices(nights + 1, min_segment)
    keep = middle >= min_segment
    return middle[keep], end[keep]
