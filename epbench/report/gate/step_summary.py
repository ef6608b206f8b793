"""``summary.md``, and the same appended to what GitHub shows of a job: it takes 1 MiB a step and drops what is more.

Source of the limit: GitHub's documentation of workflow commands, "Adding a job summary": 1 MiB a step.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from epbench.gate_records import Verdict
from epbench.report.gate.fitted import fitted
from epbench.report.gate.markdown import opening, parts_of
from epbench.writing import writing

__all__ = ["LIMIT", "append_summary", "summary_markdown"]

LIMIT = 1 << 20  # bytes
VARIABLE = "GITHUB_STEP_SUMMARY"


def summary_markdown(verdict: Verdict, *, limit: int = LIMIT) -> str:
    """The verdict, the worst first, in at most ``limit`` bytes. Raises ValueError if that holds not even headings."""
    return fitted(opening(verdict), parts_of(verdict, is_folded=False), limit=limit)


def append_summary(verdict: Verdict, environment: Mapping[str, str] = os.environ) -> str | None:
    """Append it to the file that ``$GITHUB_STEP_SUMMARY`` names, in the room that is left there.

    None, or a sentence if there is no room. Raises StorageError if the file cannot be written.
    """
    name = environment.get(VARIABLE)
    if not name:
        return None
    path = Path(name)
    with writing(path), path.open("ab") as file:
        room = LIMIT - file.tell() - 1
        try:
            file.write(b"\n" * (file.tell() > 0) + summary_markdown(verdict, limit=room).encode("utf-8", "replace"))
        except ValueError:
            return f"the summary of this step is full: {VARIABLE} has {file.tell()} of {LIMIT} bytes already"
    return None
