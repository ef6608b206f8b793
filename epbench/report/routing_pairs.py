"""The same layout, mode, model and training settings under different routings, side by side.

Routings are no rivals: nobody chooses the tokens. What two of them tell together is how much of a layout's throughput
hangs on the balance of its experts, so each throughput stands beside the load that it was measured under.
"""

import json
from collections.abc import Iterable
from dataclasses import replace

from epbench.records import CellResult
from epbench.report.comparison import Compared, Naming, is_measured, speed_ratio
from epbench.report.tables import Table, Value
from epbench.report.text import number, speed_up

__all__ = ["routing_pairs", "routings_table"]

_PLAIN = "natural"


def routing_pairs(compared: Compared) -> list[tuple[CellResult, ...]]:
    """Measured cells that differ in their routing only, two or more each, natural routing first where it is there."""
    alike: dict[str, list[CellResult]] = {}
    for cell in compared.view.cells:
        if is_measured(cell):
            alike.setdefault(_all_but_routing(cell), []).append(cell)
    return [_plain_first(cells) for cells in alike.values() if len({cell.routing for cell in cells}) > 1]


def _all_but_routing(cell: CellResult) -> str:
    return json.dumps([cell.layout, cell.mode, cell.world_size, cell.model, cell.train], sort_keys=True)


def _plain_first(cells: Iterable[CellResult]) -> tuple[CellResult, ...]:
    return tuple(sorted(cells, key=lambda cell: cell.routing != _PLAIN))


def routings_table(compared: Compared) -> Table | None:
    """One row a cell: throughput, against the first of its pair, and the load on experts and ranks; None: no pair."""
    pairs = routing_pairs(compared)
    if not pairs:
        return None
    titles = (
        "layout and mode",
        "routing",
        f"tokens/s/{compared.rank_word}",
        "tokens/s against first",
        "expert max / mean",
        "rank max / mean",
        "fan-out",
    )
    naming = replace(compared.naming, has_routings=False)
    rows = tuple(_row(naming, cell, cells[0]) for cells in pairs for cell in cells)
    return Table(titles, rows, numbers=(False, False, True, True, True, True, True))


def _row(naming: Naming, cell: CellResult, first: CellResult) -> tuple[Value, ...]:
    ratio = speed_ratio(cell, first)
    against = Value("first", 1.0) if cell is first else Value(speed_up(ratio), ratio.value if ratio else None)
    load = cell.expert_load
    loads = (load.max_over_mean, load.rank_max_over_mean, load.fan_out)
    return (
        Value(naming.full(first)),
        Value(naming.routing(cell)),
        Value(number(cell.tokens_per_s_per_rank), cell.tokens_per_s_per_rank),
        against,
        *(Value(number(value), value) for value in loads),
    )
