"""Who keeps the others waiting, and which collectives the step slows down."""

from collections.abc import Callable, Iterator

from epbench.records import CellResult, CollectiveRow
from epbench.report.comparison import Compared
from epbench.report.figures.communication import kind_of
from epbench.report.quantities import lost_s
from epbench.report.rules.model import Finding, share
from epbench.report.step_parts import traced_s
from epbench.report.text import clean, number, us

__all__ = ["last_rank", "slow_in_step"]

_LAST, _UNFAIR = 0.5, 1.5  # of the calls, and times the share that chance would give
_WAITED, _SLOWER, _LOST = 0.01, 1.3, 0.02  # shares of the traced step, and times the call alone


def last_rank(compared: Compared) -> Finding | None:
    """The rank that keeps others waiting longest, if it is last far more often than its turn."""
    found = max(_rows(compared, _waited), key=lambda one: one[0], default=None)
    if found is None or found[0] < _WAITED:
        return None
    part, cell, row = found
    rank, last = max(row.last_rank_share.items(), key=lambda item: item[1])
    text = f"Rank {rank} arrives last in {share(last)} of the {_calls(row)} of {compared.naming.full(cell)}"
    return Finding(
        f"{text}; another waits up to {number(row.wait_s * 1e3)} ms of the traced step ({share(part)}), "
        "whatever else it computes meanwhile.",
        "collectives",
        part,
    )


def _waited(cell: CellResult, row: CollectiveRow) -> float | None:
    """Share of the traced step that is waited, where one rank is to blame; None without a traced step."""
    last = max(row.last_rank_share.values(), default=0.0)
    by_chance = 1 / max(2, len(row.last_rank_share))
    return _of_traced(cell, row.wait_s) if last > max(_LAST, _UNFAIR * by_chance) else None


def slow_in_step(compared: Compared) -> Finding | None:
    """The call that takes much longer in the step than alone, if that is a share of the step worth telling."""
    found = max(_rows(compared, _lost), key=lambda one: one[0], default=None)
    if found is None or found[0] < _LOST:
        return None
    part, cell, row = found
    assert row.isolated_s is not None, "only rows with a time alone have a loss"
    times = f"{number(row.p50_s / row.isolated_s, 2)} times as long as alone"
    text = f"In the step of {compared.naming.full(cell)} the {_calls(row)} take {times}"
    each = f"{us(row.p50_s)} against {us(row.isolated_s)} µs a call"
    return Finding(f"{text}: {each}, {_what(row)} {share(part)} of the traced step.", "in-step-vs-alone", part)


def _what(row: CollectiveRow) -> str:
    """What the share of the step is that follows."""
    return "in all" if row.exposed_s is None else "of which no other kernel hides up to"


def _lost(cell: CellResult, row: CollectiveRow) -> float | None:
    """Share of the traced step that calls take beyond what they take alone, no more than is known to be exposed."""
    if not row.isolated_s or row.p50_s < _SLOWER * row.isolated_s:
        return None
    lost = lost_s(row)
    return None if lost is None else _of_traced(cell, lost if row.exposed_s is None else min(lost, row.exposed_s))


def _of_traced(cell: CellResult, seconds: float) -> float | None:
    """Share of the traced step, for a traced step is slower than a timed one and these seconds are of the trace."""
    traced = traced_s(cell.breakdown_s)
    return seconds / traced if traced else None


def _rows(
    compared: Compared, weigh: Callable[[CellResult, CollectiveRow], float | None]
) -> Iterator[tuple[float, CellResult, CollectiveRow]]:
    for cell in compared.measured:
        for row in cell.collectives:
            weight = weigh(cell, row)
            if weight is not None:
                yield weight, cell, row


def _calls(row: CollectiveRow) -> str:
    return f"{clean(kind_of(row), 60)} calls in {clean(row.phase, 20)}"
