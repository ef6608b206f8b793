"""A run in a terminal: the page's verdict, its table of cells, and the reasons, in the page's words."""

from typing import Literal

from epbench.records import CellResult, RunView
from epbench.report.comparison import Compared, Group
from epbench.report.provenance import environment_rows
from epbench.report.routing_pairs import routings_table
from epbench.report.tables import Table, cell_columns, cells_table
from epbench.report.text import clean
from epbench.report.verdict import outcome_counts, verdicts

__all__ = ["drawn", "render_cells"]

_WIDTH = 120
_COLUMNS = ("outcome", "layout", "mode", "step", "tokens", "peak", "launches", "speed", "grad_error")
_SHORT = {"peak": "peak GiB", "speed": "speed", "grad_error": "grad error"}
_ONE_LINE = ("step, ms", "speed", "tokens/s against first", "op", "size")


def render_cells(view: RunView) -> str:
    """Verdict, cells and legend as plain text, group by group, then the reasons of cells that have one.

    Tables are at most 120 columns wide; longer names fold.
    """
    compared = Compared.of(view)
    head = f"{clean(view.run.name, 80)}: {', '.join(f'{what} {text}' for what, text in environment_rows(view))}"
    groups = [
        f"{verdict.text}\n\n{_table(compared, group)}"
        for verdict, group in zip(verdicts(compared), compared.groups, strict=True)
    ]
    reasons = [_reason(compared, cell) for cell in view.cells if cell.reason or not cell.expected]
    warnings = "\n".join(f"warning: {clean(text, 600)}" for text in view.run.warnings)
    body = [*(groups or ["This run has no cells."]), _routings(compared)]
    parts = [head, warnings, *body, "\n".join(_legend(compared)), "\n".join(reasons)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(compared: Compared, group: Group) -> str:
    columns = {column.key: column for column in cell_columns(compared)}
    table = cells_table(group.cells, [columns[key] for key in _COLUMNS])
    titles = tuple(_SHORT.get(key, columns[key].title) for key in _COLUMNS)
    return drawn(Table(titles, table.rows, table.numbers))


def drawn(table: Table) -> str:
    """The table in plain characters, right-aligned numbers, no colour."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for title, is_number in zip(table.titles, table.numbers, strict=True):
        justify: Literal["right", "left"] = "right" if is_number else "left"
        shown.add_column(title, justify=justify, overflow="fold", no_wrap=title in _ONE_LINE)
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
    lines += [f"Speeds are against {'; '.join(references)}."] if references else []
    if compared.view.environment.device == "cpu":
        lines.append("Measured on CPU: this proves the path and its correctness, not the performance of GPUs.")
    return lines


def _reason(compared: Compared, cell: CellResult) -> str:
    ending = [] if cell.outcome is None else [cell.outcome + ("" if cell.expected else " (not as expected)")]
    reason = clean(cell.reason, 600) if cell.reason else "no reason recorded"
    return ": ".join([compared.naming.full(cell), *ending, reason])
