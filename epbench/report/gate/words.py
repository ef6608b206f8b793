"""What all outputs of the gate share: names and numbers of a change, what is worst, the one sentence and exit code.

Everything that is shown of a verdict passes through here, for its names come from files: they are cleaned and cut.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence

from epbench.analysis.gate import NOT_GATED
from epbench.analysis.statistics import Interval
from epbench.errors import ScenarioError
from epbench.gate_records import CellVerdict, MetricChange, Verdict, Word
from epbench.report.changes import difference_text
from epbench.report.text import UNKNOWN, clean, gib, ms, number, percent
from epbench.wording import shown, suggestion

__all__ = [
    "ATTENTION",
    "CHANGES",
    "FAIL_ON",
    "UNJUDGED",
    "changed_text",
    "count_text",
    "deciding",
    "exit_code_of",
    "has_changed",
    "heading_of",
    "in_words",
    "launches_text",
    "limit_text",
    "metric_text",
    "parse_fail_on",
    "reason",
    "summary_of",
    "title_of",
    "unit_of",
    "value_text",
    "word_text",
    "worst_first",
]

FAIL_ON = ("regression", "inconclusive", "improvement", "new", "missing")
ATTENTION: tuple[Word, ...] = ("broken", "regression")  # from the worst
UNJUDGED: tuple[Word, ...] = ("failing", "inconclusive", "missing", "new")
CHANGES: tuple[Word, ...] = ("improvement", "fixed")
_ORDER: tuple[Word, ...] = (*ATTENTION, *UNJUDGED, *CHANGES, "no change")
_ROUNDED = 0.0005  # of a relative change: less is printed as 0.0 %
_NAMED = 3  # cells of a kind that the sentence names
_SENTENCE = 1000  # characters
_ROOMS = ((100, 300), (100, 100), (50, 50), (40, 30))  # characters of a name and of a reason in it
_NAMES = {
    "device_work_s": "device work",
    "step_s": "step",
    "exposed_s": "exposed communication",
    "compile_s": "compile time",
    "peak_allocated_bytes": "peak memory",
    "collective_count": "collectives a step",
    "collective_bytes": "collective bytes a step",
    "kernel_count": "kernels a step",
    "graph_breaks": "graph breaks",
    "recompiles": "recompiles",
}
_FIELDS = re.compile(rf"\b({'|'.join(_NAMES)})\b")
_OUTCOMES = {3: "failed", 4: "not decided", 5: "cells are not as expected"}
_PLURALS = {"regression": "regressions", "improvement": "improvements"}


# ---------------------------------------------------------------- one change


def metric_text(metric: str) -> str:
    """``device work``; of a collective's transfer its op, purpose, phase and axis."""
    kind, _, what = metric.partition(":")
    return clean(what, 80) if kind == "transfer_s" else _NAMES.get(metric, clean(metric, 80))


def unit_of(metric: str) -> str:
    """The unit that texts of a metric are in; empty for a count."""
    if metric.partition(":")[0].endswith("_s"):
        return "ms"
    return "GiB" if metric.endswith("_bytes") else ""


def title_of(metric: str) -> str:
    """Name and unit: ``device work, ms``."""
    unit = unit_of(metric)
    return f"{metric_text(metric)}, {unit}" if unit else metric_text(metric)


def value_text(metric: str, value: float | None, half: float | None = None) -> str:
    """A value in its metric's unit without the unit: ``412.3 \N{PLUS-MINUS SIGN} 1.2 %``."""
    if value is None:
        return UNKNOWN
    text = {"ms": ms, "GiB": gib}.get(unit_of(metric), _plain)(value)
    return text if half is None else f"{text} \N{PLUS-MINUS SIGN} {percent(half)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else number(value, 4)


def changed_text(change: MetricChange) -> str:
    """``+3.4 % [2.8, 4.0]``, with ``~`` in front if that can be none; of counters from 0: ``0 -> 1``."""
    if change.ratio is not None and math.isfinite(change.ratio):
        if change.kind == "counter" and abs(change.ratio - 1) < _ROUNDED:
            return _small_text(change)
        return difference_text(Interval(change.ratio, change.ratio_low, change.ratio_high))
    if change.base is None and change.head is None:
        return UNKNOWN
    return f"{value_text(change.metric, change.base)} \N{RIGHTWARDS ARROW} {value_text(change.metric, change.head)}"


def _small_text(change: MetricChange) -> str:
    """Of a counter that changed by less than the ``+0.0 %`` of others tells: ``10,000 -> 10,001``, ``+512 bytes``."""
    assert change.base is not None and change.head is not None, "a change with a ratio has both values"
    if change.base == change.head:
        return "same"
    texts = [value_text(change.metric, value) for value in (change.base, change.head)]
    if unit_of(change.metric) == "GiB" and texts[0] == texts[1]:
        return f"{change.head - change.base:+,.0f} bytes"
    return " \N{RIGHTWARDS ARROW} ".join(texts)


def has_changed(change: MetricChange) -> bool:
    """Whether a counter is worth a line: it has a word, or its change can be seen in the numbers that are printed."""
    if change.word != "no change":
        return True
    texts = [value_text(change.metric, value) for value in (change.base, change.head)]
    return texts[0] != texts[1] or (change.ratio is not None and abs(change.ratio - 1) >= _ROUNDED)


def limit_text(change: MetricChange) -> str:
    """The allowed growth: ``2 %``."""
    if change.limit is None:
        return UNKNOWN
    allowed = change.limit * 100
    return f"{allowed:.3g} %" if allowed < 999.5 else f"{allowed:,.0f} %"


def word_text(change: MetricChange) -> str:
    """The word; of what changed for sure, and is allowed to, ``within limit``."""
    is_sure = change.kind == "counter" or Interval(change.ratio or 1.0, change.ratio_low, change.ratio_high).excludes(1)
    is_other = change.base is not None and change.head is not None and change.base != change.head
    return "within limit" if change.word == "no change" and is_sure and is_other else change.word


def launches_text(change: MetricChange) -> str:
    """``5+5``; a base of several nights has their number in front: ``8 nights+5``."""
    many = change.base_nights > 1
    return f"{change.base_nights} nights+{change.head_launches}" if many else _arms(change)


def _arms(change: MetricChange) -> str:
    return f"{change.base_launches}+{change.head_launches}"


# ---------------------------------------------------------------- one cell


def deciding(cell: CellVerdict) -> list[MetricChange]:
    """The gated metrics behind the cell's word, timings first; empty where it ended otherwise."""
    found = [change for change in cell.metrics if change.gated and change.word == cell.word]
    return sorted(found, key=lambda change: change.kind == "counter")


def _size(change: MetricChange) -> float:
    known = change.ratio is not None and 0 < change.ratio < math.inf
    return abs(math.log(change.ratio)) if known and change.ratio is not None else math.inf


def reason(cell: CellVerdict) -> str:
    """Why a cell has its word: the metrics that changed, with their limits, or else its own sentence."""
    found = deciding(cell)
    if found and cell.word in ("regression", "improvement"):
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return " and ".join(map(_against_limit, found[:_NAMED])) + more
    return in_words(cell.why or next((change.why for change in found), ""))


def in_words(why: str) -> str:
    """A sentence of the statistics, which calls metrics by their fields."""
    return _FIELDS.sub(lambda found: _NAMES[found[0]], clean(why, 600))


def _against_limit(change: MetricChange) -> str:
    limit = f" (limit {limit_text(change)})" if change.limit is not None else ""
    return f"{metric_text(change.metric)} {changed_text(change)}{limit}"


def worst_first(cells: Iterable[CellVerdict]) -> list[CellVerdict]:
    """By word, then by the size of the change; in the plan's order where nothing tells them apart."""
    return sorted(cells, key=lambda cell: (_rank(cell), -max(map(_size, deciding(cell)), default=0.0)))


def _rank(cell: CellVerdict) -> float:
    """Of what is acknowledged: after all that a person has still to look at."""
    return _ORDER.index(cell.word) if cell.acknowledged is None else len(ATTENTION) + len(UNJUDGED) - 0.5


# ---------------------------------------------------------------- all of them


def summary_of(cells: Sequence[CellVerdict]) -> str:
    """One sentence of at most 1000 characters: what is worst is named, the rest counted; what is long is cut."""
    texts = [_summary(cells, room) for room in _ROOMS]
    return next((text for text in texts if len(text) <= _SENTENCE), texts[-1])


def _summary(cells: Sequence[CellVerdict], room: tuple[int, int]) -> str:
    outside = sum(map(_is_outside, cells))
    open_cells = [cell for cell in cells if cell.acknowledged is None and not _is_outside(cell)]
    parts = [_kind(word, [cell for cell in open_cells if cell.word == word], room) for word in _ORDER]
    known = len(cells) - outside - len(open_cells)
    parts.append(f"{_cells(known)} with a known regression" if known else "")
    parts.append(f"{_cells(outside)} not gated" if outside else "")
    return "; ".join(part for part in parts if part) or "no cell to judge"


def _kind(word: Word, cells: Sequence[CellVerdict], room: tuple[int, int]) -> str:
    if not cells:
        return ""
    if word == "no change":
        return f"{_cells(len(cells))} without change"
    head = f"{len(cells)} {_PLURALS.get(word, word) if len(cells) > 1 else word}"
    if word in ("regression", "improvement", "broken"):
        return f"{head}: {_listed(worst_first(cells), room)}"
    return head


def _listed(cells: Sequence[CellVerdict], room: tuple[int, int]) -> str:
    shown_cells = cells[:_NAMED]
    names = [clean(cell.name, room[0]) + ":" * (", " in cell.name) for cell in shown_cells]  # or a comma parts a name
    texts = [f"{name} {clean(reason(cell), room[1])}".strip() for name, cell in zip(names, shown_cells, strict=True)]
    more = len(cells) - _NAMED
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def count_text(count: int, word: str) -> str:
    """``and 37 more cells without change, in verdict.json``: what did not fit is said."""
    return f"and {count} more {word}, in verdict.json"


def parse_fail_on(text: str) -> frozenset[str]:
    """The words of ``--fail-on``; empty for ``none``. Raises ScenarioError for a word that is not known."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in (*FAIL_ON, "none"):
            raise ScenarioError(f"--fail-on does not know {shown(word)}{suggestion(word, (*FAIL_ON, 'none'))}")
    if "none" in words and len(words) > 1:
        raise ScenarioError("--fail-on none goes with no other word")
    return frozenset(words) - {"none"}


def exit_code_of(cells: Sequence[CellVerdict], fail_on: Collection[str], *, unexpected: Collection[str] = ()) -> int:
    """3 regression (or improvement, if asked for), 5 a cell not as expected, 4 undecided, 0; in this order.

    ``unexpected`` are ids of head's cells that did not end as the scenario expects. What a person has acknowledged
    fails nothing. A comparison in which no gated cell could be compared is undecided, but for cells that are all new.
    """
    if not fail_on:
        return 0
    open_cells = [cell for cell in cells if cell.acknowledged is None]
    words = {cell.word for cell in open_cells}
    failing = {"regression": {"regression", "broken"}, "improvement": {"improvement", "fixed"}}
    if any(words & found for word, found in failing.items() if word in fail_on):
        return 3
    if any(cell.cell in unexpected for cell in open_cells):
        return 5
    gated = [cell for cell in cells if not _is_outside(cell)]
    is_first_night = bool(gated) and all(cell.word == "new" for cell in gated)
    if cells and not is_first_night and not any(map(_is_compared, gated)):
        words |= {"inconclusive"}
    return 4 if words & {"inconclusive", "new", "missing"} & set(fail_on) else 0


def _is_outside(cell: CellVerdict) -> bool:
    return cell.word == "no change" and cell.why.startswith(NOT_GATED)


def _is_compared(cell: CellVerdict) -> bool:
    """Whether both arms told something of a cell, if only that a baseline is still too young."""
    is_there = cell.base_outcome is not None and cell.head_outcome is not None
    return is_there and cell.word != "failing"


def heading_of(verdict: Verdict) -> str:
    """What came out, for a title; a code of 0 is no pass where ``--fail-on`` let something through."""
    if verdict.exit_code:
        return _OUTCOMES.get(verdict.exit_code, "failed")
    words = {cell.word for cell in verdict.cells if cell.acknowledged is None}
    if words & set(ATTENTION):
        return "regressions, which fail nothing here"
    if words & {"failing", "inconclusive"}:
        return "not decided, which fails nothing here"
    return "nothing to judge by yet" if words and words <= {"new", "missing"} else "passed"
