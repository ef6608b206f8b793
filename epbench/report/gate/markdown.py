"""A verdict as markdown: the parts that the summary of a CI job and the comment on a pull request share."""

from collections.abc import Sized
from dataclasses import replace

from epbench.gate_records import CellVerdict, Verdict
from epbench.report.gate.fitted import Part, lines_part, table_part
from epbench.report.gate.tables import changes_table, differences_table, further_table, quiet_table
from epbench.report.gate.text import arm_text, how_judged, known_lines, unjudged_lines, what_next
from epbench.report.gate.words import ATTENTION, CHANGES, heading_of, worst_first
from epbench.report.markdown import escaped
from epbench.report.text import clean

__all__ = ["opening", "parts_of"]

_SCENARIO, _SUMMARY = 100, 1000  # characters


def opening(verdict: Verdict) -> str:
    """Heading, the sentence, the arms and how to read the numbers."""
    title = f"## Gate: {escaped(clean(verdict.scenario, _SCENARIO))}: {heading_of(verdict)}"
    arms = f"Base is {escaped(arm_text(verdict.base))}; head is {escaped(arm_text(verdict.head))}."
    told = [how_judged(verdict), *what_next(verdict)]
    sentence = f"**{escaped(clean(verdict.summary, _SUMMARY))}**"
    return "\n\n".join([title, sentence, arms, *map(escaped, told)])


def parts_of(verdict: Verdict, *, is_folded: bool) -> list[Part]:
    """Regressions first and never folded; ``is_folded`` folds all that follows."""
    cells = [cell for cell in worst_first(verdict.cells) if cell.acknowledged is None]
    bad = [cell for cell in cells if cell.word in ATTENTION]
    better = [cell for cell in cells if cell.word in CHANGES]
    unjudged, known = list(unjudged_lines(verdict)), list(known_lines(verdict))
    warnings = [clean(text, 600) for text in verdict.warnings]
    further, differences = further_table(bad), differences_table(verdict)
    parts = [
        table_part(_counted("What else changed in them, not gated", further.rows), further, "changes"),
        lines_part(_counted("Not judged", unjudged), unjudged, "lines on what was not judged"),
        table_part(_counted("Improvements", better), changes_table(better), "lines of improvements"),
        lines_part(_counted("Known regressions, which fail nothing", known), known, "known regressions"),
        lines_part(_counted("Warnings", warnings), warnings, "warnings"),
        table_part(_counted("What else differs", differences.rows), differences, "differences"),
        _quiet(verdict, cells),
    ]
    first = table_part(_counted("Regressions", bad), changes_table(bad), "lines of regressions")
    return [first, *(replace(part, is_folded=is_folded) for part in parts)]


def _counted(title: str, found: Sized) -> str:
    return f"{title} ({len(found)})"


def _quiet(verdict: Verdict, cells: list[CellVerdict]) -> Part:
    quiet = [cell for cell in cells if cell.word == "no change"]
    return table_part(_counted("Without change", quiet), quiet_table(verdict, quiet), "cells without change")
