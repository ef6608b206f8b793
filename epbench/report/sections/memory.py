"""Memory: what the worst rank's peak is made of, one step on a timeline, and what was predicted."""

from collections.abc import Iterable, Sequence

from epbench.records import CellResult
from epbench.report.comparison import Compared, Group
from epbench.report.figures.memory import (
    PARTS,
    PeakRow,
    parts_figure,
    predicted_figure,
    thinned,
    timeline_figure,
)
from epbench.report.figures.units import Unit
from epbench.report.quantities import reserved_at_peak, reserved_bytes
from epbench.report.sections.memory_tables import moments_table, parts_table, predicted_table
from epbench.report.sections.model import Chart, Section, Variant
from epbench.report.text import clean, gib, join, percent

__all__ = ["memory_section"]

_MOST_CELLS = 60  # rows of more cells than these cannot be read as one chart; the table has them all


def memory_section(compared: Compared) -> Section:
    """Parts of the peak and predictions group by group, the timeline cell by cell."""
    key, title = "memory", "Memory"
    largest = max((cell.peak_allocated_bytes or 0 for cell in compared.measured), default=0)
    if not largest:
        return Section(key, title, missing="No measured cell has a peak of memory.")
    unit = Unit.of(largest)
    charts = (_parts(compared, unit), _timelines(compared, unit), _predictions(compared, unit))
    return Section(key, title, tuple(chart for chart in charts if chart), note=_capacity(compared))


def _capacity(compared: Compared) -> str:
    total = compared.view.environment.device_memory_bytes
    if total is not None:
        return f"A {compared.rank_word} has {gib(total)} GiB."
    return "On CPU, memory is what a step allocates." if compared.view.environment.device == "cpu" else ""


# ---------------------------------------------------------------- at the peak


def _parts(compared: Compared, unit: Unit) -> Chart:
    caption = "The rank that allocates most of each cell, at that peak; the cell that needs least first."
    if any(cell.peak_reserved_bytes for cell in compared.measured):
        caption += (
            " Hatched: what the allocator holds from the device beyond that, cached or in pieces too small to use; "
            "allocated and reserved memory need not peak at the same moment."
        )
    variants = tuple(found for group in compared.groups if (found := _parts_of(compared, group, unit)))
    return Chart("memory-parts", "What the peak is made of", caption, variants)


def _parts_of(compared: Compared, group: Group, unit: Unit) -> Variant | None:
    cells = [cell for cell in group.measured if cell.peak_allocated_bytes]
    if not cells:
        return None
    cells.sort(key=lambda cell: peak_row(compared, cell).total)
    shown = [peak_row(compared, cell) for cell in cells[:_MOST_CELLS]]
    figure = parts_figure(shown, unit, capacity=compared.view.environment.device_memory_bytes)
    notes = (
        _cut(len(shown), len(cells)),
        _reserve_more(compared, cells),
        _residents(cells),
        _out_of_memory(compared, group),
        _doubts(compared, cells),
    )
    note = " ".join(filter(None, notes))
    return Variant(group.work, figure, parts_table(compared, cells, unit), note)


def peak_row(compared: Compared, cell: CellResult) -> PeakRow:
    """A cell that has a peak, as a row of the chart."""
    assert cell.peak_allocated_bytes is not None, f"{cell.cell} has no peak of memory"
    known = {part: getattr(cell.memory_bytes, part) for part in PARTS}
    return PeakRow(
        name=compared.naming.arm(cell),
        parts={part: count for part, count in known.items() if count is not None},
        allocated=cell.peak_allocated_bytes,
        reserved=reserved_at_peak(cell),
    )


def _cut(shown: int, total: int) -> str:
    return f"The {shown} smallest of {total} cells are drawn; the table has all." if shown < total else ""


def _reserve_more(compared: Compared, cells: Iterable[CellResult]) -> str:
    """Cells where a rank that is not drawn takes more from its device than the one that is."""
    pairs = ((cell, reserved_bytes(cell) or 0, reserved_at_peak(cell) or 0) for cell in cells)
    names = [f"{compared.naming.arm(cell)} ({gib(most)} GiB)" for cell, most, drawn in pairs if gib(most) != gib(drawn)]
    return f"Another rank than the one that is drawn reserves most: {join(names)}." if names else ""


def _residents(cells: Iterable[CellResult]) -> str:
    if any(cell.memory.parts_of == "residents" for cell in cells):
        return "Where a stack does not name its tensors, its parts are told apart between steps only."
    return ""


def _out_of_memory(compared: Compared, group: Group) -> str:
    """Cells of the group that had too little memory to have a peak."""
    names = [_asked(compared, cell) for cell in group.cells if cell.outcome == "oom"]
    return f"Out of memory: {join(names)}." if names else ""


def _asked(compared: Compared, cell: CellResult) -> str:
    asked = f" (asked for {gib(cell.requested_bytes)} GiB more)" if cell.requested_bytes else ""
    return compared.naming.arm(cell) + asked


def _doubts(compared: Compared, cells: Iterable[CellResult]) -> str:
    """Where two ways of counting disagreed."""
    found = [f"{compared.naming.arm(cell)}: {clean(cell.memory.note, 300)}" for cell in cells if cell.memory.note]
    return f"{'; '.join(found)}." if found else ""


# ---------------------------------------------------------------- over one step


def _timelines(compared: Compared, unit: Unit) -> Chart | None:
    variants = tuple(_timeline(compared, cell, unit) for cell in compared.measured if _has_timeline(compared, cell))
    if not variants:
        return None
    caption = (
        "Allocated memory of the rank with the highest peak over one recorded step, which is slower than a timed one: "
        "never below nor above the band, which is exact at every width. Shaded: backward. "
        "epbench.load(RUN).memory has every point."
    )
    return Chart("memory-timeline", "One step on a timeline", caption, variants, picker="cell")


def _has_timeline(compared: Compared, cell: CellResult) -> bool:
    timeline = compared.data.timelines.get(cell.cell)
    return timeline is not None and bool(timeline.time_s)


def _timeline(compared: Compared, cell: CellResult, unit: Unit) -> Variant:
    timeline = compared.data.timelines[cell.cell]
    capacity = compared.view.environment.device_memory_bytes
    figure = timeline_figure(timeline, unit, phase=cell.memory.peak_phase, capacity=capacity)
    highest = max(timeline.high_bytes)
    share = f"; its peak is {percent(highest / capacity)} of the capacity" if capacity else ""
    note = f"Rank {timeline.rank}{share}."
    return Variant(compared.naming.full(cell), figure, moments_table(timeline, thinned(timeline), unit), note)


# ---------------------------------------------------------------- predicted


def _predictions(compared: Compared, unit: Unit) -> Chart | None:
    variants = tuple(found for group in compared.groups if (found := _predicted_of(compared, group, unit)))
    if not variants:
        return None
    caption = "What the planner said before the run, beside the allocated peak of the worst rank."
    return Chart("predicted-memory", "Predicted and measured peak", caption, variants)


def _predicted_of(compared: Compared, group: Group, unit: Unit) -> Variant | None:
    rows = [
        (compared.naming.arm(cell), cell.predicted.peak_bytes, cell.peak_allocated_bytes)
        for cell in group.measured
        if cell.predicted.peak_bytes is not None and cell.peak_allocated_bytes
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: row[2])
    return Variant(group.work, predicted_figure(rows, unit), predicted_table(rows, unit), _worst(rows))


def _worst(rows: Sequence[tuple[str, int, int]]) -> str:
    name, predicted, measured = max(rows, key=lambda row: abs(row[1] / row[2] - 1))
    return f"Furthest off: {name}, by {100 * (predicted / measured - 1):+.1f} % of what was measured."
