"""What a section of the report is: charts with variants to pick from, each with the table of its numbers."""

from dataclasses import dataclass
from typing import Literal

from epbench.report.figures.base import Figure
from epbench.report.tables import Table

__all__ = ["INTERVALS", "Chart", "Picker", "Section", "TitledTable", "Variant"]

INTERVALS = "Bars are 95 % intervals over launches; a point without a bar has fewer than three valid launches."
# What is picked: comparable cells, one cell, groups of ranks, all settings but the model, all but the routing.
Picker = Literal["work", "cell", "groups", "conditions", "setting"]


@dataclass(frozen=True)
class Variant:
    """One state of a chart: the figure, and the table of the same numbers."""

    label: str  # what the picker says; one label names the same thing in all charts with the same picker
    figure: Figure
    table: Table | None = None
    note: str = ""  # added to the chart's caption while this variant is shown


@dataclass(frozen=True)
class Chart:
    """A place on the page for one figure; ``key`` is its anchor, which findings link to."""

    key: str
    title: str
    caption: str
    variants: tuple[Variant, ...]  # at least one
    picker: Picker = "work"  # charts with the same picker change together


@dataclass(frozen=True)
class TitledTable:
    """A table that stands below the charts of a section and belongs to none of them."""

    title: str
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One heading of the report; ``missing`` says why it has no chart. ``table`` is shown without one."""

    key: str
    title: str
    charts: tuple[Chart, ...] = ()
    missing: str = ""
    note: str = ""
    table: Table | None = None
    tables: tuple[TitledTable, ...] = ()
    lead: str = ""  # what stands first, above the charts
