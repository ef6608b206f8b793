"""Experts: how evenly the routed copies fall, and what a layout's throughput owes to that."""

from epbench.report.comparison import Compared
from epbench.report.routing_pairs import routings_table
from epbench.report.sections.model import Section

__all__ = ["experts_section"]


def experts_section(compared: Compared) -> Section | None:
    """Routings side by side where a layout was measured under several; None otherwise."""
    table = routings_table(compared)
    if table is None:
        return None
    note = (
        "The same cells but for their routing: heaviest over mean expert and ep rank (1 is balanced), and fan-out, the "
        "mean number of ep ranks that a token goes to. Nobody chooses the routing of a model in training; the spread "
        "between routings is what a layout's throughput owes to balance."
    )
    return Section("experts", "Routings side by side", note=note, table=table)
