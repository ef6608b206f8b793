"""The sections of a report after the table of cells: charts, their tables, or why there are none.

A section never shows an empty chart: where nothing was measured, it says what is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, pareto
from epbench.report.figures import (
    Figure,
    all_to_all_figure,
    memory_figure,
    sizes_figure,
    speed_up_figure,
    steps_figure,
)
from epbench.report.routing_pairs import routings_table
from epbench.report.selection import communicating, mode_pairs, mode_rows, size_rows, weighed
from epbench.report.tables import (
    Table,
    collectives_table,
    memory_table,
    modes_table,
    peak_bytes,
    sizes_table,
)
from epbench.report.text import gib, join
from epbench.report.verdict import NOT_RUN

__all__ = ["Chart", "Section", "sections_of"]

_INTERVALS = "Bars are 95 % intervals over launches; a point without a bar has fewer than three valid launches."


@dataclass(frozen=True)
class Chart:
    """A figure, the sentence under it, and the table of the same numbers."""

    figure: Figure
    caption: str
    table: Table | None = None
    work: str = ""  # which cells, where one section has a chart for each group of comparable cells


@dataclass(frozen=True)
class Section:
    """One heading of the report; ``missing`` says why it has no chart. ``table`` is shown without one."""

    key: str
    title: str
    charts: tuple[Chart, ...] = ()
    missing: str = ""
    note: str = ""
    table: Table | None = None


def sections_of(compared: Compared) -> tuple[Section, ...]:
    """All sections, in the page's order; that of routings only where there is more than one to compare."""
    makers: tuple[Callable[[Compared], Section | None], ...] = (_modes, _all_to_all, _routings, _memory, _sizes)
    return tuple(section for make in makers if (section := make(compared)))


def _modes(compared: Compared) -> Section:
    rows = mode_rows(compared)
    if not rows:
        return Section("modes", "Eager and compiled", missing="No cell has a step time.")
    pairs = mode_pairs(rows)
    steps = Chart(steps_figure(rows), f"Step time, lower is better. {_INTERVALS}", modes_table(rows))
    if not pairs:
        note = "No layout was measured both eager and compiled, so there is no speed-up to show."
        return Section("modes", "Eager and compiled", (steps,), note=note)
    caption = "Speed of compiled over eager; an interval that contains 1 is no difference."
    ratio = Chart(speed_up_figure(pairs), caption)
    return Section("modes", "Eager and compiled", (steps, ratio))


def _all_to_all(compared: Compared) -> Section:
    key, title, cells = "all-to-all", "All-to-all", communicating(compared)
    if not cells:
        return Section(
            key, title, missing="No measured cell recorded an all-to-all: none of them has ep or cp above 1."
        )
    caption = (
        "Time a step in all-to-all calls, from the torch profiler's trace pass. Solid: transfer, after the "
        "last rank of the group arrived. Hatched: what the rank that waits longest waits for it, which is "
        "other ranks' delay and not the network's. Not all of it is exposed: it may overlap compute."
    )
    chart = Chart(all_to_all_figure(compared, cells), caption, collectives_table(compared, cells))
    return Section(key, title, (chart,))


def _routings(compared: Compared) -> Section | None:
    table = routings_table(compared)
    if table is None:
        return None
    note = (
        "The same cells but for their routing: heaviest over mean expert and ep rank (1 is balanced), and fan-out, the "
        "mean number of ep ranks that a token goes to. Nobody chooses the routing of a model in training; the spread "
        "between routings is what a layout's throughput owes to balance."
    )
    return Section("routings", "Routings side by side", note=note, table=table)


def _memory(compared: Compared) -> Section:
    key, title = "memory", "Memory and throughput"
    charts = tuple(
        _memory_chart(compared, group, cells)
        for group in compared.groups
        if (cells := weighed(compared, group.measured))
    )
    if not charts:
        return Section(key, title, missing="No cell has both a peak of memory and a throughput.")
    total = compared.view.environment.device_memory_bytes
    note = f"A {compared.rank_word} has {gib(total)} GiB." if total else ""
    return Section(key, title, charts, note=note)


def _memory_chart(compared: Compared, group: Group, cells: list[CellResult]) -> Chart:
    points = [(cell.cell, float(peak_bytes(cell, compared) or 0), cell.tokens_per_s_per_rank or 0.0) for cell in cells]
    head = f"{group.work}. " if group.work else ""
    caption = f"{head}Up and to the left is better; no cell beats those on the line in both."
    caption += _absent(compared, group, cells)
    table = memory_table(compared, cells, pareto(points))
    return Chart(memory_figure(compared, cells), caption, table, group.work)


def _absent(compared: Compared, group: Group, shown: list[CellResult]) -> str:
    """Which cells of the group the chart cannot show, with their outcome."""
    absent = [cell for cell in group.cells if cell not in shown]
    if not absent:
        return ""
    names = [f"{compared.naming.arm(cell)} ({cell.outcome or NOT_RUN})" for cell in absent]
    return f" Not shown: {join(names)}."


def _sizes(compared: Compared) -> Section:
    key, title = "sizes", "MoE sizes"
    if not compared.naming.has_sizes:
        return Section(key, title, missing="All cells of this run have the same model.")
    rows = size_rows(compared)
    if not rows:
        return Section(key, title, missing="No layout was measured with more than one model size.")
    caption = (
        "The same layout, mode and training settings with different models, higher is better. Sizes are not "
        f"ranked as layouts are: compare them with the FLOPs a token costs, in the table. {_INTERVALS}"
    )
    chart = Chart(sizes_figure(compared, rows), caption, sizes_table(compared, rows))
    return Section(key, title, (chart,))
