"""Noise and validity: how far launches scatter, whether the machine was fit, and whether losses agree."""

from collections.abc import Mapping, Sequence

from epbench.analysis.noise import ALPHA, METRICS, MIN_DEGREES, POWER, MachineStart, noise_of
from epbench.analysis.work import loss_bound
from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, launch_spread, step_launches
from epbench.report.figures.validity import noise_figure, numbered_starts
from epbench.report.machine_tables import canary_table, checks_table, gpu_table, warnings_table
from epbench.report.noise_table import ARMS, noise_row, noise_titles
from epbench.report.sections.model import Chart, Section, TitledTable, Variant
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, error, join, number, percent

__all__ = ["validity_section"]

_CAPTION = (
    "Every launch is a fresh process group, drawn at its distance from the median of its cell's valid launches. Hollow "
    "launches are invalid and count for nothing; the reason is in the tooltip and in the details of the cell's row. A "
    "machine start is a set of hosts and GPUs; launches of one start are likely to be closer to each other. The table "
    "has standard deviations: of the steps within a launch, between launches of one start, and between starts; "
    f"'finds at K' is the slowdown that K launches an arm, interleaved, find in {100 * POWER:.0f} % of comparisons, at "
    f"{100 * ALPHA:.0f} % false alarms; a dash where launches less machine starts are fewer than "
    f"{MIN_DEGREES}, for then the true scatter between launches may be more than 3 times the one that is shown."
)
_CANARY = (
    "Three fixed pieces of work, apart from any cell, before the first and after the last launch of a sitting: medians "
    "with quartiles. Changed: by more than 10 %, with quartiles apart."
)
_GPUS = (
    "Over the timed windows of all valid launches: the median, and the lowest and highest sample. Held back: why the "
    "driver held the clock back, with the largest share of a launch's samples."
)


def validity_section(compared: Compared) -> Section:
    """Launches around their medians, then tables of the machine and of the losses, each where there is any."""
    key, title = "validity", "Noise and validity"
    starts = numbered_starts(compared.view.cells)
    variants = tuple(found for group in compared.groups if (found := _variant(compared, group, starts)))
    tables = tuple(filter(None, (_invalid(compared), *_machine(compared), _losses(compared))))
    if not variants:
        missing = f"No cell has two launches with a step time, so nothing tells their noise; --launches {ARMS[1]} does."
        return Section(key, title, missing=missing, tables=(*_within_only(compared), *tables))
    chart = Chart("noise", "Launches around their median", _CAPTION, variants)
    return Section(key, title, (chart,), note=_summary(compared, starts), tables=tables)


def _variant(compared: Compared, group: Group, starts: Mapping[MachineStart, int]) -> Variant | None:
    cells = [cell for cell in group.cells if step_launches(cell)]
    if not any(_count(cell) > 1 for cell in cells):
        return None
    rows = [(compared.naming.arm(cell), cell) for cell in cells]
    alone = [name for name, cell in rows if _count(cell) == 1]
    note = f"One launch only, which says nothing of noise: {join(alone)}." if alone else ""
    return Variant(group.work, noise_figure(rows, starts), _noise_table(rows), note)


def _count(cell: CellResult) -> int:
    return sum(one.step_s is not None for one in cell.launch_values)


def _within_only(compared: Compared) -> tuple[TitledTable, ...]:
    """What single launches tell: how their steps scatter."""
    rows = [(compared.naming.full(cell), cell) for cell in compared.view.cells if step_launches(cell)]
    return (TitledTable("Steps within a launch", _noise_table(rows)),) if rows else ()


def _noise_table(named: Sequence[tuple[str, CellResult]]) -> Table:
    """A row for each cell and metric, with the launches that count and those that do not."""
    titles = (*noise_titles(), "invalid launches", "spread of the step")
    rows = [
        (*noise_row(name, noise), *_counts(cell))
        for name, cell in named
        for metric in METRICS
        if (noise := noise_of([cell], metric)) is not None
    ]
    return Table.of(titles, rows, texts=2)


def _counts(cell: CellResult) -> tuple[Value, Value]:
    invalid, spread = sum(not one.valid for one in cell.launch_values), launch_spread(cell)
    return Value(str(invalid), invalid), Value(percent(spread), spread)


def _summary(compared: Compared, starts: Mapping[MachineStart, int]) -> str:
    launches = [one for cell in compared.view.cells for one in cell.launch_values]
    invalid = sum(not one.valid for one in launches)
    counted = f"{len(launches)} launches of all cells, {invalid or 'none'} of them invalid"
    count = max(starts.values(), default=0)
    return f"{counted}, on {count} machine start{'s' if count > 1 else ''}." if count else f"{counted}."


def _invalid(compared: Compared) -> TitledTable | None:
    """Every launch that does not count, with its reason."""
    rows = [
        (
            Value(compared.naming.full(cell)),
            Value(clean(launch.invalid_reason or "no reason recorded", 400)),
            Value(str(launch.index), launch.index),
            Value(number(None if launch.step_s is None else 1e3 * launch.step_s, 4), launch.step_s),
        )
        for cell in compared.view.cells
        for launch in cell.launch_values
        if not launch.valid
    ]
    titles = ("cell", "why it is invalid", "launch", "step, ms")
    return TitledTable("Invalid launches", Table.of(titles, rows, texts=2)) if rows else None


def _machine(compared: Compared) -> tuple[TitledTable | None, ...]:
    """What was found wrong, the same work before and after, and what GPUs did while they were timed."""
    view = compared.view
    found = (
        ("Warnings", warnings_table(view), ""),
        ("Checks of the machine that were not ok", checks_table(view), ""),
        ("The same work before and after (canary)", canary_table(view), _CANARY),
        ("GPUs while cells were timed", gpu_table(view), _GPUS),
    )
    return tuple(TitledTable(title, table, note) if table else None for title, table, note in found)


def _losses(compared: Compared) -> TitledTable | None:
    """How far the first losses of each cell are from those of the others that do the same work."""
    cells = [cell for cell in compared.view.cells if cell.verify.losses_error is not None]
    if not cells:
        return None
    titles = ("cell", "first losses", "difference from the others", "allowed")
    rows = [
        (
            Value(compared.naming.full(cell)),
            Value(", ".join(number(loss, 6) for loss in cell.loss) or UNKNOWN),
            Value(error(cell.verify.losses_error), cell.verify.losses_error),
            _allowed(cell),
        )
        for cell in cells
    ]
    note = (
        "Weights and tokens depend on the seed only, so cells that do the same work have the same first losses at full "
        "size, up to the rounding of their dtype: the largest relative difference from the median cell."
    )
    return TitledTable("Agreement of losses", Table.of(titles, rows, texts=2), note)


def _allowed(cell: CellResult) -> Value:
    bound = loss_bound(cell) if "compute_dtype" in cell.train else None
    return Value(error(bound), bound)
