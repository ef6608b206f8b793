"""Noise and validity: how far launches scatter, and whether the machine was fit."""

from epbench.report.comparison import Compared
from epbench.report.sections.model import Section

__all__ = ["validity_section"]


def validity_section(compared: Compared) -> Section | None:
    """None."""
    del compared
    return None
