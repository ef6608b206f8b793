"""The sentence that a reader takes away, and only as much of it as the launches bear out.

A cell is slower if the interval of its speed against some other excludes 1. If that leaves one cell, it is called
fastest; if it leaves several, none of them can be told from another, and they are named as a tie. Cells with fewer than
three valid launches are not ranked.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from epbench.analysis.statistics import MIN_LAUNCHES
from epbench.records import CellResult, RunView
from epbench.report.comparison import (
    Compared,
    Group,
    Naming,
    is_measured,
    on_unlike_starts,
    speed_ratio,
    step_interval,
    step_launches,
)
from epbench.report.quantities import peak_bytes, peak_text
from epbench.report.rules.model import best_of, ranked
from epbench.report.text import gib, interval, join, ms, speed_up

__all__ = ["NOT_RUN", "Verdict", "by_importance", "outcome_counts", "summary", "verdict_words", "verdicts"]

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


_MANY = 3  # groups, above which a reader wants them summed up first


def verdicts(compared: Compared) -> tuple[Verdict, ...]:
    """One verdict for each group of comparable cells, in the run's order."""
    return tuple(_verdict(group, compared) for group in compared.groups)


def outcome_counts(view: RunView) -> dict[str, int]:
    """How many cells ended how; cells that wait to be run count as ``not run``."""
    return dict(Counter(cell.outcome or NOT_RUN for cell in view.cells))


def by_importance(compared: Compared) -> tuple[Verdict, ...]:
    """The same verdicts, those that a reader wants first: a ranking, natural routing, many measured cells."""
    pairs = zip(verdicts(compared), compared.groups, strict=True)
    return tuple(verdict for verdict, _ in sorted(pairs, key=lambda pair: _importance(*pair)))


def _importance(verdict: Verdict, group: Group) -> tuple[bool, bool, int]:
    return (verdict.kind == "unranked", group.cells[0].routing != "natural", -len(group.measured))


def summary(compared: Compared) -> str:
    """How often which cell is fastest, of a run with so many groups that nobody reads a sentence of each; else empty.

    Cells of different groups count as one where layout, mode and way to compute are the same.
    """
    if len(compared.groups) <= _MANY:
        return ""
    best = [found for group in compared.groups if (found := best_of(group))]
    wins = Counter(compared.naming.arm(found[0]) for found in best if len(found) == 1)
    parts = [f"{name} is fastest in {count}" for name, count in wins.most_common(_MANY)]
    if others := len(wins) - len(parts):
        parts.append(f"{others} other cell{'s' if others > 1 else ''} in {sum(wins.values()) - _top(wins)}")
    if tied := len(best) - sum(wins.values()):
        parts.append(f"{tied} {'is a tie' if tied == 1 else 'are ties'}")
    if unranked := len(compared.groups) - len(best):
        parts.append(f"{unranked} {'has' if unranked == 1 else 'have'} no ranking")
    return f"Of {len(compared.groups)} groups of comparable cells: {', '.join(parts)}."


def _top(wins: Counter[str]) -> int:
    return sum(count for _, count in wins.most_common(_MANY))


def verdict_words(compared: Compared) -> dict[str, str]:
    """Cell id to one word of its place in its group: fastest, tied, slower, not ranked, or how it ended."""
    return {name: word for group in compared.groups for name, word in _words(group)}


def _words(group: Group) -> Iterator[tuple[str, str]]:
    best = {cell.cell for cell in best_of(group)}
    in_ranking = {cell.cell for cell in ranked(group)} if best else set()
    for cell in group.cells:
        if cell.cell in best:
            yield cell.cell, "fastest" if len(best) == 1 else "tied"
        elif cell.cell in in_ranking:
            yield cell.cell, "slower"
        else:
            yield cell.cell, "not ranked" if is_measured(cell) else cell.outcome or NOT_RUN


def _verdict(group: Group, compared: Compared) -> Verdict:
    naming, best = compared.naming, best_of(group)
    if not best:
        return Verdict("unranked", group.work, _unranked_sentence(group, naming))
    in_ranking = ranked(group)
    left_out = [naming.arm(cell) for cell in group.measured if cell not in in_ranking]
    note = f" Not ranked, fewer than {MIN_LAUNCHES} valid launches: {join(left_out)}." if left_out else ""
    if on_unlike_starts(in_ranking):
        note += " Not all ran on the same machine starts; what a start adds is in no interval."
    others = [cell for cell in in_ranking if cell not in best]
    if len(best) > 1:
        return Verdict("tie", group.work, _tie_sentence(best, others, compared) + note)
    return Verdict("fastest", group.work, _fastest_sentence(best[0], others, group, compared) + note)


def _unranked_sentence(group: Group, naming: Naming) -> str:
    measured = group.measured
    if not measured:
        counts = Counter(cell.outcome or NOT_RUN for cell in group.cells)
        return f"No cell has a number ({', '.join(f'{n} {name}' for name, n in counts.items())})."
    if len(measured) == 1:
        only = measured[0]
        return f"Only {naming.arm(only)} has a number, {_step(only)}; there is nothing to compare it with."
    most = max(len(step_launches(cell)) for cell in measured)
    return (
        f"No ranking: an interval needs {MIN_LAUNCHES} valid launches a cell, and fewer than two cells have "
        f"them (most: {most}). The table gives the {len(measured)} measured values."
    )


def _fastest_sentence(best: CellResult, others: list[CellResult], group: Group, compared: Compared) -> str:
    naming = compared.naming
    runner_up = min(others, key=lambda cell: cell.step_s or 0.0)
    against = group.reference if group.reference in others else runner_up
    assert against is not None, "a group with a fastest cell has something to compare it with"
    sentence = f"{naming.arm(best)} is fastest: {_step(best)}, {_faster(best, against, naming)}"
    if against is not runner_up:
        sentence += f" and {_faster(best, runner_up, naming)}, the next"
    return f"{sentence}{_memory(best, compared)}."


def _memory(cell: CellResult, compared: Compared) -> str:
    peak, total = peak_bytes(cell, compared), compared.view.environment.device_memory_bytes
    if peak is None:
        return ""
    return f"; peak {gib(peak)} GiB of {gib(total)}" if total else f"; peak {gib(peak)} GiB"


def _tie_sentence(best: list[CellResult], others: list[CellResult], compared: Compared) -> str:
    naming = compared.naming
    names = join([naming.arm(cell) for cell in best])
    sentence = f"{names} cannot be told apart: the lowest median is that of {naming.arm(best[0])}, {_step(best[0])}"
    sentence += f", and the interval of each one's speed against any other contains 1.{_least_memory(best, compared)}"
    if others:
        slower = "the other one is" if len(others) == 1 else f"the other {len(others)} ranked cells are"
        sentence += f" {slower[0].upper()}{slower[1:]} slower."
    return sentence


def _least_memory(tied: list[CellResult], compared: Compared) -> str:
    """What may decide between equally fast cells; empty where their peaks are not all known, or are the same."""
    peaks = {cell.cell: peak for cell in tied if (peak := peak_bytes(cell, compared)) is not None}
    if len(peaks) < len(tied) or len(set(peaks.values())) == 1:
        return ""
    least = min(tied, key=lambda cell: peaks[cell.cell])
    return f" Of these {compared.naming.arm(least)} has the lowest peak, {peak_text(least, compared)} GiB."


def _faster(cell: CellResult, against: CellResult, naming: Naming) -> str:
    ratio = speed_ratio(cell, against)
    return f"{speed_up(ratio, sign=False)} faster than {naming.arm(against)}"


def _step(cell: CellResult) -> str:
    step = step_interval(cell)
    if step is None:
        return f"{ms(cell.step_s)} ms/step"
    return f"{interval(step.value, step.low, step.high, scale=1e3)} ms/step"
