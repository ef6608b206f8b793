"""What makes a number doubtful or absent: failures, scatter, unknown kernels, impossible bandwidths, throttling."""

from collections import Counter
from collections.abc import Iterator

from epbench.analysis.comm import above_ceiling
from epbench.records import CellResult
from epbench.report.comparison import Compared, launch_spread, step_launches
from epbench.report.rules.model import DOUBT, FAILURE, Finding, listed, share
from epbench.report.text import clean

__all__ = ["failed", "faster_than_wires", "held_back", "not_run", "scattered", "unclassified"]

_FAILED = ("wrong", "crashed", "timeout", "unstable", "interrupted")  # the worst first; oom has a rule of its own
_UNCLASSIFIED, _SCATTER, _HELD_BACK = 0.01, 0.05, 0.2
_NOT_HELD_BACK = {"idle", "none"}


def failed(compared: Compared) -> Finding | None:
    """Cells that ended without a number to rank, memory apart."""
    cells = [cell for cell in compared.view.cells if cell.outcome in _FAILED]
    if not cells:
        return None
    cells.sort(key=lambda cell: _FAILED.index(str(cell.outcome)))
    names = [f"{compared.naming.full(cell)} ({cell.outcome})" for cell in cells]
    is_doubt = any(cell.outcome == "wrong" and not cell.expected for cell in cells)
    return Finding(f"No number to rank: {listed(names)}.", "cells", DOUBT if is_doubt else FAILURE)


def not_run(compared: Compared) -> Finding | None:
    """How much of the scenario waits to be run."""
    waiting = sum(cell.outcome is None for cell in compared.view.cells)
    if not waiting:
        return None
    count = len(compared.view.cells)
    return Finding(f"{waiting} of {count} cells have not been run.", "cells", FAILURE * waiting / count)


def faster_than_wires(compared: Compared) -> Finding | None:
    """Collectives whose bandwidth in the step no wire could give: their bytes or their times are wrong."""
    found = {cell.cell: sentences for cell in compared.measured if (sentences := above_ceiling(cell.collectives))}
    if not found:
        return None
    cell = next(cell for cell in compared.measured if cell.cell in found)
    more = sum(map(len, found.values())) - 1
    others = f"; {more} more kinds of calls likewise" if more else ""
    text = f"In {compared.naming.full(cell)} {clean(found[cell.cell][0], 300)}{others}."
    return Finding(text, "in-step-vs-alone", DOUBT)


def unclassified(compared: Compared) -> Finding | None:
    """The cell with most kernel time of no known kind."""
    found = [(part, cell) for cell in compared.measured if (part := cell.unclassified_share)]
    part, cell = max(found, key=lambda one: one[0], default=(0.0, None))
    if cell is None or part <= _UNCLASSIFIED:
        return None
    text = f"{share(part)} of the kernel time of {compared.naming.full(cell)} is of no known kind"
    return Finding(f"{text}, so its split by kind is that uncertain.", "kernels", part)


def scattered(compared: Compared) -> Finding | None:
    """The cell whose launches differ most, which nothing about it can be told more exactly than."""
    found = [(part, cell) for cell in compared.measured if (part := launch_spread(cell))]
    part, cell = max(found, key=lambda one: one[0], default=(0.0, None))
    if cell is None or part < _SCATTER:
        return None
    text = f"The {len(step_launches(cell))} launches of {compared.naming.full(cell)} lie {share(part)} apart"
    return Finding(f"{text}, the most of all cells.", "noise", part)


def held_back(compared: Compared) -> Finding | None:
    """Clocks that the driver held back while steps were timed: by power, heat or a limit."""
    shares = [found for cell in compared.measured for found in _reasons(cell)]
    if not shares:
        return None
    part, name, cell = max(shares, key=lambda one: one[0])
    if part < _HELD_BACK:
        return None
    kinds = Counter(reason for found, reason, _ in shares if found >= _HELD_BACK)
    others = sorted(clean(reason, 40) for reason in kinds if reason != name)
    text = f"GPU clocks were held back by {clean(name, 40)} in {share(part)} of the samples of"
    also = f" (elsewhere by {listed(others)} too)" if others else ""
    return Finding(f"{text} {compared.naming.full(cell)}{also}.", "noise", 0.1 * part)


def _reasons(cell: CellResult) -> Iterator[tuple[float, str, CellResult]]:
    """(share of the samples, reason, cell), the worst GPU of each valid launch."""
    for launch in cell.launch_values:
        for gpu in launch.telemetry.gpus if launch.valid and launch.telemetry else ():
            for name, part in (gpu.clock_reasons or {}).items():
                if name.lower() not in _NOT_HELD_BACK:
                    yield part, name, cell
