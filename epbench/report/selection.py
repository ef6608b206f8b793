"""Which cells stand in which chart, and in what order: rows of modes, of sizes, of all-to-all, of memory."""

from collections.abc import Callable, Sequence

from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, is_measured
from epbench.report.tables import peak_bytes

__all__ = ["Rows", "mode_pairs", "mode_rows", "size_rows", "weighed"]

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


def size_rows(compared: Compared) -> Rows:
    """Layouts and modes that were measured with two model sizes or more."""
    naming = compared.naming

    def name(cell: CellResult) -> str:
        return ", ".join(filter(None, (naming.arm(cell), naming.conditions(cell))))

    cells = [cell for cell in compared.view.cells if is_measured(cell)]
    return [row for row in _by(name, cells) if len({naming.size(cell) for cell in row[1]}) > 1]


def weighed(compared: Compared, cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells with both a peak of memory and a throughput."""
    return [cell for cell in cells if peak_bytes(cell, compared) is not None and cell.tokens_per_s_per_rank is not None]


def _by(name: Callable[[CellResult], str], cells: Sequence[CellResult]) -> Rows:
    found: dict[str, list[CellResult]] = {}
    for cell in cells:
        found.setdefault(name(cell), []).append(cell)
    return [(key, tuple(members)) for key, members in found.items()]
