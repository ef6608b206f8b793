"""A verdict in a terminal, like benchstat: the sentence, a table a gated timing, counters, then what was not judged."""

from collections.abc import Iterator
from datetime import UTC, datetime

from epbench.analysis.gate import unknown
from epbench.gate_records import ArmRecord, CellVerdict, Verdict
from epbench.report.gate.tables import (
    counters_table,
    differences_table,
    further_table,
    gated_timings,
    limits_text,
    timing_table,
)
from epbench.report.gate.words import CHANGES, UNJUDGED, in_words, reason, title_of, worst_first
from epbench.report.tables import Table
from epbench.report.terminal import drawn
from epbench.report.text import clean

__all__ = ["arm_text", "how_judged", "known_lines", "render_verdict", "unjudged_lines", "what_next"]


def render_verdict(verdict: Verdict) -> str:
    """The whole verdict as plain text, tables at most 120 columns wide."""
    parts = [
        _sentence(verdict.summary),
        f"base: {arm_text(verdict.base)}\nhead: {arm_text(verdict.head)}",
        "\n".join(f"warning: {clean(text, 600)}" for text in verdict.warnings),
        *(_timing(verdict, metric) for metric in gated_timings(verdict)),
        _titled("Counters that changed", counters_table(verdict.cells)) or _same_counters(verdict),
        _titled("What else changed, not gated, each at its own p", further_table(verdict.cells)),
        _listed("Broken", _broken(verdict)),
        _listed("Not judged", unjudged_lines(verdict)),
        _listed("Known regressions, which fail nothing", known_lines(verdict)),
        _titled("What else differs", differences_table(verdict)) or "Nothing else that is recorded differs.",
        "\n".join([how_judged(verdict), *what_next(verdict)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(text: str) -> str:
    text = clean(text, 1000)
    return f"{text[:1].upper()}{text[1:]}."


def arm_text(arm: ArmRecord) -> str:
    """What a person calls it, and when it was measured."""
    nights = f", {arm.nights} runs" if arm.nights > 1 else ""
    since = ", the last started" if arm.nights > 1 else ", started"
    return clean(arm.label, 120) + nights + (f"{since} {_moment(arm.started)}" if arm.started else "")


def _moment(text: str) -> str:
    """``2026-11-23 02:30 UTC``; what is no time as it stands."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return clean(text, 40)


def _timing(verdict: Verdict, metric: str) -> str:
    return f"{title_of(metric)} (limit {limits_text(verdict, metric)})\n\n{drawn(timing_table(verdict, metric))}"


def _titled(title: str, table: Table) -> str:
    return f"{title}:\n\n{drawn(table)}" if table.rows else ""


def _same_counters(verdict: Verdict) -> str:
    found = [change for cell in verdict.cells for change in cell.metrics if change.kind == "counter"]
    beyond = "" if all(change.base == change.head for change in found) else " by more than rounding"
    return f"Counters: none of {len(found)} changed{beyond}." if found else ""


def _listed(title: str, lines: Iterator[str]) -> str:
    found = [f"- {line}" for line in lines]
    return "\n".join([f"{title}:", *found]) if found else ""


def _broken(verdict: Verdict) -> Iterator[str]:
    return (_line(cell) for cell in _open(verdict) if cell.word == "broken")


def _open(verdict: Verdict) -> list[CellVerdict]:
    return [cell for cell in worst_first(verdict.cells) if cell.acknowledged is None]


def _line(cell: CellVerdict) -> str:
    return f"{clean(cell.name, 160)}: {cell.word}: {reason(cell) or 'no reason recorded'}"


def unjudged_lines(verdict: Verdict) -> Iterator[str]:
    """A line for each cell that has no verdict, and why; of a cell that is judged, the metrics that are not."""
    for cell in _open(verdict):
        if cell.word in UNJUDGED:
            yield _line(cell)
        elif cell.word == "no change" and cell.why:
            yield f"{clean(cell.name, 160)}: {in_words(cell.why)}"
        else:
            for change in cell.metrics:
                if change.gated and change.word == "inconclusive":
                    yield f"{clean(cell.name, 160)}, {title_of(change.metric)}: {clean(change.why, 300)}"
            yield from (f"{clean(cell.name, 160)}: {in_words(why)}" for why in unknown(verdict.gate, cell.metrics))


def known_lines(verdict: Verdict) -> Iterator[str]:
    """A line for each acknowledged cell: what regressed, and the reason that a person gave."""
    for cell in worst_first(verdict.cells):
        if cell.acknowledged is not None:
            why = clean(cell.acknowledged, 300) or "no reason given"
            yield f"{clean(cell.name, 160)}: {reason(cell) or cell.word}; acknowledged: {why}"


def how_judged(verdict: Verdict) -> str:
    """How to read the numbers, and at which rate of false alarms they were judged."""
    looks = len(verdict.gate.looks)
    look = f", look {verdict.look} of {looks}" if looks > 1 else ""
    pairs = "launches of one round are pairs" if verdict.paired else "launches of the arms are no pairs"
    tests = f"{verdict.family} test{'' if verdict.family == 1 else 's'}"
    told = "Head over base, medians over launches, with 95 % intervals; ~ may be no difference."
    if not verdict.family:
        return f"{told} No timing was tested."
    return (
        f"{told} p is one-sided, that the change passes the limit, after Holm over {tests}, "
        f"at {verdict.alpha:g}{look}; {pairs}."
    )


def what_next(verdict: Verdict) -> list[str]:
    """What a person does about improvements that the baseline does not know yet; an A/B has none."""
    better = any(cell.word in CHANGES for cell in _open(verdict)) and not verdict.paired
    run = clean(verdict.head.path, 300)
    return [f"To make the improvement the new baseline: epbench baseline accept {run} --reset"] if better else []
