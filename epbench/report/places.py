"""Where each chart's variants go: into the page, or into a page of charts beside it when the cells are many.

Figures are packed, one pack for each chart. Of the tables under a chart, the first are plain HTML, which needs no
script; the rest are packed too, as two hundred cells by fifty layers of a model would be a page that no phone opens.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from epbench.report.assets import packed
from epbench.report.comparison import Compared
from epbench.report.sections.model import Chart, Section
from epbench.report.tables import Table

__all__ = ["ChartPlace", "SectionPlace", "cell_charts", "placed", "within"]

PLAIN_TABLE_BYTES = 12_000  # of the tables under one chart; the first is plain in any case
_ENTRY_BYTES = 50  # markup around one entry of a table, its sorting number included


@dataclass(frozen=True)
class ChartPlace:
    """A chart of the page, with its packs; ``left_out`` variants are in the page beside it only."""

    chart: Chart
    number: int
    left_out: int = 0

    @property
    def labels(self) -> list[str]:
        """What the picker offers."""
        return [variant.label for variant in self.chart.variants]

    @property
    def names(self) -> list[str]:
        """What a screen reader says of each variant, and the titles of their tables."""
        return [", ".join(filter(None, (one.figure.label, one.label))) for one in self.chart.variants]

    @property
    def notes(self) -> list[str]:
        """Added to the caption, by variant."""
        return [variant.note for variant in self.chart.variants]

    @property
    def height(self) -> int:
        """Pixels to keep free until the first variant is drawn."""
        return self.chart.variants[0].figure.height

    @property
    def min_width(self) -> int:
        """Pixels below which the chart is scrolled sideways."""
        return max(variant.figure.min_width for variant in self.chart.variants)

    @property
    def tables(self) -> list[Table | None]:
        """By variant, those that are plain HTML."""
        plain: list[Table | None] = []
        used = 0
        for variant in self.chart.variants:
            used += _plain_bytes(variant.table)
            plain.append(variant.table if used <= PLAIN_TABLE_BYTES or not plain else None)
        return plain

    @property
    def packed_tables(self) -> int:
        """How many of the tables need the script."""
        return len(self._hidden_tables())

    def packs(self) -> dict[str, str]:
        """Packed JSON by id of its script element: a list of figures, and tables by variant."""
        figures = packed("[" + ",".join(variant.figure.json for variant in self.chart.variants) + "]")
        hidden = self._hidden_tables()
        found = {f"figures-{self.number}": figures}
        return found | ({f"tables-{self.number}": packed(json.dumps(hidden))} if hidden else {})

    def _hidden_tables(self) -> dict[int, object]:
        variants = zip(self.chart.variants, self.tables, self.names, strict=True)
        return {
            at: _as_json(variant.table, name)
            for at, (variant, plain, name) in enumerate(variants)
            if variant.table and plain is None
        }


@dataclass(frozen=True)
class SectionPlace:
    """A section of the page with its charts."""

    section: Section
    charts: tuple[ChartPlace, ...]


def placed(sections: Iterable[Section], *, kept: frozenset[str] | None = None, first: int = 0) -> list[SectionPlace]:
    """Sections with numbered charts; of those that are picked by cell, only the variants labelled in ``kept``."""
    places: list[SectionPlace] = []
    for section in sections:
        charts = []
        for chart in section.charts:
            charts.append(_place(chart, first, kept))
            first += 1
        places.append(SectionPlace(section, tuple(charts)))
    return places


def _place(chart: Chart, number: int, kept: frozenset[str] | None) -> ChartPlace:
    if kept is None or chart.picker != "cell":
        return ChartPlace(chart, number)
    variants = tuple(variant for variant in chart.variants if variant.label in kept) or chart.variants[:1]
    return ChartPlace(replace(chart, variants=variants), number, left_out=len(chart.variants) - len(variants))


def cell_charts(sections: Iterable[Section]) -> tuple[Section, ...]:
    """The sections again with nothing but their charts that are picked by cell; those without any are left out."""
    found = ((section, tuple(chart for chart in section.charts if chart.picker == "cell")) for section in sections)
    return tuple(Section(section.key, section.title, charts) for section, charts in found if charts)


def within(compared: Compared, sections: Sequence[Section], *, limit: float) -> frozenset[str] | None:
    """Labels of the cells whose own charts fit into ``limit`` bytes of the page, fastest of each group first.

    None if all fit.
    """
    charts = [chart for section in cell_charts(sections) for chart in section.charts]
    size = sum(len(text) for chart in charts for text in ChartPlace(chart, 0).packs().values())
    if size <= limit:
        return None
    names = _by_interest(compared, {variant.label for chart in charts for variant in chart.variants})
    return frozenset(names[: max(1, int(len(names) * limit / size))])


def _by_interest(compared: Compared, labels: set[str]) -> list[str]:
    """The fastest cell of each group, then the second of each, and so on; cells without a number last."""
    places: list[tuple[int, str]] = []
    for group in compared.groups:
        known = [cell for cell in group.cells if compared.naming.full(cell) in labels]
        known.sort(key=lambda cell: cell.step_s if cell.step_s is not None else float("inf"))
        places += [(place, compared.naming.full(cell)) for place, cell in enumerate(known)]
    return [name for _, name in sorted(places, key=lambda place: place[0])]


def _plain_bytes(table: Table | None) -> int:
    return sum(len(value.text) + _ENTRY_BYTES for row in table.rows for value in row) if table else 0


def _as_json(table: Table | None, name: str) -> object:
    assert table is not None, "only a variant with a table has one to hide"
    rows = [[[value.text, value.sort] for value in row] for row in table.rows]
    return {"name": name, "titles": table.titles, "numbers": table.numbers, "rows": rows}
