"""Which cells stand in which chart, in what order, and which are told to be absent."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, is_measured, throughput
from epbench.report.quantities import peak_bytes
from epbench.report.text import join
from epbench.report.verdict import NOT_RUN

__all__ = ["Rows", "absent_note", "mode_pairs", "mode_rows", "size_rows", "weighed"]

_NAMED = 8  # more absent cells than this are counted
Rows = list[tuple[str, tuple[CellResult, ...]]]


def mode_rows(compared: Compared, group: Group) -> Rows:
    """Layouts of a group with their measured modes, the fastest layout first."""
    rows = _by(compared.naming.layout, group.measured)
    return sorted(rows, key=lambda row: min(cell.step_s or 0.0 for cell in row[1]))


def mode_pairs(rows: Rows) -> list[tuple[str, CellResult, CellResult]]:
    """The rows that were measured both eager and compiled: (name, eager, compiled)."""
    pairs = []
    for name, cells in rows:
        modes = {cell.mode: cell for cell in cells}
        if {"eager", "compiled"} <= modes.keys():
            pairs.append((name, modes["eager"], modes["compiled"]))
    return pairs


def size_rows(compared: Compared) -> dict[str, Rows]:
    """By routing and other conditions: layouts and modes that were measured with two model sizes or more.

    The layout with the highest throughput comes first, its modes beside each other.
    """
    naming = compared.naming
    by_conditions = _by(naming.conditions, [cell for cell in compared.view.cells if is_measured(cell)])
    found: dict[str, Rows] = {}
    for conditions, cells in by_conditions:
        best = {name: max(map(_tokens, members)) for name, members in _by(naming.layout, cells)}
        rows = [row for row in _by(naming.arm, cells) if len({naming.size(cell) for cell in row[1]}) > 1]
        if rows:
            first = {name: -best[naming.layout(members[0])] for name, members in rows}
            found[conditions] = sorted(rows, key=lambda row: (first[row[0]], -max(map(_tokens, row[1]))))
    return found


def _tokens(cell: CellResult) -> float:
    return cell.tokens_per_s_per_rank or 0.0


def weighed(compared: Compared, cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells with both a peak of memory and a throughput."""
    return [cell for cell in cells if peak_bytes(cell, compared) is not None and throughput(cell) is not None]


def absent_note(compared: Compared, group: Group, shown: Collection[str]) -> str:
    """Which cells of the group a chart cannot show, with their outcome; empty if ids of all are among ``shown``."""
    absent = [cell for cell in group.cells if cell.cell not in shown]
    if not absent:
        return ""
    if len(absent) > _NAMED:
        counts = Counter(cell.outcome or NOT_RUN for cell in absent)
        told = join([f"{count} {outcome}" for outcome, count in counts.items()])
        return f"Not shown: {told}, named in the table of all cells."
    return f"Not shown: {join([f'{compared.naming.arm(cell)} ({cell.outcome or NOT_RUN})' for cell in absent])}."


def _by(name: Callable[[CellResult], str], cells: Sequence[CellResult]) -> Rows:
    found: dict[str, list[CellResult]] = {}
    for cell in cells:
        found.setdefault(name(cell), []).append(cell)
    return [(key, tuple(members)) for key, members in found.items()]
