"""MoE sizes: the same layout with different models, which are put side by side and never ranked."""

from epbench.report.comparison import Compared
from epbench.report.figures.sizes import sizes_figure
from epbench.report.sections.model import INTERVALS, Chart, Section, Variant
from epbench.report.sections.sizes_tables import sizes_table
from epbench.report.selection import Rows, size_rows

__all__ = ["sizes_section"]

_CAPTION = (
    "The same layout, mode and training settings with different models, higher is better. Sizes are not "
    f"ranked as layouts are: compare them with the FLOPs a token costs, in the table. {INTERVALS}"
)


def sizes_section(compared: Compared) -> Section | None:
    """Throughput of the sizes by layout and mode, for each routing; None where all cells have the same model."""
    key, title = "sizes", "MoE sizes"
    if not compared.naming.has_sizes:
        return None
    found = size_rows(compared)
    if not found:
        return Section(key, title, missing="No layout was measured with more than one model size.")
    variants = tuple(_variant(compared, conditions, rows) for conditions, rows in found.items())
    return Section(key, title, (Chart("sizes-chart", "Throughput by size", _CAPTION, variants, picker="conditions"),))


def _variant(compared: Compared, conditions: str, rows: Rows) -> Variant:
    return Variant(conditions, sizes_figure(compared, rows), sizes_table(compared, rows))
