"""What the template of the page shows: texts and tables for a reader, packs for the script."""

import json
from dataclasses import dataclass
from typing import Any

from epbench.frames import cells_csv, collectives_csv, launches_csv
from epbench.report.assets import Assets, packed
from epbench.report.comparison import Compared
from epbench.report.details import details_of
from epbench.report.findings import findings
from epbench.report.places import SectionPlace, cell_charts, placed, within
from epbench.report.provenance import environment_rows, provenance_rows
from epbench.report.references import speeds_by_reference
from epbench.report.sections import sections_of
from epbench.report.sections.model import Section
from epbench.report.tables import cell_columns, cells_table
from epbench.report.text import clean, number
from epbench.report.verdict import by_importance, outcome_counts, summary

__all__ = ["Limits", "PageParts", "page_parts"]

_MEGABYTE = 1e6
_DOWNLOADS = {
    "cells.json": "All records (JSON)",
    "cells.csv": "Cells (CSV)",
    "launches.csv": "Launches (CSV)",
    "collectives.csv": "Collectives (CSV)",
}


@dataclass(frozen=True)
class Limits:
    """Bytes of the page, packed, above which records and charts of single cells go into files beside it."""

    records: float = 1.5 * _MEGABYTE
    cell_charts: float = 2.5 * _MEGABYTE


@dataclass(frozen=True)
class PageParts:
    """Variables of the template for the page, and for the page of cells beside it if there is one; and the records."""

    main: dict[str, Any]
    cells: dict[str, Any] | None
    records: str | None


def page_parts(compared: Compared, *, leading: tuple[Section, ...], stem: str, limits: Limits) -> PageParts:
    """All of a run's page; files beside it are named after ``stem``, the page's own name without its ending."""
    sections = sections_of(compared)
    kept = within(compared, sections, limit=limits.cell_charts)
    files = _downloads(compared)
    records = files.pop("cells.json") if len(packed(files["cells.json"])) > limits.records else None
    beside = {
        "cells": f"{stem}-cells.html" if kept is not None else "",
        "records": f"{stem}-records.json" if records is not None else "",
        "records_megabytes": number(len(records.encode()) / _MEGABYTE, 2) if records is not None else "",
    }
    first = placed(leading)
    places = placed(sections, kept=kept, first=sum(len(place.charts) for place in first))
    contents = [
        ("verdict", "Verdict"),
        *_contents(first),
        ("cells", "All cells"),
        *_contents(places),
        ("provenance", "Provenance"),
    ]
    main = {
        **_frame(compared, [*first, *places]),
        "contents": contents,
        **_rows(compared),
        "answers": _answers(compared, _anchors([*first, *places])),
        "leading": first,
        "sections": places,
        "provenance": provenance_rows(compared.view),
        "beside": beside,
        "downloads": [(name, _DOWNLOADS[name]) for name in files],
    }
    main["packs"] |= {"data": packed(json.dumps(files)), "speeds": packed(_speeds(compared))}
    return PageParts(main, _cells_page(compared, sections, stem) if kept is not None else None, records)


def _cells_page(compared: Compared, sections: tuple[Section, ...], stem: str) -> dict[str, Any]:
    """The charts of every single cell, on a page of their own."""
    places = placed(cell_charts(sections))
    nothing: dict[str, Any] = {"answers": None, "table": None, "leading": [], "provenance": (), "downloads": []}
    frame = _frame(compared, places)
    return (
        frame
        | nothing
        | {"sections": places, "contents": _contents(places), "beside": {}, "part_of": f"{stem}.html", "works": []}
    )


def _frame(compared: Compared, places: list[SectionPlace]) -> dict[str, Any]:
    """What every page has: its titles, pickers, packs and assets."""
    run = compared.view.run
    assets = Assets.of()
    packs = {name: text for place in places for chart in place.charts for name, text in chart.packs().items()}
    return {
        "title": clean(run.name, 120),
        "description": clean(run.description, 600),
        "part_of": "",
        "works": [group.work for group in compared.groups],
        "picks": _picks(compared, places),
        "assets": assets,
        "packs": packs | {"plotly": assets.plotly},
    }


def _answers(compared: Compared, anchors: set[str]) -> dict[str, Any]:
    view = compared.view
    return {
        "summary": summary(compared),
        "verdicts": by_importance(compared),
        "outcomes": outcome_counts(view),
        "environment": environment_rows(view),
        "warnings": [clean(text, 600) for text in view.warnings],
        "on_cpu": view.environment.device == "cpu",
        "findings": findings(compared),
        "anchors": anchors,
    }


def _rows(compared: Compared) -> dict[str, Any]:
    """The table of all cells, what stands behind each row, and what may be chosen as reference."""
    view, naming = compared.view, compared.naming
    columns = cell_columns(compared)
    table = cells_table(view.cells, columns)
    chosen = [(group, group.reference) for group in compared.groups if group.reference is not None]
    return {
        "columns": columns,
        "table": table,
        "tall": {at for at, row in enumerate(table.rows) if any(" [" in value.text for value in row)},
        "details": [details_of(cell, compared.data) for cell in view.cells],
        "routings": sorted({naming.routing(cell) for cell in view.cells}),
        "references": [(reference.cell, naming.full(reference)) for _, reference in chosen],
        "choices": [
            {
                "work": group.work,
                "reference": reference.cell,
                "cells": [(cell.cell, naming.arm(cell), naming.full(cell)) for cell in group.measured],
            }
            for group, reference in chosen
            if len(group.measured) > 1
        ],
    }


def _contents(places: list[SectionPlace]) -> list[tuple[str, str]]:
    return [(place.section.key, place.section.title) for place in places]


def _anchors(places: list[SectionPlace]) -> set[str]:
    """What a finding may link to."""
    charts = {chart.chart.key for place in places for chart in place.charts}
    return {"cells"} | charts | {place.section.key for place in places}


def _picks(compared: Compared, places: list[SectionPlace]) -> dict[str, dict[str, str]]:
    """By picker and label, the short value that stands for the label in the page's address: a cell's id, a number.

    Naming makes a label of each cell and each group that no other has.
    """
    labels: dict[str, dict[str, str]] = {"work": {}, "cell": {}}
    for chart in (chart for place in places for chart in place.charts):
        labels.setdefault(chart.chart.picker, {}).update({label: label for label in chart.labels})
    labels["work"] |= {group.work: str(number) for number, group in enumerate(compared.groups, 1)}
    labels["cell"] |= {compared.naming.full(cell): cell.cell for cell in compared.view.cells}
    return labels


def _downloads(compared: Compared) -> dict[str, str]:
    """What the page's buttons save, by file name."""
    view = compared.view
    csv = {"cells.csv": cells_csv(view), "launches.csv": launches_csv(view), "collectives.csv": collectives_csv(view)}
    return {"cells.json": view.model_dump_json(indent=1), **csv}


def _speeds(compared: Compared) -> str:
    """The speed of each cell against each reference of its group: text and number."""
    found = speeds_by_reference(compared)
    return json.dumps({one: {cell: [it.text, it.sort] for cell, it in row.items()} for one, row in found.items()})
