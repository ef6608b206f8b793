"""Arithmetic on sets of time intervals, as float64 arrays [N, 2] of (start, end) in seconds."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Intervals", "clip", "covered_s", "intervals", "length_s", "union"]

Intervals = NDArray[np.float64]


def intervals(pairs: Iterable[tuple[float, float]]) -> Intervals:
    """The pairs as an array, also when there are none."""
    return np.array(list(pairs), dtype=np.float64).reshape(-1, 2)


def union(spans: Intervals) -> Intervals:
    """The same points of time as disjoint intervals in order; empty intervals vanish."""
    spans = spans[spans[:, 1] > spans[:, 0]]
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.flatnonzero(np.r_[True, spans[1:, 0] > reach[:-1]])
    last = np.r_[first[1:] - 1, len(spans) - 1]
    return np.column_stack([spans[first, 0], reach[last]])


def length_s(disjoint: Intervals) -> float:
    """Total length of disjoint intervals."""
    return float((disjoint[:, 1] - disjoint[:, 0]).sum())


def clip(spans: Intervals, start_s: float, end_s: float) -> Intervals:
    """What of the intervals lies within one window."""
    clipped = np.clip(spans, start_s, end_s)
    return clipped[clipped[:, 1] > clipped[:, 0]]


def covered_s(spans: Intervals, by: Intervals) -> NDArray[np.float64]:
    """Per interval of ``spans`` [N, 2] the seconds of it, [N], that the disjoint, ordered ``by`` covers.

    The length that ``by`` covers up to a time is piecewise linear in that time, so two interpolations do it.
    """
    if not len(by):
        return np.zeros(len(spans))
    lengths = by[:, 1] - by[:, 0]
    covered_at_edges = np.column_stack([np.cumsum(lengths) - lengths, np.cumsum(lengths)]).ravel()
    upto = np.interp(spans, by.ravel(), covered_at_edges)
    return np.asarray(upto[:, 1] - upto[:, 0])
