"""Communication: what collectives cost in the step, what the same bytes cost alone, and over which axis they go."""

from collections.abc import Iterable, Sequence

from epbench.records import CellResult, CollectiveRow
from epbench.report.comparison import Compared, Group
from epbench.report.figures.communication import (
    KINDS,
    MESH_AXES,
    OTHER,
    Looks,
    axis_bytes_figure,
    beside_alone_figure,
    collectives_figure,
    kind_of,
)
from epbench.report.sections.communication_tables import (
    axis_bytes,
    axis_table,
    beside_alone_table,
    collectives_table,
)
from epbench.report.sections.model import Chart, Section, Variant
from epbench.report.sections.sweep import fits_table, sweep_charts
from epbench.report.text import clean, join

__all__ = ["communication_section"]

_MOST_CELLS = 24  # rows of more cells than these cannot be read as one chart; the table has them all


def communication_section(compared: Compared) -> Section:
    """Collectives in the step, each beside isolation, the sweep itself, and bytes by axis."""
    key, title = "communication", "Communication"
    charts = (_collectives(compared), _beside_alone(compared), *sweep_charts(compared), _bytes_per_axis(compared))
    shown = tuple(chart for chart in charts if chart is not None)
    if not shown:
        return Section(key, title, missing=_missing(compared))
    note = " ".join(filter(None, (_how_to_sweep(compared), _unsummed(compared))))
    return Section(key, title, shown, note=note, tables=fits_table(compared))


def _missing(compared: Compared) -> str:
    if compared.measured and all(cell.world_size == 1 for cell in compared.measured):
        return "Every measured cell has one rank, so there is no communication."
    return "No measured cell has a trace of its collectives."


def _how_to_sweep(compared: Compared) -> str:
    """What to set where nothing was measured alone."""
    if any(row.isolated_s is not None for cell in compared.measured for row in cell.collectives):
        return ""
    return "No collective was measured alone to stand beside these: set comm = true under [measure]."


def _unsummed(compared: Compared) -> str:
    """What to say of records from before bytes were summed over calls."""
    cells = [cell for cell in compared.measured if cell.collectives]
    unknown = sum(not axis_bytes(cell) for cell in cells)
    if not unknown:
        return ""
    whose = "this run" if unknown == len(cells) else f"{unknown} of {len(cells)} cells"
    return f"Bytes over each axis are not known of {whose}: the record is from before the calls of a step were summed."


# ---------------------------------------------------------------- in the step


def _collectives(compared: Compared) -> Chart | None:
    cells = [cell for cell in compared.measured if cell.collectives]
    times = ((kind_of(row), row.transfer_s + row.wait_s) for cell in cells for row in cell.collectives)
    looks = Looks.of(times, KINDS)
    variants = tuple(found for group in compared.groups if (found := _of_group(compared, group, looks)))
    if not variants:
        return None
    caption = (
        "Time a step in collectives, from the torch profiler's trace pass; cells by their step time, the fastest "
        "first. Solid: transfer, after the last rank of the group arrived. Hatched, in the same order: what the rank "
        "that waits longest waits for it, which is other ranks' delay and not the network's."
    )
    if any(row.exposed_s is not None for cell in cells for row in cell.collectives):
        caption += (
            " The diamond is exposed transfer: what of the solid part runs with no other kernel beside it, each "
            "purpose on its worst rank."
        )
    return Chart("collectives", "Collectives in the step", caption, variants)


def _of_group(compared: Compared, group: Group, looks: Looks) -> Variant | None:
    cells = sorted((cell for cell in group.measured if cell.collectives), key=lambda cell: cell.step_s or 0.0)
    if not cells:
        return None
    shown = cells[:_MOST_CELLS]
    note = " ".join(part for part in (_folded(shown, looks), _cut(len(shown), len(cells))) if part)
    return Variant(group.work, collectives_figure(compared, shown, looks), collectives_table(compared, cells), note)


def _folded(cells: Iterable[CellResult], looks: Looks) -> str:
    """Which kinds the last series is made of."""
    present = {kind_of(row) for cell in cells for row in cell.collectives}
    names = [clean(name, 60) for name in looks.folded if name in present]
    return f"{OTHER.capitalize()}: {join(names)}." if names else ""


def _cut(shown: int, total: int) -> str:
    return f"The {shown} fastest of {total} cells are drawn; the table has all." if shown < total else ""


# ---------------------------------------------------------------- beside the same bytes alone


def _beside_alone(compared: Compared) -> Chart | None:
    cells = [cell for cell in compared.measured if any(row.isolated_s for row in cell.collectives)]
    if not cells:
        return None
    caption = (
        "Of each kind of call the median transfer in the step (its bar ends at the 95th percentile) and what the "
        "median call's bytes take on the same ranks with nothing else running, straight lines between the sizes of the "
        "sweep. Far apart: something else uses memory or wires at that moment, or the bytes are split unevenly. The "
        "table has what a step loses by it only where its calls are of about one size."
    )
    variants = tuple(_of_cell(compared, cell) for cell in cells)
    return Chart("in-step-vs-alone", "In the step and alone", caption, variants, picker="cell")


def _of_cell(compared: Compared, cell: CellResult) -> Variant:
    known = [row for row in cell.collectives if row.isolated_s]
    absent = [row for row in cell.collectives if not row.isolated_s]
    label = compared.naming.full(cell)
    return Variant(label, beside_alone_figure(known), beside_alone_table(cell.collectives), _unswept(absent))


def _unswept(rows: Sequence[CollectiveRow]) -> str:
    names = list(dict.fromkeys(clean(kind_of(row), 60) for row in rows))
    return f"Outside of the sweep: {join(names)}." if names else ""


# ---------------------------------------------------------------- by axis


def _bytes_per_axis(compared: Compared) -> Chart | None:
    cells = [cell for cell in compared.measured if axis_bytes(cell)]
    looks = Looks.of((size for cell in cells for size in axis_bytes(cell).items()), MESH_AXES)
    variants = tuple(found for group in compared.groups if (found := _axes_of_group(compared, group, looks)))
    if not variants:
        return None
    caption = (
        "Buffers of all calls of a step by mesh axis, of each kind of call on the rank that has most, its own part "
        "included; what of it crosses the wires is in the table. Cells of one layout that agree within 1 % share a bar."
    )
    return Chart("bytes-per-axis", "Bytes over each axis", caption, variants)


def _axes_of_group(compared: Compared, group: Group, looks: Looks) -> Variant | None:
    rows = _by_layout(compared, [cell for cell in group.measured if axis_bytes(cell)])
    if not rows:
        return None
    rows.sort(key=lambda row: sum(axis_bytes(row[1]).values()))
    figure = axis_bytes_figure([(name, axis_bytes(cell)) for name, cell in rows[:_MOST_CELLS]], looks)
    return Variant(group.work, figure, axis_table(rows))


def _by_layout(compared: Compared, cells: Iterable[CellResult]) -> list[tuple[str, CellResult]]:
    """The first cell of each layout, under the layout's name; of all of them where they do not agree."""
    by_layout: dict[str, list[CellResult]] = {}
    for cell in cells:
        by_layout.setdefault(compared.naming.layout(cell), []).append(cell)
    found: list[tuple[str, CellResult]] = []
    for layout, members in by_layout.items():
        if all(_agree(axis_bytes(members[0]), axis_bytes(other)) for other in members[1:]):
            found.append((layout, members[0]))
        else:
            found += [(compared.naming.arm(cell), cell) for cell in members]
    return found


def _agree(first: dict[str, float], second: dict[str, float]) -> bool:
    if first.keys() != second.keys():
        return False
    return all(abs(first[axis] - second[axis]) <= 0.01 * max(first[axis], second[axis]) for axis in first)
