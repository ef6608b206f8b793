"""What changed between runs, as a sentence, a table and a document; terminal, page and pull request say the same."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from epbench.analysis.statistics import CONFIDENCE, Interval
from epbench.records import CellResult
from epbench.report.comparison import is_measured, step_interval, step_launches
from epbench.report.quantities import reserved_bytes
from epbench.report.rules.model import listed
from epbench.report.runs import Change, ComparedRuns
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, gib, interval, join, p_value, speed_up
from epbench.report.verdict import NOT_RUN

__all__ = [
    "NOTHING_DIFFERS",
    "changes_json",
    "changes_sentence",
    "changes_table",
    "differences_table",
    "history_table",
    "letters",
    "notes",
    "outcome_lines",
]

NOTHING_DIFFERS = (  # what an empty table of differences says: all that is compared
    "No version, variable, code, scenario, GPU model or machine start that is recorded differs between the first run "
    "and the last."
)


def letters(compared: ComparedRuns) -> tuple[str, ...]:
    """What tables call the runs, in order: A, B, C, ...; numbers above 26."""
    count = len(compared.runs)
    return tuple(chr(ord("A") + place) if count <= 26 else f"run {place + 1}" for place in range(count))


def changes_sentence(compared: ComparedRuns) -> str:
    """How many cells are slower, faster or neither, and the largest change of either kind."""
    told = {word: [change for change in compared.common if change.word == word] for word in ("slower", "faster")}
    parts = [_spelled(word, found) for word, found in told.items() if found]
    same = sum(change.word == "no difference" for change in compared.common)
    parts += [f"no difference can be told in {_cells(same)}"] if same else []
    few = sum(change.word == "unknown" and change.speed is not None for change in compared.common)
    parts += [f"{_cells(few)} {'has' if few == 1 else 'have'} too few launches to judge"] if few else []
    failing = [change.name for change in compared.common if change.has_new_outcome]
    parts += [f"{listed(failing)} ended differently"] if failing else []
    text = "; ".join(parts) or "no cell has a number in both runs"
    return f"{text[0].upper()}{text[1:]}."


def _spelled(word: str, changes: Sequence[Change]) -> str:
    most, ratio = max(
        ((change, change.speed) for change in changes if change.speed is not None),
        key=lambda one: abs(math.log(one[1].value)),
    )
    most_text = "" if len(changes) == 1 else "most of all "
    verb = "is" if len(changes) == 1 else "are"
    return f"{_cells(len(changes))} {verb} {word}, {most_text}{most.name} ({speed_up(ratio)} tokens/s)"


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


# ---------------------------------------------------------------- tables


def changes_table(compared: ComparedRuns, *, is_narrow: bool = False) -> Table:
    """One row a cell that the first and the last run have and one of them measured: steps, the difference, peaks.

    ``is_narrow`` leaves out the runs between the first and the last, and device work, and calls the launches n.
    """
    names = letters(compared)
    runs = [0, len(names) - 1] if is_narrow else list(range(len(names)))
    steps = [f"{names[run]}: step, ms" for run in runs]
    work = () if is_narrow else ("device work",)
    count = "n" if is_narrow else "launches"
    titles = ("cell", *steps, "tokens/s", "p", *work, count, f"{names[-1]}: peak GiB", "change of peak")
    rows = [_row(change, runs, has_work=not is_narrow) for change in compared.common if _has_number(change)]
    return Table.of(titles, rows, texts=1)


def _has_number(change: Change) -> bool:
    return any(cell is not None and is_measured(cell) for cell in (change.cells[0], change.cells[-1]))


def _row(change: Change, runs: Sequence[int], *, has_work: bool) -> tuple[Value, ...]:
    counts = [len(step_launches(cell)) if cell is not None else 0 for cell in (change.cells[0], change.cells[-1])]
    first, last = _peaks(change)[0], _peaks(change)[-1]
    grown = None if not first or last is None else last / first - 1
    return (
        Value(change.name),
        *(_step(change.cells[run]) for run in runs),
        _difference(change.speed),
        Value(p_value(change.p), change.p),
        *((_difference(change.device_work),) if has_work else ()),
        Value("+".join(map(str, counts)), float(sum(counts))),
        Value(gib(last), last),
        Value(UNKNOWN if grown is None else f"{grown * 100:+.1f} %", grown),
    )


def _difference(speed: Interval | None) -> Value:
    return Value(difference_text(speed), speed.value if speed else None)


def difference_text(speed: Interval | None) -> str:
    """``+3.4 % [2.8, 4.0]``; ``~`` in front where the interval holds no difference."""
    is_same = speed is not None and speed.known and not speed.excludes(1.0)
    return f"~ {speed_up(speed)}" if is_same else speed_up(speed)


def _step(cell: CellResult | None) -> Value:
    """The step with its interval, or how the cell ended without one."""
    if cell is None:
        return Value(UNKNOWN)
    found = step_interval(cell) if is_measured(cell) else None
    if found is None:
        return Value(cell.outcome or NOT_RUN)
    return Value(interval(found.value, found.low, found.high, scale=1e3), found.value)


def _peaks(change: Change) -> list[int | None]:
    """Of every run the same kind of peak: reserved where all say so, else allocated."""
    known = [cell for cell in change.cells if cell is not None and is_measured(cell)]
    is_reserved = all(cell.peak_reserved_bytes is not None for cell in known)
    return [_peak(cell, is_reserved=is_reserved) for cell in change.cells]


def _peak(cell: CellResult | None, *, is_reserved: bool) -> int | None:
    if cell is None:
        return None
    return reserved_bytes(cell) if is_reserved else cell.peak_allocated_bytes


def differences_table(compared: ComparedRuns) -> Table:
    """What else differs between the first run and the last; without rows, ``NOTHING_DIFFERS``."""
    names = letters(compared)
    rows = [(Value(one.what), Value(one.reference), Value(one.here)) for one in compared.differences]
    return Table.of(("what", names[0], names[-1]), rows, texts=3)


def history_table(compared: ComparedRuns, change: Change, since: Sequence[str]) -> Table:
    """One cell, a row a run; ``since`` says of each run in what it differs from the one before it."""
    titles = ("run", "started", "step, ms", "launches", "differs from the run before")
    rows = [
        (
            Value(f"{letter}: {name}"),
            Value(clean(run.view.run.started, 40)),
            _step(cell),
            _launches(cell),
            Value(what),
        )
        for letter, name, run, cell, what in zip(
            letters(compared), compared.names, compared.runs, change.cells, since, strict=True
        )
    ]
    return Table(titles, tuple(rows), (False, False, True, True, False))


def _launches(cell: CellResult | None) -> Value:
    count = None if cell is None else len(step_launches(cell))
    return Value(UNKNOWN if count is None else str(count), count)


# ---------------------------------------------------------------- sentences below them


def outcome_lines(compared: ComparedRuns) -> list[str]:
    """A sentence for each cell that ended differently, and one for the cells that only one run has."""
    names = letters(compared)
    lines = []
    for change in compared.common:
        if change.has_new_outcome:
            reason = _reason(change)
            ends = f"{change.outcomes[0]} in {names[0]}, {change.outcomes[-1]} in {names[-1]}"
            lines.append(f"{change.name}: {ends}{reason}")
    for name, place in ((names[0], 0), (names[-1], -1)):
        only = [change.name for change in compared.changes if change.cells[-1 if place == 0 else 0] is None]
        lines += [f"Only in {name}: {join(only)}."] if only else []
    return lines


def _reason(change: Change) -> str:
    """Why the cell has no number: of the last run if that has a reason, else of the first."""
    ends = [cell for cell in (change.cells[-1], change.cells[0]) if cell is not None and not is_measured(cell)]
    reasons = [clean(cell.reason, 300) for cell in ends if cell.reason]
    return f": {reasons[0]}" if reasons else ""


def notes(compared: ComparedRuns) -> list[str]:
    """How to read the differences, and how far to trust them."""
    judged = [change for change in compared.common if change.speed is not None and change.speed.known]
    if not any(change.speed is not None for change in compared.common):
        return []
    chance = len(judged) * (1 - CONFIDENCE)
    lines = [
        "Differences are of the last run from the first, in speed, with a 95 % interval (Welch's: launches of two runs "
        "are no pairs); ~ is no difference. p is Mann-Whitney's, of the steps, two-sided: it decides nothing, and 3+3 "
        "launches cannot bring it below 0.1. What another time or machine start adds is in no interval."
    ]
    if len(judged) > 1:
        mean = math.exp(fmean(math.log(change.speed.value) for change in judged if change.speed)) - 1
        lines.append(
            f"By chance alone {chance:.1f} of {len(judged)} such intervals show a difference. Geometric mean of all: "
            f"{mean * 100:+.1f} %."
        )
    return lines


# ---------------------------------------------------------------- as a document


def changes_json(compared: ComparedRuns) -> str:
    """All of it as one JSON document; runs and lists by run in the order given."""
    document = {
        "runs": [_run(name, run.view.run.model_dump(mode="json")) for name, run in _named(compared)],
        "differences": [asdict(one) for one in compared.differences],
        "cells": [_cell(change) for change in compared.changes],
    }
    return json.dumps(document, indent=2)


def _named(compared: ComparedRuns) -> Iterable[tuple[str, Any]]:
    return zip(compared.names, compared.runs, strict=True)


def _run(name: str, record: dict[str, Any]) -> dict[str, Any]:
    kept = ("started", "scenario_path", "scenario_digest", "protocol", "environment")
    return {"run": name, "name": record["name"]} | {key: record[key] for key in kept}


def _cell(change: Change) -> dict[str, Any]:
    steps = [step_interval(cell) if cell is not None and is_measured(cell) else None for cell in change.cells]
    cell = change.cell
    return {
        "cell": cell.cell,
        "name": change.name,
        "layout": cell.layout,
        "mode": cell.mode,
        "routing": cell.routing,
        "outcomes": change.outcomes,
        "launches": [None if one is None else len(step_launches(one)) for one in change.cells],
        "step_s": [None if step is None else asdict(step) for step in steps],
        "peak_bytes": _peaks(change),
        "speed": asdict(change.speed) if change.speed else None,
        "device_work_speed": asdict(change.device_work) if change.device_work else None,
        "p": change.p,
        "verdict": change.word,
    }
