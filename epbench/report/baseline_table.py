"""A baseline in a terminal: what it holds, and what accepting a run would change."""

from statistics import median

from epbench.analysis.arms import MIN_NIGHTS
from epbench.analysis.statistics import Interval
from epbench.baselines.change import Change
from epbench.baselines.records import Baseline, Entry
from epbench.baselines.update import Action, Proposed
from epbench.gate_records import MetricChange
from epbench.report.history_table import amount
from epbench.report.tables import Table, Value
from epbench.report.terminal import drawn
from epbench.report.text import UNKNOWN, clean, speed_up

__all__ = ["render_baseline", "render_proposal"]

_WORDS: dict[Action, str] = {
    "new": "new key",
    "added": "run added",
    "new level": "NEW LEVEL",
    "changed": "CHANGED, needs --reset",
    "there": "is there",
    "left out": "left out",
}
_MAIN = ("device_work_s", "step_s")


def render_proposal(change: Change) -> str:
    """A row for each cell of the run."""
    counts = [(word, sum(one.action == action for one in change.proposal.cells)) for action, word in _WORDS.items()]
    said = ", ".join(f"{word}: {count}" for word, count in counts if count)
    head = f"{clean(str(change.path), 200)}{' (a new file)' if change.is_new else ''}: {said}"
    titles = ("cell", "what", "runs", "baseline", "this run", "difference", "why")
    rows = [_row(one) for one in change.proposal.cells]
    return f"{head}\n\n{drawn(Table(titles, tuple(rows), (False, False, True, True, True, True, False)))}\n"


def _row(one: Proposed) -> tuple[Value, ...]:
    found = one.change
    return (
        Value(clean(one.cell.cell, 80)),
        Value(_WORDS[one.action]),
        Value(str(one.runs)),
        Value(amount(found.metric, found.base) if found else UNKNOWN),
        Value(amount(found.metric, found.head) if found else UNKNOWN),
        Value(_difference(found)),
        Value(clean(one.why, 200)),
    )


def _difference(found: MetricChange | None) -> str:
    if found is None or found.ratio is None:
        return UNKNOWN
    return speed_up(Interval(found.ratio, found.ratio_low, found.ratio_high))


def render_baseline(baseline: Baseline) -> str:
    """A row for each entry, then levels and acknowledgements."""
    if not baseline.entries:
        return f"{clean(baseline.scenario, 80)}: no entry\n"
    titles = ("cell", "device", "torch", "protocol", "outcome", "runs", "last", "median")
    table = Table(titles, tuple(map(_entry, baseline.entries)), (False,) * 5 + (True, False, True))
    notes = [line for entry in baseline.entries for line in _notes(entry)]
    head = f"{clean(baseline.scenario, 80)}: {_count(len(baseline.entries))}"
    return "\n\n".join(part for part in (head, drawn(table), "\n".join(notes)) if part) + "\n"


def _count(entries: int) -> str:
    return f"{entries} entr{'y' if entries == 1 else 'ies'}"


def _entry(entry: Entry) -> tuple[Value, ...]:
    metric = next((name for name in _MAIN if any(run.timings.get(name) for run in entry.runs)), None)
    values = [median(run.timings[metric]) for run in entry.runs if run.timings.get(metric)] if metric else []
    return (
        Value(clean(entry.cell, 80)),
        Value(f"{entry.world_size} x {clean(entry.device_name, 40)}"),
        Value(clean(entry.torch, 20)),
        Value(str(entry.protocol)),
        Value(entry.outcome),
        Value(f"{len(entry.runs)}{' (settling)' if len(entry.runs) < MIN_NIGHTS else ''}"),
        Value(clean(entry.runs[-1].started[:10])),
        Value(amount(metric, median(values)) if metric and values else UNKNOWN),
    )


def _notes(entry: Entry) -> list[str]:
    name = clean(entry.cell, 80)
    levels = [
        f"{name}: new level on {clean(one.date, 20)} with {clean(one.run, 80)}{_moved(one.ratio)}: "
        f"{clean(one.reason, 300)}"
        for one in entry.levels
    ]
    known = [
        f"{name}: {clean(one.metric, 80) if one.metric else 'any regression'} is acknowledged"
        f"{f' until {clean(one.until, 20)}' if one.until else ''}: {clean(one.reason, 300)}"
        for one in entry.acknowledged
    ]
    return levels + known


def _moved(ratio: float | None) -> str:
    return "" if ratio is None else f" ({100 * (ratio - 1):+.1f} %)"
