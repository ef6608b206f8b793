"""The gate: the cells of two arms, a word for each, and no more false alarms a night than the scenario allows.

``epbench.analysis.gate_timings`` compares one timing. Here the gated ones of all cells share one rate of false alarms:
Holm's correction (Scandinavian Journal of Statistics 6, 1979) over every (cell, timing) that has a p, regressions and
improvements as two families. With two looks each has half of the rate (Bonferroni), and the caller says so by
``alpha``. Counters do not scatter and need none of this.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import get_args

import numpy as np

from epbench.analysis.arms import MIN_NIGHTS, TRANSFER, Arm
from epbench.analysis.differences import holm
from epbench.analysis.gate_counters import counters_of
from epbench.analysis.gate_outcomes import word_of_outcomes
from epbench.analysis.gate_timings import Timing, timing_of
from epbench.gate_records import TIMINGS, CellVerdict, GateSpec, MetricChange, Word
from epbench.records import CellResult

__all__ = ["NOT_GATED", "Judged", "Pair", "is_gated", "judge", "limits", "unknown", "worst"]

NOT_GATED = "not gated"  # what the sentence of a cell begins with that the scenario leaves out
_WORDS: tuple[Word, ...] = get_args(Word)  # the worst first


@dataclass(frozen=True)
class Pair:
    """One cell and its two arms; None is an arm that does not have it. ``cell`` is head's, or base's for want of it."""

    cell: CellResult
    name: str
    base: Arm | None
    head: Arm | None


@dataclass(frozen=True)
class Judged:
    """The verdict of every pair that an arm has, in their order; ``family``: tests that Holm's correction spans."""

    cells: list[CellVerdict]
    family: int


_Key = tuple[int, str]  # place of the pair, metric


def judge(pairs: Sequence[Pair], spec: GateSpec, *, alpha: float | None = None) -> Judged:
    """A verdict for each cell; ``alpha`` is that of this look, the whole of ``spec.alpha`` where not given."""
    present = [pair for pair in pairs if pair.base is not None or pair.head is not None]
    timings = [list(_timings(pair, spec)) for pair in present]
    tested = {(place, one.metric): one for place, row in enumerate(timings) for one in row if one.gated and one.ps}
    adjusted = _adjusted(tested)
    rate = spec.alpha if alpha is None else alpha
    cells = []
    for place, (pair, row) in enumerate(zip(present, timings, strict=True)):
        changes = [
            one.judged(
                alpha=rate,
                family=max(1, len(tested)) if one.gated else 1,
                adjusted=adjusted.get((place, one.metric)),
                allowed=spec.detectable,
            )
            for one in row
        ]
        cells.append(_verdict(pair, spec, changes))
    return Judged(cells=cells, family=len(tested))


def worst(words: Iterable[Word]) -> Word:
    """The worst of some words, ``no change`` of none."""
    return min(words, key=_WORDS.index, default="no change")


def _adjusted(tested: Mapping[_Key, Timing]) -> dict[_Key, tuple[float, float]]:
    """After Holm, the p of a growth and of a fall: two families."""
    if not tested:
        return {}
    columns = holm(np.array([timing.ps for timing in tested.values()]).T)
    return {key: (float(up), float(down)) for key, up, down in zip(tested, *columns, strict=True)}


def is_gated(cell: str, spec: GateSpec) -> bool:
    """Whether the scenario wants a cell of this id judged."""
    globs = (spec.cells,) if isinstance(spec.cells, str) else spec.cells
    return any(fnmatchcase(cell, glob) for glob in globs)


def limits(spec: GateSpec, *, base: Collection[str], head: Collection[str]) -> dict[str, float]:
    """Allowed growth of each timing that is gated, of arms that know these: the primary one, and the others."""
    primary = spec.primary if spec.primary in base and spec.primary in head else "step_s"
    others = {name: growth for name, growth in spec.also.items() if name in base or name in head}
    return {primary: spec.practical_limit} | {name: growth for name, growth in others.items() if name != primary}


def _timings(pair: Pair, spec: GateSpec) -> Iterator[Timing]:
    """Those that are gated, then the others that an arm has; none of a cell whose outcomes decide."""
    base, head = pair.base, pair.head
    if base is None or head is None or word_of_outcomes(base, head) is not None:
        return
    known = _known(base), _known(head)
    allowed = limits(spec, base=known[0], head=known[1]) if is_gated(pair.cell.cell, spec) else {}
    transfers = sorted(metric for metric in known[0] | known[1] if metric.startswith(TRANSFER))
    for metric in dict.fromkeys([*allowed, *TIMINGS, *transfers]):
        timing = timing_of(base, head, metric, spec, allowed=allowed.get(metric))
        if timing is not None:
            yield timing


def _known(arm: Arm) -> set[str]:
    return {metric for night in arm.nights for metric, rounds in night.timings.items() if rounds}


def _verdict(pair: Pair, spec: GateSpec, timings: Sequence[MetricChange]) -> CellVerdict:
    changes: list[MetricChange] = []
    found = word_of_outcomes(pair.base, pair.head)
    if found is None:
        assert pair.base is not None and pair.head is not None, "a cell without an arm is told by its outcomes"
        gated = is_gated(pair.cell.cell, spec) and not _is_settling(pair)
        changes = [*timings, *counters_of(pair.base, pair.head, spec, gated=gated)]
        found = _by_numbers(pair, spec, changes)
    word, why = found if is_gated(pair.cell.cell, spec) else _not_gated(*found)
    return CellVerdict(
        cell=pair.cell.cell,
        name=pair.name,
        layout=pair.cell.layout,
        mode=pair.cell.mode,
        routing=pair.cell.routing,
        base_outcome=pair.base and pair.base.outcome,
        head_outcome=pair.head and pair.head.outcome,
        word=word,
        why=why,
        metrics=changes,
    )


def _is_settling(pair: Pair) -> bool:
    return any(arm is not None and arm.is_settling for arm in (pair.base, pair.head))


def _not_gated(word: Word, why: str) -> tuple[Word, str]:
    """Such a cell fails nothing, and says what it would otherwise be."""
    return "no change", NOT_GATED if word == "no change" else f"{NOT_GATED}, otherwise {word}: {why}"


def _by_numbers(pair: Pair, spec: GateSpec, changes: Sequence[MetricChange]) -> tuple[Word, str]:
    if _is_settling(pair):
        nights = max(len(arm.nights) for arm in (pair.base, pair.head) if arm is not None and arm.is_settling)
        return "new", f"the baseline has {nights} of {MIN_NIGHTS} nights: compared, decides nothing yet"
    gated = [change for change in changes if change.gated]
    word = worst(change.word for change in gated)
    notes = [f"{change.metric}: {change.why}" for change in gated if change.word == word and change.why]
    return word, "; ".join([*notes, *unknown(spec, changes)])


def unknown(spec: GateSpec, changes: Sequence[MetricChange]) -> Iterator[str]:
    """A sentence for each thing that the scenario wants judged and that an arm does not know."""
    gated = {change.metric for change in changes if change.gated}
    if gated and spec.primary not in gated:
        yield f"{spec.primary} is not known in both arms, step_s is judged instead"
    for change in changes:
        if change.kind == "counter" and change.word in ("new", "missing"):
            yield f"{change.metric} is {change.why}"
