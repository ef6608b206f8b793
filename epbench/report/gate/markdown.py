"""A verdict as markdown: the parts that the summary of a CI job and the comment on a pull request share."""

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
    folded = {"is_folded": is_folded}
    return [
        table_part("Regressions", changes_table(bad), "lines of regressions"),
        table_part("What else changed in them, not gated", further_table(bad), "changes", **folded),
        lines_part("Not judged", list(unjudged_lines(verdict)), "lines on what was not judged", **folded),
        table_part("Improvements", changes_table(better), "lines of improvements", **folded),
        lines_part("Known regressions", list(known_lines(verdict)), "known regressions", **folded),
        lines_part("Warnings", [clean(text, 600) for text in verdict.warnings], "warnings", **folded),
        table_part("What else differs", differences_table(verdict), "differences", **folded),
        _quiet(verdict, cells, is_folded=is_folded),
    ]


def _quiet(verdict: Verdict, cells: list[CellVerdict], *, is_folded: bool) -> Part:
    quiet = [cell for cell in cells if cell.word == "no change"]
    return table_part("Without change", quiet_table(verdict, quiet), "cells without change", is_folded=is_folded)
