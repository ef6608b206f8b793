"""One timing of one cell in both arms: how the arms are compared, and the word that follows.

A growth is a regression if "it is at most the limit" is refuted, one-sided; a fall is judged by the same test with the
arms swapped. What is neither is no change only if nothing speaks against it. Medians beyond the limit whose interval
leaves zero out do: more launches may refute. So do launches that scatter so much that a growth of
``GateSpec.detectable`` would be missed: nothing was found out. (Or of twice the limit, where the absolute floor of a
short step or a wide limit makes that more: what is allowed need not be found.)
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from epbench.analysis.arms import MIN_NIGHTS, Arm
from epbench.analysis.differences import Difference, Floats, growth_found, nights, paired, welch
from epbench.analysis.statistics import MIN_LAUNCHES, Interval, rank_p, ratio_of
from epbench.gate_records import GateSpec, MetricChange, Word

__all__ = ["Timing", "percent", "timing_of"]

_Side = list[list[float]]  # night, launch: seconds


@dataclass(frozen=True)
class Timing:
    """A metric in both arms, compared as far as there are launches; ``limit`` is a log ratio."""

    metric: str
    gated: bool
    medians: tuple[float | None, float | None]  # base, head
    launches: tuple[int, int]
    base_nights: int
    limit: float
    paired: bool = False
    difference: Difference | None = None  # None: too few launches, or nights
    p_rank: float | None = None
    why: str = ""  # nothing can be decided

    @property
    def ps(self) -> tuple[float, float] | None:
        """One-sided p of a growth and of a fall beyond the limit; None where there are too few launches."""
        found = self.difference
        return None if found is None else (float(found.above(self.limit)), float(found.below(self.limit)))

    @property
    def ratio(self) -> Interval | None:
        """Head over base, of medians, with its two-sided 95 % interval, stretched where needed to hold it."""
        base, head = self.medians
        if base is None or head is None:
            return None
        value = head / base
        if self.difference is None:
            return Interval(value)
        return ratio_of(self.difference, value)

    def found(self, alpha: float) -> float | None:
        """The smallest relative growth that such launches show in 95 % of nights; infinite where none does."""
        if self.difference is None:
            return None
        return growth_found(float(self.difference.error), float(self.difference.degrees), limit=self.limit, alpha=alpha)

    def judged(
        self, *, alpha: float, family: int, adjusted: tuple[float, float] | None, allowed: float
    ) -> MetricChange:
        """The record; ``adjusted`` are ``ps`` after Holm, None where nothing was adjusted, ``allowed`` is detectable.

        What would be found is told for Holm's hardest step, ``alpha / family``.
        """
        ratio, ps, detectable = self.ratio, self.ps, self.found(alpha / family)
        word, why = self._word(adjusted or ps, alpha, detectable, allowed)
        side = 0 if self.difference is None or self.difference.centre >= 0 else 1
        return MetricChange(
            metric=self.metric,
            kind="timing",
            gated=self.gated,
            base=self.medians[0],
            head=self.medians[1],
            base_launches=self.launches[0],
            head_launches=self.launches[1],
            base_nights=self.base_nights,
            ratio=ratio and ratio.value,
            ratio_low=ratio and ratio.low,
            ratio_high=ratio and ratio.high,
            paired=self.paired,
            p=ps and ps[side],
            p_holm=adjusted and adjusted[side],
            p_rank=self.p_rank,
            limit=math.expm1(self.limit),
            detectable=None if detectable is None or math.isinf(detectable) else detectable,
            word=word,
            why=why,
        )

    def _word(
        self, ps: tuple[float, float] | None, alpha: float, detectable: float | None, allowed: float
    ) -> tuple[Word, str]:
        if ps is None or detectable is None or self.difference is None:
            return "inconclusive", self.why
        is_refuted, side = min(ps) <= alpha, self._side
        if is_refuted and not side:
            return "inconclusive", self._apart
        if is_refuted and self._is_bound_beyond:
            by = f"{self._growth}, where {self._allowed} is allowed"
            return ("regression", by) if side > 0 else ("improvement", self._growth)
        if side and (is_refuted or self._is_told_from_zero):
            perhaps = f"{self._growth}, perhaps beyond the limit of {self._allowed}"
            return "inconclusive", f"{perhaps}: more launches would tell"
        if detectable <= max(allowed, math.expm1(2 * self.limit)):
            return "no change", ""
        missed = "even a slowdown to tenfold" if detectable > 9 else f"a slowdown below {percent(detectable)}"
        scatter = percent(float(self.difference.scatter))
        unit = "nights" if self.base_nights >= MIN_NIGHTS else "launches"
        return "inconclusive", f"{unit} scatter by {scatter}: {missed} would be missed"

    @property
    def _side(self) -> int:
        """1 if the medians grew beyond the limit, -1 if they fell so far, and the means went the same way; else 0."""
        assert self.difference is not None and self.ratio is not None, "there are p"
        side = 1 if self.difference.centre >= 0 else -1
        return side if side * math.log(self.ratio.value) > self.limit else 0

    @property
    def _is_bound_beyond(self) -> bool:
        """Whether the whole interval that is printed is beyond the limit; of a refuted test, unless alpha is wide."""
        assert self.ratio is not None and self.ratio.low is not None and self.ratio.high is not None, "there are p"
        return math.log(self.ratio.low) > self.limit or math.log(self.ratio.high) < -self.limit

    @property
    def _is_told_from_zero(self) -> bool:
        return self.ratio is not None and self.ratio.excludes(1.0)

    @property
    def _growth(self) -> str:
        """``5.0 % slower``, ``10.0 % faster``: by as much as tables print."""
        assert self.ratio is not None, "what differs has a value in both arms"
        growth = self.ratio.value - 1
        return f"{percent(abs(growth))} {'faster' if growth < 0 else 'slower'}"

    @property
    def _allowed(self) -> str:
        return percent(math.expm1(self.limit))

    @property
    def _apart(self) -> str:
        """Of means that are beyond the limit and medians that are not: some launches changed, most did not."""
        assert self.difference is not None and self.ratio is not None, "there are p"
        side = "slower" if self.difference.centre > 0 else "faster"
        changes = (math.expm1(float(self.difference.centre)), self.ratio.value - 1)
        mean, middle = (f"{100 * change:+.1f} %" for change in changes)
        return f"some launches are much {side} than others: {mean} by the mean, {middle} by the median"


def timing_of(base: Arm, head: Arm, metric: str, spec: GateSpec, *, allowed: float | None) -> Timing | None:
    """A metric that an arm has, or that is gated: ``allowed`` is its relative growth then, else None."""
    sides = [_nights_of(arm, metric) for arm in (base, head)]
    if allowed is None and not any(sides):
        return None
    medians = [median(map(median, side)) if side else None for side in sides]
    counts = [sum(map(len, side)) for side in sides]
    found, is_paired, why = _compared((base, head), sides, metric)
    by_nights = any(len(arm.nights) > 1 for arm in (base, head)) and not (base.is_settling or head.is_settling)
    return Timing(
        metric=metric,
        gated=allowed is not None and not (base.is_settling or head.is_settling),
        medians=(medians[0], medians[1]),
        launches=(counts[0], counts[1]),
        base_nights=max(1, len(sides[0])),
        limit=_limit(spec.practical_limit if allowed is None else allowed, spec.absolute_floor_s, medians),
        paired=is_paired,
        difference=found,
        p_rank=None if found is None else _p_rank(sides, by_nights=by_nights),
        why=why,
    )


def _nights_of(arm: Arm, metric: str) -> _Side:
    found = [list(night.timings.get(metric, {}).values()) for night in arm.nights]
    return [values for values in found if values]


def _limit(growth: float, floor_s: float, medians: Sequence[float | None]) -> float:
    """Log ratio: the same whichever arm is base, so the floor is relative to the smaller one.

    Then what is beyond it is a change of more seconds than the floor, whatever it is relative to either arm.
    """
    smaller_s = min((value for value in medians if value is not None), default=math.inf)
    return max(math.log1p(growth), math.log1p(floor_s / smaller_s))


def _compared(arms: tuple[Arm, Arm], sides: Sequence[_Side], metric: str) -> tuple[Difference | None, bool, str]:
    """The difference, whether it is of pairs, and why there is none."""
    for name, arm, side in zip(("base", "head"), arms, sides, strict=True):
        if sum(map(len, side)) < MIN_LAUNCHES:
            return None, False, _too_few(arm, side, name)
    is_many = [len(arm.nights) > 1 for arm in arms]
    if any(is_many) and not any(arm.is_settling for arm in arms):
        found, why = _by_nights(sides, is_many)
        return found, False, why
    pairs = None if any(is_many) else _pairs(*(arm.nights[0].timings[metric] for arm in arms))
    if pairs is not None:
        return paired(*pairs), True, ""
    return welch(*(np.log(np.concatenate(side)) for side in sides)), False, ""


def _too_few(arm: Arm, side: _Side, name: str) -> str:
    """A launch may be valid and yet without this value: not traced, or zero, which has no logarithm."""
    count = sum(map(len, side))
    valid = sum(max(map(len, night.timings.values()), default=0) for night in arm.nights)
    of = f"{count} of {valid}" if count < valid else str(count)
    what = f"valid launch{'es' * (of != '1')}"
    with_value = " with a value above zero" if count < valid else ""
    return f"{of} {what}{with_value} in {name}, {MIN_LAUNCHES} are needed"


def _by_nights(sides: Sequence[_Side], is_many: Sequence[bool]) -> tuple[Difference | None, str]:
    """The night as the unit; nights of fewer than three launches are none.

    Nights of more launches than tonight's scatter less than tonight does, so no more than tonight's are taken of each.
    Nights of fewer scatter more, which hides changes and raises no alarms.
    """
    tonight = min((len(side[0]) for side, many in zip(sides, is_many, strict=True) if not many), default=None)
    means = [_means(side, tonight) for side in sides]
    for mean, many in zip(means, is_many, strict=True):
        if many and len(mean) < MIN_NIGHTS:
            return None, f"{len(mean)} nights of the baseline have {MIN_LAUNCHES} launches, {MIN_NIGHTS} are needed"
    if all(is_many):
        return welch(*means), ""
    if is_many[0]:
        return nights(means[0], means[1][0]), ""
    return nights(means[1], means[0][0]).swapped, ""


def _means(side: _Side, launches: int | None) -> Floats:
    return np.array([np.log(night[:launches]).mean() for night in side if len(night) >= MIN_LAUNCHES])


def _pairs(base: Mapping[Hashable, float], head: Mapping[Hashable, float]) -> tuple[Floats, Floats] | None:
    """Logs of the launches of the rounds that both arms have; None if pairing would lose more than one launch."""
    common = [place for place in base if place in head]
    if len(common) < max(MIN_LAUNCHES, min(len(base), len(head)) - 1):
        return None
    return np.log([base[place] for place in common]), np.log([head[place] for place in common])


def _p_rank(sides: Sequence[_Side], *, by_nights: bool) -> float | None:
    """Mann-Whitney's, two-sided, of launches, or of nights' medians."""
    base, head = ([median(night) for night in side] if by_nights else np.concatenate(side).tolist() for side in sides)
    return rank_p(base, head)


def percent(share: float) -> str:
    """Of a relative change: two decimals below one per cent, one above."""
    return f"{100 * share:.{2 if abs(share) < 0.01 else 1}f} %"
