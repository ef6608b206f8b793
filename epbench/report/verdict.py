"""The sentence that a reader takes away, and only as much of it as the launches bear out.

A layout is called fastest when the interval of its speed against every other excludes 1. Otherwise the cells
that cannot be told apart are named as a tie. Cells with fewer than three valid launches are not ranked.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from epbench.analysis.statistics import MIN_LAUNCHES, ties
from epbench.records import CellResult, RunView
from epbench.report.comparison import (
    Compared,
    Group,
    Naming,
    speed_ratio,
    step_interval,
    step_launches,
)
from epbench.report.text import interval, join, ms, speed_up

__all__ = ["NOT_RUN", "Verdict", "outcome_counts", "verdicts"]

NOT_RUN = "not run"


@dataclass(frozen=True)
class Verdict:
    """What may be said about one group of comparable cells; ``work`` is empty if the run has one group."""

    kind: Literal["fastest", "tie", "unranked"]
    work: str
    sentence: str

    @property
    def text(self) -> str:
        """Sentence with the group that it is about."""
        return f"{self.work}: {self.sentence}" if self.work else self.sentence


def verdicts(compared: Compared) -> tuple[Verdict, ...]:
    """One verdict for each group of comparable cells, in the run's order."""
    return tuple(_verdict(group, compared.naming) for group in compared.groups)


def outcome_counts(view: RunView) -> dict[str, int]:
    """How many cells ended how; cells that wait to be run count as ``not run``."""
    return dict(Counter(cell.outcome or NOT_RUN for cell in view.cells))


def _verdict(group: Group, naming: Naming) -> Verdict:
    ranked = {cell.cell: cell for cell in group.measured if len(step_launches(cell)) >= MIN_LAUNCHES}
    if len(ranked) < 2:
        return Verdict("unranked", group.work, _unranked_sentence(group, naming))
    best = [ranked[name] for name in ties({name: step_launches(cell) for name, cell in ranked.items()})]
    left_out = [naming.arm(cell) for cell in group.measured if cell.cell not in ranked]
    note = f" Not ranked, fewer than {MIN_LAUNCHES} valid launches: {join(left_out)}." if left_out else ""
    others = [cell for cell in ranked.values() if cell not in best]
    if len(best) > 1:
        return Verdict("tie", group.work, _tie_sentence(best, others, naming) + note)
    return Verdict("fastest", group.work, _fastest_sentence(best[0], others, group, naming) + note)


def _unranked_sentence(group: Group, naming: Naming) -> str:
    measured = group.measured
    if not measured:
        counts = Counter(cell.outcome or NOT_RUN for cell in group.cells)
        return f"no cell has a number ({', '.join(f'{n} {name}' for name, n in counts.items())})."
    if len(measured) == 1:
        only = measured[0]
        return f"only {naming.arm(only)} has a number, {_step(only)}; there is nothing to compare it with."
    most = max(len(step_launches(cell)) for cell in measured)
    return (
        f"no ranking: an interval needs {MIN_LAUNCHES} valid launches a cell, and fewer than two cells have "
        f"them (most: {most}). The table gives the {len(measured)} measured values."
    )


def _fastest_sentence(best: CellResult, others: list[CellResult], group: Group, naming: Naming) -> str:
    runner_up = min(others, key=lambda cell: cell.step_s or 0.0)
    against = group.reference if group.reference in others else runner_up
    assert against is not None, "a group with a fastest cell has something to compare it with"
    sentence = f"{naming.arm(best)} is fastest: {_step(best)}, {_faster(best, against, naming)}"
    if against is not runner_up:
        sentence += f" and {_faster(best, runner_up, naming)}, the next"
    return sentence + "."


def _tie_sentence(best: list[CellResult], others: list[CellResult], naming: Naming) -> str:
    names = join([naming.arm(cell) for cell in best])
    sentence = f"{names} cannot be told apart: the lowest median is that of {naming.arm(best[0])}, {_step(best[0])}"
    sentence += ", and the interval of every one's speed against it contains 1."
    if others:
        slower = "the other one is" if len(others) == 1 else f"the other {len(others)} ranked cells are"
        sentence += f" {slower[0].upper()}{slower[1:]} slower."
    return sentence


def _faster(cell: CellResult, against: CellResult, naming: Naming) -> str:
    ratio = speed_ratio(cell, against)
    return f"{speed_up(ratio, sign=False)} faster than {naming.arm(against)}"


def _step(cell: CellResult) -> str:
    step = step_interval(cell)
    if step is None:
        return f"{ms(cell.step_s)} ms/step"
    return f"{interval(step.value, step.low, step.high, scale=1e3)} ms/step"
