"""The gate's verdict in the report of the run that was judged: what ``verdict.json`` beside it says, nothing new.

A verdict that is older than launches of the run says nothing of them, so it is not shown.
"""

from pathlib import Path

from epbench.ab_records import FILE as AB_FILE
from epbench.gate_records import Verdict
from epbench.report.gate.judging import launches_of
from epbench.report.gate.step_summary import summary_markdown
from epbench.report.gate.tables import changes_table, counters_table, differences_table, further_table
from epbench.report.gate.text import arm_text, how_judged, known_lines, unjudged_lines, what_next
from epbench.report.gate.words import heading_of
from epbench.report.sections.model import Section, TitledTable
from epbench.report.tables import Table, Value
from epbench.report.text import clean
from epbench.store import open_run, read_record

__all__ = ["verdict_markdown", "verdict_section"]

_FILE = "verdict.json"


def verdict_section(run: Path) -> Section | None:
    """The section of a run directory, or of the head of an A/B; None if nobody has judged it. Raises RunError."""
    found = _read(run)
    if isinstance(found, str):
        return Section("gate", "Gate", missing=found)
    return None if found is None else _section(found)


def verdict_markdown(run: Path) -> str:
    """The same as markdown; empty if nobody has judged it. Raises RunError."""
    found = _read(run)
    if isinstance(found, str):
        return f"**{found}**\n"
    return "" if found is None else summary_markdown(found)


def _read(run: Path) -> Verdict | str | None:
    """The verdict, or a sentence on why there is none to be shown; None if nobody has judged the run."""
    path = run / _FILE
    if not path.exists() and run.resolve().name == "head" and (run / ".." / AB_FILE).exists():
        path = run / ".." / _FILE
    if not path.exists():
        return None
    verdict = read_record(path, Verdict)
    if verdict is None:
        return f"{_FILE} is damaged or of another version: epbench gate writes it anew."
    now = launches_of(open_run(run).view())
    if verdict.head.launches not in (None, now):
        return f"{_FILE} is of {verdict.head.launches} launches and the run has {now}: epbench gate judges them all."
    return verdict


def _section(verdict: Verdict) -> Section:
    summary = clean(verdict.summary, 1000)
    warnings = [clean(text, 600) for text in verdict.warnings]
    told = (
        ("Counters that changed", counters_table(verdict.cells)),
        ("What else changed, not gated, each at its own p", further_table(verdict.cells)),
        ("Not judged, or known", _lines([*unjudged_lines(verdict), *known_lines(verdict)])),
        ("What else differs", differences_table(verdict)),
    )
    return Section(
        "gate",
        f"Gate: {heading_of(verdict)}",
        lead=f"{summary[:1].upper()}{summary[1:]}.",
        note=" ".join([f"Base is {arm_text(verdict.base)}.", how_judged(verdict), *warnings, *what_next(verdict)]),
        table=changes_table(verdict.cells),
        tables=tuple(TitledTable(title, table) for title, table in told if table.rows),
    )


def _lines(lines: list[str]) -> Table:
    return Table.of(("cell and reason",), [(Value(line),) for line in lines], texts=1)
