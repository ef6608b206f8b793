"""Communication: what collectives cost in the step, and what the same bytes cost alone."""

from epbench.report.comparison import Compared, Group
from epbench.report.figures.communication import all_to_all_figure
from epbench.report.sections.model import Chart, Section, Variant
from epbench.report.tables import collectives_table

__all__ = ["communication_section"]


def communication_section(compared: Compared) -> Section:
    """All-to-all of every cell that has one, group by group."""
    key, title = "communication", "Communication"
    variants = tuple(found for group in compared.groups if (found := _variant(compared, group)))
    if not variants:
        return Section(
            key, title, missing="No measured cell recorded an all-to-all: none of them has ep or cp above 1."
        )
    caption = (
        "Time a step in all-to-all calls, from the torch profiler's trace pass. Solid: transfer, after the "
        "last rank of the group arrived. Hatched: what the rank that waits longest waits for it, which is "
        "other ranks' delay and not the network's. Not all of it is exposed: it may overlap compute."
    )
    return Section(key, title, (Chart("all-to-all", "All-to-all", caption, variants),))


def _variant(compared: Compared, group: Group) -> Variant | None:
    cells = [cell for cell in group.measured if cell.all_to_all]
    if not cells:
        return None
    return Variant(group.work, all_to_all_figure(compared, cells), collectives_table(compared, cells))
