"""What memory decides: whether the fastest layout is safe, what a smaller one costs, and what did not fit."""

from collections.abc import Sequence

from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, speed_ratio
from epbench.report.quantities import peak_bytes
from epbench.report.rules.model import FAILURE, Finding, best_of, fastest_cells, listed, ranked, share
from epbench.report.text import gib, slow_down

__all__ = ["fragmented", "near_capacity", "out_of_memory", "retried_allocations", "smaller"]

_NEAR = 0.9  # of the device's memory
_LESS, _SLOWER = 0.15, 0.2  # memory that a smaller layout must save, and speed that it may cost
_FRAGMENTED = 0.1  # of what is reserved


def near_capacity(compared: Compared) -> Finding | None:
    """The fastest cell of a group, where it leaves little of the device."""
    total = compared.view.environment.device_memory_bytes
    peaks = [(peak, cell) for cell in fastest_cells(compared) if (peak := peak_bytes(cell, compared))]
    most, cell = max(peaks, key=lambda one: one[0], default=(0, None))
    if cell is None or not total or most < _NEAR * total:
        return None
    text = f"{compared.naming.full(cell)}, the fastest, peaks at {gib(most)} of {gib(total)} GiB"
    return Finding(
        f"{text}: {gib(total - most)} GiB are left for longer sequences and for chance.", "frontier", FAILURE
    )


def smaller(compared: Compared) -> Finding | None:
    """The fastest cell that needs much less memory than the fastest of all, and what it costs in speed."""
    found = [one for group in compared.groups if (one := _smaller(compared, group)) is not None]
    return max(found, key=lambda one: one.weight, default=None)


def _smaller(compared: Compared, group: Group) -> Finding | None:
    best = best_of(group)
    most = peak_bytes(best[0], compared) if best else None
    if not most:
        return None
    peaks = {cell.cell: peak for cell in ranked(group) if (peak := peak_bytes(cell, compared))}
    fitting = [cell for cell in ranked(group) if peaks.get(cell.cell, most) <= (1 - _LESS) * most]
    cell = min(fitting, key=lambda one: one.step_s or 0.0, default=None)
    ratio = speed_ratio(cell, best[0]) if cell is not None else None
    if cell is None or ratio is None or ratio.value < 1 - _SLOWER:
        return None
    cost = f"is {slow_down(ratio)} slower" if ratio.excludes(1.0) else "cannot be told from it in speed"
    needs = f"needs {gib(peaks[cell.cell])} GiB instead of the {gib(most)} of {compared.naming.arm(best[0])}"
    saved = 1 - peaks[cell.cell] / most
    return Finding(f"{compared.naming.full(cell)} {needs} and {cost}.", "frontier", saved * FAILURE)


def out_of_memory(compared: Compared) -> Finding | None:
    """Cells that did not fit, with what the allocator was asked for where it said so."""
    cells = [cell for cell in compared.view.cells if cell.outcome == "oom"]
    if not cells:
        return None
    names = [compared.naming.full(cell) + _asked(cell) for cell in cells]
    return Finding(f"Out of memory: {listed(names)}.", "frontier", FAILURE * len(cells) / len(compared.view.cells))


def _asked(cell: CellResult) -> str:
    return f" (asked for another {gib(cell.requested_bytes)} GiB)" if cell.requested_bytes else ""


def fragmented(compared: Compared) -> Finding | None:
    """The cell with most memory that is reserved, free, and in pieces too small to give back."""
    found = [(part, cell) for cell in compared.measured if (part := cell.memory.fragmentation)]
    part, cell = max(found, key=lambda one: one[0], default=(0.0, None))
    if cell is None or part < _FRAGMENTED:
        return None
    text = f"At the peak of {compared.naming.full(cell)} {share(part)} of what is reserved is free and in pieces"
    return Finding(f"{text} that cannot be returned.", "memory-parts", part * FAILURE)


def retried_allocations(compared: Compared) -> Finding | None:
    """Cells whose allocator ran dry and began anew, which makes steps slower than the layout is."""
    cells: Sequence[CellResult] = [cell for cell in compared.measured if cell.memory.alloc_retries]
    if not cells:
        return None
    names = [f"{compared.naming.full(cell)} ({cell.memory.alloc_retries})" for cell in cells]
    text = f"Allocations had to be retried, which slows steps: {listed(names)}."
    return Finding(text, "memory-parts", FAILURE)
