"""The sections of a report after the table of cells: charts, their tables, or why there are none.

A section never shows an empty chart: where nothing was measured, it says what is missing.
"""

from collections.abc import Callable

from epbench.report.comparison import Compared
from epbench.report.sections.choose import choose_section
from epbench.report.sections.communication import communication_section
from epbench.report.sections.experts import experts_section
from epbench.report.sections.memory import memory_section
from epbench.report.sections.model import Section
from epbench.report.sections.modes import modes_section
from epbench.report.sections.sizes import sizes_section
from epbench.report.sections.steps import steps_section
from epbench.report.sections.validity import validity_section

__all__ = ["sections_of"]


def sections_of(compared: Compared) -> tuple[Section, ...]:
    """All sections, in the page's order, but for those that have nothing to say of this run."""
    makers: tuple[Callable[[Compared], Section | None], ...] = (
        choose_section,
        modes_section,
        steps_section,
        communication_section,
        memory_section,
        experts_section,
        sizes_section,
        validity_section,
    )
    return tuple(section for make in makers if (section := make(compared)))
