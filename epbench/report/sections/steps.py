"""Where the step goes: exclusive parts of the wall time, per layout and per rank, and what the device did in it."""

from collections.abc import Iterable, Sequence

from epbench.records import Breakdown, CellResult
from epbench.report.comparison import Compared, Group, step_interval
from epbench.report.figures.steps import device_work_figure, kernels_figure, parts_figure
from epbench.report.phases import phases_table
from epbench.report.sections.model import Chart, Section, TitledTable, Variant
from epbench.report.sections.steps_tables import (
    device_work,
    device_work_table,
    kernels_table,
    parts_table,
    rank_parts_table,
)
from epbench.report.step_parts import has_parts, traced_s
from epbench.report.text import join, percent

__all__ = ["steps_section"]

_PARTS = (
    "The parts are exclusive and sum to the traced step, which as a rule is longer than the timed one: the tracer "
    "costs the host time. Overlapped: computes while it communicates. Exposed: communicates, or waits for another rank "
    "in a collective, and computes nothing. Idle: nothing runs, because the host had launched nothing (host) or what "
    "it had launched waited for another stream (kernel)."
)
_CRITICAL = "Of the critical rank, the one with most device work; the diamond is the timed step, with its interval."
_KERNELS = (
    "Time in kernels of each kind, streams added up, so what overlaps counts twice; communication contains the waits "
    "for other ranks. On a CPU, operators stand for kernels."
)
_DEVICE_WORK = (
    "Device work: kernels that do not communicate, and transfers without the waits for other ranks, on the critical "
    "rank of the traced steps. What lies between it and the step is waiting, host time and what tracing changes."
)
_PHASES = {"measure": "Where the time of a measured launch goes", "verify": "Where the time of a verification goes"}
_PHASES_NOTE = "Wall seconds, the median over the launches of a cell; the last row is the share of all launches."


def steps_section(compared: Compared) -> Section:
    """Parts, kernels and device work of every cell that was traced, and the phases of the launches around the steps."""
    key, title = "breakdown", "Where the step goes"  # "steps" is the chart of step times
    made = (_step_parts(compared), _per_rank(compared), _kernels(compared), _device_work(compared))
    charts = tuple(chart for chart in made if chart is not None)
    missing = "" if charts else "No cell has a trace of its steps."
    return Section(key, title, charts, missing=missing, tables=_phases(compared))


def _by_step(cells: Iterable[CellResult]) -> list[CellResult]:
    return sorted(cells, key=lambda cell: cell.step_s or traced_s(cell.breakdown_s) or 0.0)


def _step_parts(compared: Compared) -> Chart | None:
    variants = tuple(
        _parts_variant(compared, group, _by_step(cells))
        for group in compared.groups
        if (cells := [cell for cell in group.cells if has_parts(cell)])
    )
    return Chart("step-parts", "Parts of the step", f"{_CRITICAL} {_PARTS}", variants) if variants else None


def _parts_variant(compared: Compared, group: Group, cells: Sequence[CellResult]) -> Variant:
    rows = [(compared.naming.arm(cell), cell.breakdown_s) for cell in cells]
    timed = [step_interval(cell) for cell in cells]
    figure = parts_figure(rows, label="Parts of the traced step of each cell", timed=timed)
    return Variant(group.work, figure, parts_table(compared, cells))


def _per_rank(compared: Compared) -> Chart | None:
    """None where no cell has the parts of two ranks or more."""
    cells = [cell for cell in compared.measured if len(_ranks(cell)) > 1]
    variants = tuple(_rank_variant(compared, cell) for cell in cells)
    if not variants:
        return None
    return Chart("step-parts-per-rank", "Parts of the step on each rank", _PARTS, variants, picker="cell")


def _ranks(cell: CellResult) -> list[Breakdown]:
    return [parts for parts in cell.breakdown_per_rank_s if traced_s(parts) is not None]


def _rank_variant(compared: Compared, cell: CellResult) -> Variant:
    critical = cell.breakdown_s.rank
    names = [f"rank {parts.rank}{', critical' if parts.rank == critical else ''}" for parts in _ranks(cell)]
    figure = parts_figure(
        list(zip(names, _ranks(cell), strict=True)), label="Parts of the traced step of each rank of a cell"
    )
    return Variant(compared.naming.full(cell), figure, rank_parts_table(_ranks(cell), critical))


def _kernels(compared: Compared) -> Chart | None:
    variants = tuple(
        _kernels_variant(compared, group, _by_step(cells))
        for group in compared.groups
        if (cells := [cell for cell in group.measured if cell.kernels_s])
    )
    return Chart("kernels", "Kernels by kind", _KERNELS, variants) if variants else None


def _kernels_variant(compared: Compared, group: Group, cells: Sequence[CellResult]) -> Variant:
    figure = kernels_figure([(compared.naming.arm(cell), cell.kernels_s) for cell in cells])
    unknown = [cell for cell in cells if (cell.unclassified_share or 0.0) > 0.01]
    names = [f"{compared.naming.arm(cell)} ({percent(cell.unclassified_share)})" for cell in unknown]
    note = f"More than 1 % of the kernel time is of no known kind: {join(names)}." if names else ""
    return Variant(group.work, figure, kernels_table(compared, cells), note)


def _device_work(compared: Compared) -> Chart | None:
    variants = tuple(
        _device_work_variant(compared, group, _by_step(cells))
        for group in compared.groups
        if (cells := [cell for cell in group.measured if cell.device_work_s is not None])
    )
    return Chart("device-work", "Device work beside the step", _DEVICE_WORK, variants) if variants else None


def _device_work_variant(compared: Compared, group: Group, cells: Sequence[CellResult]) -> Variant:
    rows = [(compared.naming.arm(cell), device_work(cell), step_interval(cell)) for cell in cells]
    return Variant(group.work, device_work_figure(rows), device_work_table(compared, cells))


def _phases(compared: Compared) -> tuple[TitledTable, ...]:
    found = ((title, phases_table(compared, kind)) for kind, title in _PHASES.items())
    return tuple(TitledTable(title, table, _PHASES_NOTE) for title, table in found if table is not None)
