"""``comment.md``: a pull request's comment, with a hidden first line by which a workflow finds and updates it.

GitHub takes 65,536 characters; the text has at most as many bytes, which is stricter.
"""

import re
from hashlib import sha256

from epbench.gate_records import Verdict
from epbench.report.gate.fitted import fitted
from epbench.report.gate.markdown import opening, parts_of

__all__ = ["LIMIT", "comment_markdown", "marker"]

LIMIT = 65_536


def marker(scenario: str) -> str:
    """``<!-- epbench-gate:SCENARIO -->``: the scenario's name, or a digest of one that no file can give."""
    name = (
        scenario
        if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", scenario)
        else sha256(scenario.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    )
    return f"<!-- epbench-gate:{name} -->"


def comment_markdown(verdict: Verdict, *, limit: int = LIMIT) -> str:
    """Regressions in full, the rest folded, in at most ``limit`` bytes."""
    head = f"{marker(verdict.scenario)}\n{opening(verdict)}"
    return fitted(head, parts_of(verdict, is_folded=True), limit=limit)
