"""The tables of a verdict, the worst row first; terminal and markdown draw the same ones."""

from collections.abc import Iterable, Iterator, Sequence

from epbench.gate_records import CellVerdict, GateSpec, MetricChange, Verdict
from epbench.report.gate.words import (
    changed_text,
    has_changed,
    launches_text,
    limit_text,
    metric_text,
    title_of,
    value_text,
    word_text,
    worst_first,
)
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, p_value

__all__ = [
    "changes_table",
    "counters_table",
    "differences_table",
    "further_table",
    "gated_timings",
    "limits_text",
    "quiet_table",
    "timing_table",
]

_NAME = 160  # characters of a cell's name
_WHY = 300


def gated_timings(verdict: Verdict) -> list[str]:
    """Timings that are gated in any cell, the primary first."""
    found = (change.metric for cell in verdict.cells for change in _gated(cell) if change.kind == "timing")
    return sorted(dict.fromkeys(found), key=lambda metric: metric != verdict.gate.primary)


def _gated(cell: CellVerdict) -> list[MetricChange]:
    return [change for change in cell.metrics if change.gated]


def limits_text(verdict: Verdict, metric: str) -> str:
    """The allowed growth of a timing over all cells: ``2 %``; where a floor decides ``2 % to 12 %, 1 ms at least``."""
    found = [change for cell in verdict.cells for change in _gated(cell) if change.metric == metric]
    known = sorted((change for change in found if change.limit is not None), key=lambda change: change.limit or 0)
    texts = list(dict.fromkeys(limit_text(change) for change in known[:1] + known[-1:]))
    is_floor = bool(known) and (known[-1].limit or 0) > _allowed(verdict.gate, metric) * (1 + 1e-9)
    floor = f", {1e3 * verdict.gate.absolute_floor_s:g} ms at least" if is_floor else ""
    return f"{' to '.join(texts)}{floor}" if texts else UNKNOWN


def _allowed(spec: GateSpec, metric: str) -> float:
    """The most that the scenario allows of a timing: the step may stand in for the primary one."""
    may_be_primary = metric in (spec.primary, "step_s")
    return max(spec.also.get(metric, 0.0), spec.practical_limit if may_be_primary else 0.0)


def timing_table(verdict: Verdict, metric: str) -> Table:
    """One gated timing of every cell that has it."""
    rows = []
    for cell in worst_first(verdict.cells):
        rows += [_timing_row(cell, change) for change in _gated(cell) if change.metric == metric]
    return Table.of(("cell", "base", "head", "change", "p", "n", "verdict"), rows, texts=1)


def _timing_row(cell: CellVerdict, change: MetricChange) -> tuple[Value, ...]:
    word = "known" if cell.acknowledged is not None and change.word == "regression" else word_text(change)
    texts = (change.p_holm if change.p_holm is not None else change.p, launches_text(change), word)
    return (_name(cell), *_values(change), Value(p_value(texts[0])), Value(texts[1]), Value(texts[2]))


def _values(change: MetricChange) -> tuple[Value, Value, Value]:
    base = value_text(change.metric, change.base, change.base_half)
    head = value_text(change.metric, change.head, change.head_half)
    return Value(base), Value(head), Value(changed_text(change))


def _name(cell: CellVerdict) -> Value:
    return Value(clean(cell.name, _NAME))


def counters_table(cells: Iterable[CellVerdict]) -> Table:
    """Counters that are not what they were, allowed or not; what differs by less than is printed is left out."""
    rows = [
        (
            _name(cell),
            Value(title_of(change.metric)),
            *_values(change),
            Value(limit_text(change)),
            Value(word_text(change)),
        )
        for cell in worst_first(cells)
        for change in cell.metrics
        if change.kind == "counter" and has_changed(change)
    ]
    return Table.of(("cell", "counter", "base", "head", "change", "allowed", "verdict"), rows, texts=2)


def further_table(cells: Iterable[CellVerdict]) -> Table:
    """Timings that decide nothing and changed, each tested alone: where the change of a cell may come from."""
    rows = [
        (_name(cell), Value(title_of(change.metric)), *_values(change), Value(launches_text(change)))
        for cell in worst_first(cells)
        for change in cell.metrics
        if change.kind == "timing" and not change.gated and change.word in ("regression", "improvement")
    ]
    return Table.of(("cell", "what", "base", "head", "change", "n"), rows, texts=2)


def changes_table(cells: Iterable[CellVerdict]) -> Table:
    """Cells in full: every gated timing, every counter that changed, or how a cell ended without numbers."""
    titles = ("cell", "what", "base", "head", "change", "limit", "p", "n", "verdict")
    return Table.of(titles, [row for cell in worst_first(cells) for row in _rows(cell)], texts=2)


def _rows(cell: CellVerdict) -> Iterator[tuple[Value, ...]]:
    if cell.base_outcome != cell.head_outcome or not cell.metrics:
        ends = (cell.base_outcome or UNKNOWN, cell.head_outcome or UNKNOWN, clean(cell.why, _WHY))
        yield (_name(cell), Value("outcome"), *map(Value, ends), *[Value(UNKNOWN)] * 3, Value(cell.word))
    for change in _gated(cell):
        if change.kind == "timing" or change.word != "no change":
            p = change.p_holm if change.p_holm is not None else change.p
            judged = (limit_text(change), p_value(p), launches_text(change), word_text(change))
            yield (_name(cell), Value(title_of(change.metric)), *_values(change), *map(Value, judged))


def quiet_table(verdict: Verdict, cells: Sequence[CellVerdict]) -> Table:
    """A line a cell: how each gated timing changed."""
    metrics = gated_timings(verdict)
    titles = ("cell", *(f"{metric_text(metric)}: change" for metric in metrics), "n")
    return Table.of(titles, [_quiet_row(cell, metrics) for cell in cells], texts=1)


def _quiet_row(cell: CellVerdict, metrics: Sequence[str]) -> tuple[Value, ...]:
    found = {change.metric: change for change in _gated(cell)}
    if not any(metric in found for metric in metrics):
        return (_name(cell), *[Value(UNKNOWN)] * len(metrics), Value(clean(cell.why, _WHY) or UNKNOWN))
    first = next(found[metric] for metric in metrics if metric in found)
    changes = [changed_text(found[metric]) if metric in found else UNKNOWN for metric in metrics]
    return (_name(cell), *map(Value, changes), Value(launches_text(first)))


def differences_table(verdict: Verdict) -> Table:
    """In what else the arms differ."""
    rows = [
        (Value(clean(one.what, 100)), Value(clean(one.base, _WHY)), Value(clean(one.head, _WHY)))
        for one in verdict.differences
    ]
    return Table.of(("what", "base", "head"), rows, texts=3)
