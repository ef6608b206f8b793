"""Compared with another run: what changed, and what else differs. Only where runs are compared; it leads the page."""

from collections.abc import Sequence
from itertools import pairwise

from epbench.records import CellResult
from epbench.report.changes import (
    NOTHING_DIFFERS,
    changes_sentence,
    changes_table,
    differences_table,
    history_table,
    letters,
    notes,
    outcome_lines,
)
from epbench.report.comparison import Compared, is_measured
from epbench.report.data import RunData
from epbench.report.figures.change import change_figure, history_figure
from epbench.report.provenance import Difference, provenance_diff
from epbench.report.runs import Change, ComparedRuns
from epbench.report.sections.model import Chart, Section, TitledTable, Variant
from epbench.report.text import clean

__all__ = ["change_section"]

_MOST_ROWS = 40


def change_section(compared: ComparedRuns) -> Section:
    """The last run against the first; with more than two runs, each cell over all of them."""
    charts = [chart for chart in (_change(compared), _history(compared)) if chart is not None]
    differences, table = differences_table(compared), changes_table(compared)
    tables = (TitledTable("What else differs", differences),) if differences.rows else ()
    same = [] if differences.rows else [NOTHING_DIFFERS]
    runs = [f"{letter} is {name}" for letter, name in zip(letters(compared), compared.names, strict=True)]
    return Section(
        "compared",
        f"Compared with {compared.names[0]}",
        tuple(charts),
        lead=" ".join([changes_sentence(compared), *(f"{line.rstrip('.')}." for line in outcome_lines(compared))]),
        note=" ".join([f"{', '.join(runs)}.", *notes(compared), *same]),
        table=table if table.rows and not charts else None,
        tables=tables,
    )


def _change(compared: ComparedRuns) -> Chart | None:
    known = [change for change in compared.common if change.speed is not None]
    if not known:
        return None
    shown = sorted(known, key=_rank)[:_MOST_ROWS]
    cut = "" if len(shown) == len(known) else f" The {len(shown)} that changed most of {len(known)} are drawn."
    caption = (
        f"Tokens/s of the last run against the first, slower cells first; bars are 95 % intervals, and one that holds "
        f"0 is no difference.{cut}"
    )
    return Chart("change", "Change of speed", caption, (Variant("", change_figure(shown), changes_table(compared)),))


def _rank(change: Change) -> tuple[int, float]:
    """Slower cells first, then faster ones, each by the size of the change; what cannot be told comes last."""
    value = change.speed.value if change.speed else 1.0
    order = {"slower": 0, "faster": 1, "no difference": 2, "unknown": 3}
    return order[change.word], -abs(value - 1)


def _history(compared: ComparedRuns) -> Chart | None:
    """One cell at a time over three runs or more."""
    changes = [change for change in compared.changes if len(_measured(change)) > 1 and change.cells[-1] is not None]
    if len(compared.runs) < 3 or not changes:
        return None
    naming = Compared.of(compared.runs[-1]).naming
    since = [(), *(_changed(after, before) for before, after in pairwise(compared.runs))]
    marks = [_mark(found) for found in since]
    said = [_said(found) for found in since]
    variants = tuple(
        Variant(
            naming.full(change.cell),
            history_figure(change, runs=letters(compared), marks=marks),
            history_table(compared, change, said),
        )
        for change in changes
    )
    caption = (
        "Median over launches with its 95 % interval, run by run. A dashed line: the machine or the software changed "
        "there, as named above it and in full in the table."
    )
    return Chart("history", "Step over the runs", caption, variants, picker="cell")


def _measured(change: Change) -> list[CellResult]:
    return [cell for cell in change.cells if cell is not None and is_measured(cell)]


def _changed(run: RunData, before: RunData) -> tuple[Difference, ...]:
    """In what a run's machine and software differ from those of the one before it."""
    return tuple(one for one in provenance_diff(run.view, before.view) if not one.what.startswith("scenario"))


def _mark(found: Sequence[Difference]) -> str:
    """What changed, in the few words that fit above a chart."""
    if not found:
        return ""
    return clean(found[0].what, 24) + (f" +{len(found) - 1}" if len(found) > 1 else "")


def _said(found: Sequence[Difference]) -> str:
    return "; ".join(f"{one.what} {one.reference} \N{RIGHTWARDS ARROW} {one.here}" for one in found)
