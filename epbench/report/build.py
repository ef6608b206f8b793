"""One run as one HTML file that opens from disk, without a network, years from now.

The page holds everything: its script, its style, plotly's library (from the installed wheel, gzip + base64,
1.9 MB) and the run's records. A content security policy refuses every request and every script but the two
that are meant, which it knows by their digests; so even a name that escaped its escaping could do nothing.
Verdict, tables and reasons are plain HTML and need no script at all.
"""

import json
from pathlib import Path
from typing import Any

from epbench.errors import RunError, StorageError
from epbench.frames import cells_csv
from epbench.records import RunView
from epbench.report.assets import Assets, packed
from epbench.report.comparison import Compared
from epbench.report.data import RunData, read_run
from epbench.report.details import details_of, environment_rows, provenance_rows
from epbench.report.sections import sections_of
from epbench.report.sections.model import Chart, Section
from epbench.report.tables import cell_columns, cells_table
from epbench.report.text import clean
from epbench.report.verdict import outcome_counts, verdicts
from epbench.writing import replace_file, writing

__all__ = ["build_html", "write_csv", "write_report"]

_HERE = Path(__file__).parent


def write_report(run_path: Path, *, output: Path | None = None) -> Path:
    """Write the report of a run, by default to ``report.html`` in its directory, and return its path.

    Raises RunError if the run cannot be read or the file cannot be there, StorageError if it cannot be written.
    """
    run = read_run(run_path)
    assert run.path is not None
    try:
        return _write(output or run.path / "report.html", build_html(run))
    except StorageError as error:
        raise StorageError(f"{error}; what was measured is kept, make room and: epbench report {run_path}") from error


def write_csv(run_path: Path, output: Path) -> Path:
    """Write one line a cell to ``output``, with the columns of ``epbench.load(run).cells``; returns the path.

    Raises RunError if the run cannot be read or the file cannot be there, StorageError if it cannot be written.
    """
    from epbench.store import open_run

    return _write(output, cells_csv(open_run(run_path).view()))


def _write(path: Path, text: str) -> Path:
    """Whole or not at all; straight into what is no plain file, such as a pipe."""
    if not path.parent.is_dir():
        raise RunError(f"cannot write '{path}': No such file or directory")
    if path.is_dir():
        raise RunError(f"cannot write '{path}': Is a directory")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with writing(path, num_bytes=len(text)):
            path.write_text(text, encoding="utf-8")
    else:
        replace_file(path, text.encode())
    return path


def build_html(run: RunView | RunData) -> str:
    """The report of a run as one self-contained page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(**_context(Compared.of(run)))


def _context(compared: Compared) -> dict[str, Any]:
    view = compared.view
    columns = cell_columns(compared)
    sections = sections_of(compared)
    return {
        "title": clean(view.run.name, 120),
        "description": clean(view.run.description, 600),
        "on_cpu": view.environment.device == "cpu",
        "verdicts": verdicts(compared),
        "outcomes": outcome_counts(view),
        "environment": environment_rows(view),
        "warnings": [clean(text, 600) for text in view.run.warnings],
        "columns": columns,
        "table": cells_table(view.cells, columns),
        "details": [details_of(cell, compared.data) for cell in view.cells],
        "references": _references(compared),
        "routings": sorted({clean(cell.routing, 40) for cell in view.cells}),
        "sections": sections,
        "provenance": provenance_rows(view),
        "picks": _picks(compared, sections),
        "assets": Assets.of(),
        "figures": [_packed_figures(chart) for section in sections for chart in section.charts],
        "data": _downloads(view),
    }


def _references(compared: Compared) -> list[str]:
    return [compared.naming.full(group.reference) for group in compared.groups if group.reference is not None]


def _packed_figures(chart: Chart) -> str:
    """The figures of all variants, as a JSON list."""
    return packed("[" + ",".join(variant.figure.json for variant in chart.variants) + "]")


def _downloads(view: RunView) -> str:
    """What the page's buttons save, by file name."""
    return packed(json.dumps({"cells.json": view.model_dump_json(indent=1), "cells.csv": cells_csv(view)}))


def _picks(compared: Compared, sections: tuple[Section, ...]) -> dict[str, dict[str, str]]:
    """By picker and label, the short value that stands for the label in the page's address: a cell's id, a number."""
    charts = [chart for section in sections for chart in section.charts]
    labels = {chart.picker: {variant.label: variant.label for variant in chart.variants} for chart in charts}
    for chart in charts:
        labels[chart.picker] |= {variant.label: variant.label for variant in chart.variants}
    return {
        **labels,
        "work": labels.get("work", {}) | {group.work: str(number) for number, group in enumerate(compared.groups, 1)},
        "cell": labels.get("cell", {}) | {compared.naming.full(cell): cell.cell for cell in compared.view.cells},
    }
