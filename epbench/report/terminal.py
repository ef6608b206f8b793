"""A run in a terminal: the page's verdict and findings, its table of cells, and the reasons, in the page's words."""

from typing import Literal

from epbench.records import CellResult, RunView
from epbench.report.changes import (
    NOTHING_DIFFERS,
    changes_sentence,
    changes_table,
    differences_table,
    letters,
    notes,
    outcome_lines,
)
from epbench.report.comparison import Compared, Group
from epbench.report.findings import findings
from epbench.report.provenance import environment_rows
from epbench.report.quantities import peak_bytes
from epbench.report.routing_pairs import routings_table
from epbench.report.runs import ComparedRuns
from epbench.report.tables import Column, Table, Value, cell_columns, cells_table
from epbench.report.text import clean, gib
from epbench.report.verdict import by_importance, outcome_counts, summary, verdicts

__all__ = ["drawn", "render_cells", "render_changes"]

_WIDTH = 120
_NAMED = 3  # references of more groups than this are not listed
_COLUMNS = ("verdict", "layout", "mode", "step", "tokens", "peak", "launches", "speed", "grad_error")
_SHORT = {"peak": "peak GiB", "speed": "speed", "grad_error": "grad error"}
_ONE_LINE = ("step, ms", "speed", "tokens/s", "tokens/s against first", "op", "size", "mode", "verdict")


def render_cells(view: RunView) -> str:
    """Verdict, findings, cells and legend as plain text, then the reasons of cells that ended with one.

    Tables are at most 120 columns wide; longer names fold.
    """
    compared = Compared.of(view)
    head = f"{clean(view.run.name, 80)}: {', '.join(f'{what} {text}' for what, text in environment_rows(view))}"
    ended = [cell for cell in view.cells if cell.outcome is not None]
    reasons = [_reason(compared, cell) for cell in ended if cell.reason or not cell.expected]
    warnings = "\n".join(f"warning: {clean(text, 600)}" for text in view.warnings)
    body = [_verdicts(compared), _findings(compared), *_groups(compared), _routings(compared)]
    parts = [head, warnings, *body, "\n".join(_legend(compared)), "\n".join(reasons)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(compared: Compared) -> str:
    """What is said of the whole run: a sentence for each group, or of many groups how often who wins."""
    if not compared.groups:
        return "This run has no cells."
    return summary(compared) or "\n\n".join(verdict.text for verdict in by_importance(compared))


def _findings(compared: Compared) -> str:
    return "\n".join(f"- {finding.text}" for finding in findings(compared))


def _groups(compared: Compared) -> list[str]:
    """A table for each group, with its verdict where that has not been said above."""
    tables = [_table(compared, group) for group in compared.groups]
    if summary(compared):
        titles = [verdict.text for verdict in verdicts(compared)]
    else:
        titles = [f"{group.work}:" if group.work else "" for group in compared.groups]
    return [f"{title}\n\n{table}" if title else table for title, table in zip(titles, tables, strict=True)]


def _table(compared: Compared, group: Group) -> str:
    columns = {column.key: column for column in cell_columns(compared)}
    columns["peak"] = Column("peak", "peak GiB", "", lambda cell: Value(gib(peak_bytes(cell, compared))))
    table = cells_table(group.cells, [columns[key] for key in _COLUMNS])
    titles = tuple(_SHORT.get(key, columns[key].title) for key in _COLUMNS)
    return drawn(Table(titles, table.rows, table.numbers))


def render_changes(compared: ComparedRuns) -> str:
    """Runs against the first of them as plain text: what changed, cell by cell, and what else differs."""
    runs = [
        f"{letter} = {name}, started {clean(run.view.run.started, 40)}"
        for letter, name, run in zip(letters(compared), compared.names, compared.runs, strict=True)
    ]
    differences = differences_table(compared)
    what = f"What else differs:\n\n{drawn(differences)}" if differences.rows else NOTHING_DIFFERS
    table = changes_table(compared, is_narrow=True)
    parts = ["\n".join(runs), changes_sentence(compared), drawn(table) if table.rows else ""]
    parts += ["\n".join(outcome_lines(compared)), "\n".join(notes(compared)), what]
    return "\n\n".join(part for part in parts if part) + "\n"


def drawn(table: Table) -> str:
    """The table in plain characters, right-aligned numbers, no colour."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for title, is_number in zip(table.titles, table.numbers, strict=True):
        justify: Literal["right", "left"] = "right" if is_number else "left"
        is_whole = title.partition(": ")[2] in _ONE_LINE or title in _ONE_LINE
        shown.add_column(Text(title), justify=justify, overflow="fold", no_wrap=is_whole)
    for row in table.rows:
        shown.add_row(*(Text(value.text) for value in row))
    console = Console(width=_WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _routings(compared: Compared) -> str:
    table = routings_table(compared)
    return f"The same cells under different routings:\n\n{drawn(table)}" if table else ""


def _legend(compared: Compared) -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in outcome_counts(compared.view).items())
    lines = [f"{counts}. Intervals are 95 %, over launches."] if counts else []
    references = [compared.naming.full(group.reference) for group in compared.groups if group.reference is not None]
    if len(references) > _NAMED:
        lines.append("Speeds are against the reference of each group, which its table marks.")
    elif references:
        lines.append(f"Speeds are against {'; '.join(references)}.")
    if compared.view.environment.device == "cpu":
        lines.append("Measured on CPU: this proves the path and its correctness, not the performance of GPUs.")
    return lines


def _reason(compared: Compared, cell: CellResult) -> str:
    ending = f"{cell.outcome}{'' if cell.expected else ' (not as expected)'}"
    reason = clean(cell.reason, 600) if cell.reason else "no reason recorded"
    return ": ".join([compared.naming.full(cell), ending, reason])
