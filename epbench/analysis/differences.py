"""The difference of two arms on the log scale: its estimate, its standard error, and what may be said of it.

Three designs. **Paired**: launches of one round, whose differences leave out what both arms had of the machine.
**Welch** (1947): launches of two runs, that nothing pairs. **Nights**: against a baseline of many nights, where
launches of one night have that night in common, so the night is the unit and tonight is one more draw from the same
population: Student's t with n - 1 degrees of freedom and the standard error sd x sqrt(1 + 1/n) of a prediction (Hahn
and Meeker, Statistical Intervals, 1991, chapter 4).

Arms are arrays of logarithms whose last axis is the launch (or night); leading axes are compared one by one, so that a
simulation asks what the gate asks, thousands of times at once.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["POWER", "Difference", "Floats", "growth_found", "holm", "nights", "paired", "welch"]

Floats = NDArray[np.float64]
POWER = 0.95
# Relative, below what any clock tells: launches that agree to the last bit have no scatter, and a difference that is
# the limit but for rounding must not become certain.
_SMALLEST_ERROR = 1e-12
_LARGEST_LOG = 700.0
_WILD = 300.0  # critical value of a t test whose level is too small for its degrees of freedom


@dataclass(frozen=True)
class Difference:
    """Mean log of head less that of base."""

    centre: Floats
    error: Floats  # standard error of the centre
    degrees: Floats  # of freedom, of the error
    scatter: Floats  # standard deviation of one launch, or night, about its arm

    def above(self, limit: float) -> Floats:
        """One-sided p that the truth is at most ``limit``."""
        return _upper((self.centre - limit) / self._error, self.degrees)

    def below(self, limit: float) -> Floats:
        """One-sided p that the truth is at least ``-limit``: ``above`` with the arms swapped."""
        return _upper((-self.centre - limit) / self._error, self.degrees)

    @property
    def swapped(self) -> "Difference":
        """With base and head exchanged."""
        return replace(self, centre=-self.centre)

    def half(self, confidence: float) -> Floats:
        """Half width of the two-sided interval."""
        from scipy.special import stdtrit

        return np.asarray(self.error * stdtrit(self.degrees, (1 + confidence) / 2))

    @property
    def _error(self) -> Floats:
        return np.maximum(self.error, _SMALLEST_ERROR)


def paired(base: Floats, head: Floats) -> Difference:
    """Of launches [..., K] in the same rounds, K at least 2."""
    differences = head - base
    count = differences.shape[-1]
    sd = differences.std(axis=-1, ddof=1)
    degrees = np.full(sd.shape, count - 1.0)
    return Difference(differences.mean(axis=-1), sd / math.sqrt(count), degrees, sd / math.sqrt(2))


def welch(base: Floats, head: Floats) -> Difference:
    """Of launches [..., K] and [..., L] that nothing pairs, two at least; variances may differ."""
    counts = (base.shape[-1], head.shape[-1])
    variances = [arm.var(axis=-1, ddof=1) for arm in (base, head)]
    squares = [variance / count for variance, count in zip(variances, counts, strict=True)]
    error = np.sqrt(squares[0] + squares[1])
    pooled = sum(variance * (count - 1) for variance, count in zip(variances, counts, strict=True)) / (sum(counts) - 2)
    centre = head.mean(axis=-1) - base.mean(axis=-1)
    return Difference(centre, error, _satterthwaite(squares, counts), np.sqrt(pooled))


def _satterthwaite(squares: list[Floats], counts: tuple[int, int]) -> Floats:
    """Welch's degrees of freedom; those of equal variances where nothing scatters."""
    total = squares[0] + squares[1]
    whole = np.where(total > 0, total, 1.0)
    shares = sum((square / whole) ** 2 / (count - 1) for square, count in zip(squares, counts, strict=True))
    return np.where(total > 0, 1 / np.where(total > 0, shares, 1.0), sum(counts) - 2.0)


def nights(base: Floats, head: Floats) -> Difference:
    """Of the means of n nights [..., n] and of tonight's [...], n at least 2."""
    count = base.shape[-1]
    sd = base.std(axis=-1, ddof=1)
    degrees = np.full(sd.shape, count - 1.0)
    return Difference(head - base.mean(axis=-1), sd * math.sqrt(1 + 1 / count), degrees, sd)


def _upper(statistic: Floats, degrees: Floats) -> Floats:
    from scipy.special import stdtr

    return np.asarray(stdtr(degrees, -statistic))


def holm(ps: Floats) -> Floats:
    """Adjusted p [..., m] of m tests each (Holm, Scandinavian Journal of Statistics 6, 1979); at most 1."""
    count = ps.shape[-1]
    order = np.argsort(ps, axis=-1, kind="stable")
    steps = np.take_along_axis(ps, order, axis=-1) * np.arange(count, 0, -1)
    adjusted = np.empty_like(ps)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return adjusted


def growth_found(error: float, degrees: float, *, limit: float, alpha: float) -> float:
    """The relative growth that a one-sided t test of "at most ``limit``" (a log) finds in POWER of nights.

    From the noncentral t distribution (Cohen, Statistical Power Analysis, 1988, chapter 2); ``error`` is the standard
    error of the log ratio, taken as true. Infinite where no number can hold it.
    """
    shift = limit + _noncentrality(degrees, alpha) * error
    return math.expm1(shift) if shift < _LARGEST_LOG else math.inf


@lru_cache(4096)
def _noncentrality(degrees: float, alpha: float) -> float:
    """The shift, in standard errors, at which the t test finds what is there in POWER of the nights."""
    from scipy.optimize import brentq
    from scipy.special import chdtri, nctdtr, stdtrit

    critical = float(stdtrit(degrees, 1 - alpha))
    if critical > _WILD:  # the estimated scatter is all that matters then, and nctdtr has no values
        return critical * math.sqrt(float(chdtri(degrees, 1 - POWER)) / degrees)
    largest = 3 * critical + 10  # well above the answer, from two degrees of freedom up
    return float(brentq(lambda shift: nctdtr(degrees, shift, critical) - (1 - POWER), 0.0, largest))
