"""Choose a layout: throughput against memory, and which cells no other beats in both."""

from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, pareto
from epbench.report.figures.choose import frontier_figure
from epbench.report.sections.model import Chart, Section, Variant
from epbench.report.selection import weighed
from epbench.report.tables import memory_table, peak_bytes
from epbench.report.text import gib, join
from epbench.report.verdict import NOT_RUN

__all__ = ["choose_section"]


def choose_section(compared: Compared) -> Section:
    """The frontier of each group of comparable cells."""
    key, title = "choose", "Choose a layout"
    variants = tuple(
        _variant(compared, group, cells) for group in compared.groups if (cells := weighed(compared, group.measured))
    )
    if not variants:
        return Section(key, title, missing="No cell has both a peak of memory and a throughput.")
    total = compared.view.environment.device_memory_bytes
    note = f"A {compared.rank_word} has {gib(total)} GiB." if total else ""
    caption = "Up and to the left is better; no cell beats those on the line in both."
    return Section(key, title, (Chart("frontier", "Throughput against memory", caption, variants),), note=note)


def _variant(compared: Compared, group: Group, cells: list[CellResult]) -> Variant:
    points = [(cell.cell, float(peak_bytes(cell, compared) or 0), cell.tokens_per_s_per_rank or 0.0) for cell in cells]
    table = memory_table(compared, cells, pareto(points))
    return Variant(group.work, frontier_figure(compared, cells), table, _absent(compared, group, cells))


def _absent(compared: Compared, group: Group, shown: list[CellResult]) -> str:
    """Which cells of the group the chart cannot show, with their outcome."""
    absent = [cell for cell in group.cells if cell not in shown]
    if not absent:
        return ""
    names = [f"{compared.naming.arm(cell)} ({cell.outcome or NOT_RUN})" for cell in absent]
    return f"Not shown: {join(names)}."
