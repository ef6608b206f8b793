"""A run as markdown, for a pull request: verdict, findings, what changed if runs are compared, the table of cells."""

import re

from epbench.records import RunView
from epbench.report.changes import changes_sentence, changes_table, differences_table, letters, notes, outcome_lines
from epbench.report.comparison import Compared
from epbench.report.data import RunData
from epbench.report.findings import findings
from epbench.report.provenance import environment_rows
from epbench.report.runs import ComparedRuns
from epbench.report.tables import Table, cell_columns, cells_table
from epbench.report.text import clean
from epbench.report.verdict import by_importance, outcome_counts, summary

__all__ = ["markdown_changes", "markdown_report"]

_COLUMNS = ("verdict", "layout", "mode", "routing", "size", "step", "tokens", "peak", "exposed", "launches", "speed")
# What a forge links or draws in the text that is left when backslashes are gone: mentions, issues, addresses, emoji.
_LIVE = re.compile(r"[@#]|:(?=//|[\w+-]+:)|www(?=\.)|GH-(?=\d)", re.IGNORECASE)
_GAP = "\N{ZERO WIDTH SPACE}"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&@])")


def markdown_report(run: RunView | RunData, *, changes: ComparedRuns | None = None) -> str:
    """The report of one run; what ``changes`` tells of it stands between findings and table."""
    compared = Compared.of(run)
    view = compared.view
    machine = ", ".join(f"{what} {escaped(text)}" for what, text in environment_rows(view))
    counts = ", ".join(f"{count} {name}" for name, count in outcome_counts(view).items())
    parts = [
        f"## {escaped(clean(view.run.name, 80))}",
        machine,
        "\n".join(f"**Warning:** {escaped(clean(text, 600))}  " for text in view.warnings),
        "\n\n".join(f"**{escaped(text)}**" for text in _verdicts(compared)),
        "\n".join(f"- {escaped(finding.text)}" for finding in findings(compared)),
        markdown_changes(changes) if changes is not None else "",
        _cells(compared),
        f"{counts}. Intervals are 95 %, over launches." if counts else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_changes(changes: ComparedRuns) -> str:
    """What changed from the first run to the last, as a part of a page."""
    runs = [f"{letter} is {escaped(name)}" for letter, name in zip(letters(changes), changes.names, strict=True)]
    differences, table = differences_table(changes), changes_table(changes)
    lines = "\n".join(f"- {escaped(line)}" for line in outcome_lines(changes))
    parts = [
        f"### Compared with {escaped(changes.names[0])}",
        f"**{escaped(changes_sentence(changes))}**",
        markdown_table(table) if table.rows else "",
        lines,
        f"{', '.join(runs)}. {escaped(' '.join(notes(changes)))}",
        f"What else differs:\n\n{markdown_table(differences)}" if differences.rows else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _verdicts(compared: Compared) -> list[str]:
    if not compared.groups:
        return ["This run has no cells."]
    found = summary(compared)
    return [found] if found else [verdict.text for verdict in by_importance(compared)]


def _cells(compared: Compared) -> str:
    columns = [column for column in cell_columns(compared) if column.key in _COLUMNS]
    columns.sort(key=lambda column: _COLUMNS.index(column.key))
    return markdown_table(cells_table(compared.view.cells, columns)) if compared.view.cells else ""


def markdown_table(table: Table) -> str:
    """The table with its numbers aligned to the right."""
    rule = ["---:" if is_number else "---" for is_number in table.numbers]
    rows = [[escaped(value.text) for value in row] for row in table.rows]
    lines = [[escaped(title) for title in table.titles], rule, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escaped(text: str) -> str:
    """Text that markdown shows as it is: no markup, mention, link, emoji, formula or HTML; one line."""
    apart = _LIVE.sub(lambda found: found[0] + _GAP, " ".join(text.split()))
    return _SPECIAL.sub(r"\\\1", apart).replace("$", "&#36;")
