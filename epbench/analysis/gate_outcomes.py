"""The word of a cell whose outcomes already decide it: that it ran in one arm only, in neither, or not far enough."""

from epbench.analysis.arms import Arm
from epbench.gate_records import Word

__all__ = ["word_of_outcomes"]

_UNTOLD = ("unstable", "interrupted", None)  # nothing is known of what the cell does


def word_of_outcomes(base: Arm | None, head: Arm | None) -> tuple[Word, str] | None:
    """The word and a sentence; None where both arms are ok, so that numbers decide. Not both arms are None."""
    if base is None:
        return "new", f"base does not have it; {_ended(head)} in head"
    if head is None:
        return "missing", f"head does not have it; {_ended(base)} in base"
    for name, arm in (("head", head), ("base", base)):
        if arm.outcome in _UNTOLD:
            return "inconclusive", f"{_ended(arm)} in {name}"
    if base.outcome == head.outcome and base.outcome != "ok":
        return _both(base, head)
    return _changed(base, head)


def _both(base: Arm, head: Arm) -> tuple[Word, str]:
    """Ended alike, with no number: of a cell that is to be skipped, or to run out of memory, that is no failure."""
    if head.outcome == "skipped":
        return "no change", "skipped in both"
    if base.expected and head.expected:
        return "no change", f"{head.outcome} in both, as expected"
    return "failing", f"{_ended(head)} in both"


def _changed(base: Arm, head: Arm) -> tuple[Word, str] | None:
    if head.outcome == base.outcome == "ok":
        return None
    sentence = f"was {base.outcome}, is {_ended(head)}"
    if base.outcome == "ok":
        return "broken", sentence
    return ("fixed" if head.outcome == "ok" else "failing"), sentence


def _ended(arm: Arm | None) -> str:
    if arm is None or arm.outcome is None:
        return "not run"
    return f"{arm.outcome} ({arm.reason})" if arm.reason and arm.outcome != "ok" else arm.outcome
