"""Memory: what the peak is made of, and one step on a timeline."""

from epbench.report.comparison import Compared
from epbench.report.sections.model import Section

__all__ = ["memory_section"]


def memory_section(compared: Compared) -> Section | None:
    """None."""
    del compared
    return None
