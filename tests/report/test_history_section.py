"""The nights before a run on its page: which metrics and cells are drawn, what is said, and how names are treated."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

from epbench.cli import app
from epbench.errors import RunError
from epbench.history.adding import add_nights, run_nights
from epbench.history.lines import history_path
from epbench.records import RunView
from epbench.report.build import build_html
from epbench.report.data import RunData
from epbench.report.sections.history import history_section
from epbench.report.sections.model import Section
from tests.nights import EP_CELL, failed_cell, night_cell, night_run, night_view
from tests.report.sample import HOSTILE, environment

SLOW_FROM, COUNT = 20, 30


def views(count: int = COUNT) -> list[RunView]:
    """Nights of two cells; dp4 becomes 6 % slower on the night of a new torch."""
    random = np.random.default_rng(11)
    found = []
    for night in range(count):
        is_new = night >= SLOW_FROM
        machine = environment().model_copy(update={"torch": "2.12.0" if is_new else "2.11.0"})
        work_s = 0.2 * float(np.exp(random.normal(0, 0.004))) * (1.06 if is_new else 1.0)
        found.append(night_view(night, night_cell(work_s), night_cell(0.15, cell=EP_CELL), machine=machine))
    return found


def section(store: Path, nights: list[RunView]) -> Section:
    """That of the last night, which is not in the store."""
    for view in nights[:-1]:
        add_nights(store, view.run.name, run_nights(view, view.run.started))
    return history_section(RunData(nights[-1], path=Path("reports/tonight")), store)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Section:
    return section(tmp_path_factory.mktemp("store"), views())


def drawn(found: Section, chart: str, name: str) -> dict[str, Any]:
    (it,) = [one for one in found.charts if one.key == chart]
    (variant,) = [one for one in it.variants if one.label == name]
    return dict(json.loads(variant.figure.json))


def test_each_metric_that_has_nights_is_a_chart_with_a_cell_to_pick(nights: Section) -> None:
    keys = ["trend-device_work_s", "trend-step_s", "trend-exposed_s", "trend-peak_allocated_bytes"]
    assert [chart.key for chart in nights.charts] == keys
    assert {chart.picker for chart in nights.charts} == {"cell"}
    assert [one.label for one in nights.charts[0].variants] == ["dp4 eager", "dp4-ep4 eager"]


def test_figure_has_the_nights_levels_change_and_version(nights: Section) -> None:
    figure = drawn(nights, "trend-device_work_s", "dp4 eager")
    go.Figure(figure)  # plotly knows all that is in it
    points, levels = figure["data"][0], figure["data"][1]
    assert len(points["y"]) == COUNT
    assert [x for x in levels["x"] if x is not None] == [-0.5, SLOW_FROM - 0.5, SLOW_FROM - 0.5, COUNT - 0.5]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [SLOW_FROM - 0.5] * 2
    texts = [text["text"] for text in figure["layout"]["annotations"]]
    assert float(texts[0].removesuffix(" %")) == pytest.approx(6.0, abs=0.5)
    assert texts[1:] == ["torch"]
    alarms = [trace for trace in figure["data"] if trace["name"] == "alarm: more"]
    assert alarms[0]["x"][0] == SLOW_FROM + 1  # two nights running


def test_table_and_lead_say_the_same(nights: Section) -> None:
    table = nights.charts[0].variants[0].table
    assert table is not None
    last, slow = table.rows[-1], table.rows[SLOW_FROM]
    assert [value.text for value in last[:3]] == ["2026-09-30T02:30", "tonight", "ok"]
    assert "torch 2.11.0 → 2.12.0" in slow[-1].text
    assert "new level: +" in slow[-1].text
    assert nights.lead.startswith(
        "Two nights running, dp4 eager takes more than in the nights before (device work, step, exposed communication)."
        " The last change of level: dp4 eager device work +"
    )


def test_lead_tells_of_memory_and_of_lines_that_cannot_be_read_and_of_no_night_without_a_value(tmp_path: Path) -> None:
    large = [
        night_cell(0.2 if night < 12 else 0.202, peak_allocated_bytes=(40 if night < 16 else 50) * 2**30)
        for night in range(20)
    ]
    cells = [night_cell(0.1 if night < 16 else 0.12, cell=EP_CELL) for night in range(19)]
    cells.append(failed_cell("oom", "rank 2: out of memory", EP_CELL))
    store = tmp_path / "store"
    pairs = enumerate(zip(large, cells, strict=True))
    nights = [night_view(night, one, two) for night, (one, two) in pairs]
    section(store, nights)
    file = history_path(store, nights[0].run.name)
    file.write_text(f"{file.read_text()}<<<<<<< HEAD\n")
    lead = history_section(RunData(nights[-1], path=Path("reports/tonight")), store).lead
    assert lead.startswith(
        "Two nights running, dp4 eager takes more than in the nights before (peak allocated). The last"
    )
    assert "dp4 eager peak allocated +25.0 % from 2026-09-17 on" in lead
    assert "dp4-ep4 eager device work +20.0 % from 2026-09-17 on" in lead
    assert lead.endswith(f" 1 line of '{file}' cannot be read and is left out.")


def test_texts_above_a_chart_do_not_overlap(tmp_path: Path) -> None:
    """Levels of three nights, and other code every night: the larger change is written, and torch before all code."""
    works = [0.2] * 12 + [0.21] * 3 + [0.24] * 12
    nights = [
        night_view(
            night,
            night_cell(work_s * (1 + 1e-4 * (night % 3))),
            machine=environment().model_copy(update={"code": f"{night}-", "torch": f"2.{night // 25}"}),
        )
        for night, work_s in enumerate(works)
    ]
    figure = drawn(section(tmp_path, nights), "trend-device_work_s", "dp4 eager")
    assert len(figure["layout"]["shapes"]) == 2 + len(works) - 1
    rows: dict[float, list[tuple[float, str]]] = {}
    for text in figure["layout"]["annotations"]:
        rows.setdefault(text["y"], []).append((text["x"], text["text"]))
    (sizes, versions) = (sorted(row) for _, row in sorted(rows.items(), reverse=True))
    assert [x for x, _ in sizes] == [14.5]
    assert versions[-1] == (24.5, "torch +1")
    assert len(versions) > 3
    gaps = [after[0] - before[0] for before, after in pairwise(versions)]
    assert min(gaps) * 360 / len(works) > len("code") * 7


def test_a_run_without_history_says_so(tmp_path: Path) -> None:
    found = section(tmp_path, views(2))
    assert (found.charts, found.missing) == ((), f"The history in {tmp_path} has no cell of this run in three nights.")
    with pytest.raises(RunError, match="there is no history"):
        history_section(RunData(views(1)[0]), tmp_path / "nowhere")


def test_names_of_foreign_origin_do_no_harm(tmp_path: Path) -> None:
    machine = environment().model_copy(update={"torch": HOSTILE})
    hostile = [night_view(0, night_cell(0.2), name=HOSTILE)]
    hostile += [night_view(night, night_cell(0.2), machine=machine, name=HOSTILE) for night in (1, 2, 3)]
    page = build_html(RunData(hostile[-1]), leading=(section(tmp_path, hostile),))
    assert "<script>window.hostile" not in page
    assert "\u202e" not in page


def test_report_draws_it_where_asked(tmp_path: Path) -> None:
    nights = views(4)
    runs = [night_run(tmp_path / "reports", view) for view in nights]
    for view, run in zip(nights, runs, strict=True):
        add_nights(tmp_path / "store", view.run.name, run_nights(view, run.path.name))
    arguments = ["report", str(runs[-1].path), "--history", str(tmp_path / "store")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Over the nights" in Path(result.stdout.strip()).read_text("utf-8")
    refused = CliRunner().invoke(app, [*arguments, "--md"])
    assert (refused.exit_code, refused.stderr[:31]) == (2, "epbench: --history draws charts")
