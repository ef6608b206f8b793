"""MoE sizes: the same layout with different models, which are put side by side and never ranked."""

from epbench.report.comparison import Compared
from epbench.report.figures.sizes import sizes_figure
from epbench.report.sections.model import INTERVALS, Chart, Section, Variant
from epbench.report.selection import size_rows
from epbench.report.tables import sizes_table

__all__ = ["sizes_section"]


def sizes_section(compared: Compared) -> Section | None:
    """Throughput of the sizes by layout and mode; None where all cells have the same model."""
    key, title = "sizes", "MoE sizes"
    if not compared.naming.has_sizes:
        return None
    rows = size_rows(compared)
    if not rows:
        return Section(key, title, missing="No layout was measured with more than one model size.")
    caption = (
        "The same layout, mode and training settings with different models, higher is better. Sizes are not "
        f"ranked as layouts are: compare them with the FLOPs a token costs, in the table. {INTERVALS}"
    )
    variant = Variant("", sizes_figure(compared, rows), sizes_table(compared, rows))
    return Section(key, title, (Chart("sizes-chart", "Throughput by size", caption, (variant,)),))
