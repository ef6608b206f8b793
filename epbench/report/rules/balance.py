"""What uneven routing costs, and whether it changes which layout is fastest. Only cells that were measured speak."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from epbench.analysis.work import WAYS, work_but_routing
from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, speed_ratio
from epbench.report.quantities import traced_share
from epbench.report.routing_pairs import routing_pairs
from epbench.report.rules.model import Finding, best_of, gain, ranked
from epbench.report.text import number, slow_down, speed_up

__all__ = ["crossover", "imbalance_cost", "uneven_ranks"]

_UNEVEN = 1.2  # copies of the heaviest ep rank over the mean


def imbalance_cost(compared: Compared) -> Finding | None:
    """The largest loss of throughput between two routings of one layout that can be told from none."""
    pairs = [(even, other) for cells in routing_pairs(compared) for even, other in _more_uneven(cells)]
    ratios = [(ratio, even, other) for even, other in pairs if (ratio := speed_ratio(other, even)) is not None]
    told = [one for one in ratios if one[0].excludes(1.0) and one[0].value < 1]
    if not told:
        return None
    ratio, even, other = min(told, key=lambda one: one[0].value)
    name = replace(compared.naming, has_routings=False).full(other)
    uneven, evener = (_routing(compared, cell) for cell in (other, even))
    text = f"{name} does {slow_down(ratio)} fewer tokens/s with {uneven} than with {evener}."
    return Finding(text, "imbalance", 1 - ratio.value)


def _more_uneven(cells: Sequence[CellResult]) -> Iterator[tuple[CellResult, CellResult]]:
    """The cell with the evenest load, beside each whose load is known to be less even."""
    known = sorted(((load, cell) for cell in cells if (load := _load(cell))), key=lambda one: one[0])
    yield from ((known[0][1], cell) for load, cell in known[1:] if load > known[0][0])


def _load(cell: CellResult) -> float | None:
    return cell.expert_load.max_over_mean


def _routing(compared: Compared, cell: CellResult) -> str:
    return f"{compared.naming.routing(cell)} routing (expert max / mean {number(_load(cell), 2)})"


def crossover(compared: Compared) -> Finding | None:
    """Two routings of the same work, each with a fastest layout of its own, that both were ranked under both."""
    for groups in _by_load(compared):
        for load, other in groups[1:]:
            found = _change(compared, groups[0][1], other) if load > groups[0][0] else None
            if found is not None:
                return found
    return None


def _by_load(compared: Compared) -> list[list[tuple[float, Group]]]:
    """Groups that differ in routing only and have a ranking, with the load of each, the evenest first."""
    alike: dict[str, list[tuple[float, Group]]] = {}
    for group in compared.groups:
        loads = [load for cell in group.measured if (load := _load(cell))]
        if loads and best_of(group):
            alike.setdefault(work_but_routing(group.cells[0]), []).append((median(loads), group))
    return [sorted(found, key=lambda one: one[0]) for found in alike.values()]


def _arm(cell: CellResult) -> str:
    ways = {key: value for key, value in cell.train.items() if key in WAYS}
    return json.dumps([cell.layout, cell.mode, ways], sort_keys=True)


def _change(compared: Compared, even: Group, other: Group) -> Finding | None:
    before, after = best_of(even), best_of(other)
    if len(before) > 1 or len(after) > 1:  # a tie has no winner
        return None
    was, now = before[0], after[0]
    then = {_arm(cell): cell for cell in ranked(other)}
    ratio = speed_ratio(now, then.get(_arm(was)))
    if ratio is None or not ratio.excludes(1.0):
        return None
    if _arm(now) not in {_arm(cell) for cell in ranked(even)}:  # it may have been fastest all along
        return None
    name = replace(compared.naming, has_routings=False).full
    text = f"The winner changes from {name(was)} to {name(now)} with {_routing(compared, now)}"
    return Finding(f"{text}: there it is {speed_up(ratio)} against it.", "imbalance", gain(ratio))


def uneven_ranks(compared: Compared) -> Finding | None:
    """The ep rank with most routed copies, under the routing that the run did not make uneven on purpose."""
    loads = [(load, cell) for cell in compared.measured if (load := cell.expert_load.rank_max_over_mean)]
    natural = [one for one in loads if one[1].routing == "natural"]
    most, cell = max(natural, key=lambda one: one[0], default=(0.0, None))
    if cell is None or most < _UNEVEN:
        return None
    text = f"The heaviest ep rank of {compared.naming.full(cell)} has {number(most, 2)} times the mean of routed copies"
    compute = traced_share(cell, cell.breakdown_s.compute) or 0.0
    return Finding(f"{text}.", "expert-load", (1 - 1 / most) * compute)
