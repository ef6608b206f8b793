"""Where the step goes: exclusive parts of the wall time, per layout and per rank."""

from epbench.report.comparison import Compared
from epbench.report.sections.model import Section

__all__ = ["steps_section"]


def steps_section(compared: Compared) -> Section | None:
    """None."""
    del compared
    return None
