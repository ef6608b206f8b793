"""The page's text, read without a browser: every section, every cell, and nothing that a name could break."""

import base64
import errno
import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from epbench.cells import Cell
from epbench.errors import RunError, StorageError
from epbench.memory_records import MemoryDetail
from epbench.records import CollectiveRow, GpuTelemetry, OwnDtypeRecord, RunView, Spread, Telemetry, VerifyRecord
from epbench.report import build
from epbench.report.build import build_html, write_csv, write_report
from epbench.report.comparison import Compared
from epbench.report.details import details_of
from epbench.report.text import UNKNOWN, gib, percent
from epbench.store import RunDirectory
from tests.report.sample import (
    DP4,
    DP4_EP4,
    HOSTILE,
    measured_cell,
    run_record,
    sample_view,
    unmeasured_cell,
    view_of,
)

MARKUP = re.compile("</?(b|br|extra|i|sub|sup)/?>")  # that our own texts in charts may have


class Page(HTMLParser):
    """The text of a page by id of the section it is in, and all start tags; fails on badly nested sections."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._at: list[str] = ["head"]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in {"section", "script", "style"}:
            self._at.append(dict(attrs).get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"section", "script", "style"}:
            self._at.pop()

    def handle_data(self, data: str) -> None:
        self.texts[self._at[-1]] = self.texts.get(self._at[-1], "") + data

    def all_tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def unpacked(self, name: str) -> Any:
        """What a packed script element holds, which is JSON but for plotly's library."""
        return json.loads(gzip.decompress(base64.b64decode(self.texts[name])))

    def figures(self) -> list[dict[str, Any]]:
        """Of all charts, every variant, without the texts that the page's script shows as text."""
        names = [name for name in self.texts if name.startswith("figures-")]
        figures = [figure for name in names for figure in self.unpacked(name)]
        return [figure | {"layout": figure["layout"] | {"meta": None}} for figure in figures]


@pytest.fixture(scope="module")
def html() -> str:
    return build_html(sample_view())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_section_says_its_part(page: Page) -> None:
    assert "dp4-ep4 compiled is fastest: 317.8 [310.4, 325.8] ms/step" in page.texts["verdict"]
    assert "10 ok" in page.texts["verdict"] and "1 not run" in page.texts["verdict"]
    assert "Step time of each layout, eager and compiled" in page.texts["modes"]
    assert "Solid: transfer" in page.texts["communication"] and "count_exchange" in page.texts["communication"]
    assert "tp4-etp4 eager" in page.texts["choose"]
    assert "Sizes are not ranked as layouts are" in page.texts["sizes"]
    assert "epbench run scenarios/made-up.toml" in page.texts["provenance"]
    assert "2.11.0+cu130" in page.texts["provenance"]


def test_every_cell_has_a_row_and_every_failure_its_reason(page: Page) -> None:
    for cell in sample_view().cells:
        assert cell.cell in page.texts["cells"]
        assert (cell.reason or "") in page.texts["cells"]
    assert "not as expected" in page.texts["cells"]


def test_unknown_values_are_dashes_and_never_zero() -> None:
    text = Page(build_html(sample_view("cpu"))).texts["cells"]
    assert "MFU" in text and "0.0 %" not in text
    assert "\u2013" in text


def test_warnings_of_the_run_stand_beside_its_verdict() -> None:
    changed = {"started": "2026-11-22T10:15:00+00:00", "warnings": ["the machine changed: <b>gemm</b>"]}
    warned = Page(build_html(sample_view(sittings=[changed])))
    assert "Warning: the machine changed: <b>gemm</b>" in warned.texts["verdict"]
    assert "Warning" not in Page(build_html(sample_view())).texts["verdict"]


def test_what_the_gpus_did_is_among_the_details() -> None:
    hot = GpuTelemetry(
        uuid="GPU-aa",
        samples=40,
        sm_clock_mhz=Spread(median=1900, low=1700, high=1980),
        temperature_c=Spread(median=60, low=58, high=71),
        clock_reasons={"idle": 0.1, "SW power cap": 0.5},
    )
    watched = Telemetry(window_s=9.0, interval_s=0.2, cost=0.001, gpus=[hot])
    cell = measured_cell(Cell(layout=DP4), 0.4, energy_j_per_token=0.0213)
    cell = cell.model_copy(
        update={"launch_values": [one.model_copy(update={"telemetry": watched}) for one in cell.launch_values]}
    )
    known = dict(details_of(cell).rows)["GPUs while timed"]
    assert known == "SM clock 1700 to 1980 MHz, temperature 58 to 71 C, 21.3 mJ a token, held back by SW power cap"
    assert dict(details_of(measured_cell(Cell(layout=DP4), 0.4)).rows)["GPUs while timed"] == UNKNOWN


def test_details_name_collectives_that_seem_faster_than_the_wires() -> None:
    seen, doubtful = (
        CollectiveRow(
            op="all_to_all",
            purpose=purpose,
            phase="forward",
            axis="ep",
            calls_per_step=1.0,
            bytes=1000,
            bytes_mean=1000,
            transfer_s=1e-6,
            wait_s=0.0,
            p50_s=1e-6,
            p95_s=1e-6,
            algbw_bytes_per_s=busbw,
            busbw_bytes_per_s=busbw,
            ceiling_busbw_bytes_per_s=1e9,
        )
        for purpose, busbw in (("dispatch", 1e9), ("combine", 2e9))
    )
    cell = measured_cell(Cell(layout=DP4), 0.4)
    told = dict(details_of(cell.model_copy(update={"collectives": [seen, doubtful]})).rows)["doubtful collectives"]
    assert told.startswith("all_to_all combine forward on ep: 2.00 times the isolated ceiling")
    assert "doubtful collectives" not in dict(details_of(cell.model_copy(update={"collectives": [seen]})).rows)


def test_details_say_what_is_known_of_the_peak() -> None:
    known = MemoryDetail(
        rank=2,
        parts_of="residents",
        peak_phase="backward",
        alloc_retries=3,
        fragmentation=0.125,
        outside_torch_bytes=3 * 2**29,
        note="0.1 GiB here, 0.2 GiB there",
    )
    cells = [measured_cell(Cell(layout=DP4), 0.4).model_copy(update={"memory": it}) for it in (known, MemoryDetail())]
    told, silent = (dict(details_of(cell).rows)["memory, GiB"] for cell in cells)
    assert told == (
        f"{silent}; the peak is in backward, on rank 2; parts are what stays between steps; "
        f"{percent(0.125)} of reserved free and not returnable at the peak; 3 allocations had to be retried; "
        f"outside of torch {gib(3 * 2**29)}; 0.1 GiB here, 0.2 GiB there"
    )


def test_cpu_runs_say_what_they_prove(page: Page) -> None:
    note = "They say nothing about the performance of GPUs"
    cpu = Page(build_html(sample_view("cpu")))
    assert note in cpu.texts["verdict"] and note not in page.texts["verdict"]
    assert "tokens/s per rank" in cpu.texts["cells"] and "tokens/s per GPU" in page.texts["cells"]


def test_every_chart_has_a_label_a_caption_and_numbers(page: Page) -> None:
    charts = [tag for tag in page.all_tags("div") if tag.get("class") == "chart"]
    assert [f"figures-{chart['data-figure']}" for chart in charts] == [n for n in page.texts if n[:8] == "figures-"]
    assert len(charts) == len(page.all_tags("figcaption")) == len(page.all_tags("figure")) > 6
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in charts)
    assert all("title" not in figure["layout"] for figure in page.figures())
    kinds = [str(tag.get("class")).split() for tag in page.all_tags("details")]
    assert sum("variant" in kind for kind in kinds) >= len(charts) - 1


def test_pickers_offer_every_variant_by_a_value_that_a_link_can_hold(page: Page) -> None:
    values = {tag["value"] for tag in page.all_tags("option")}
    assert {"1", "2"} <= values
    assert {cell.cell for cell in sample_view().cells if cell.all_to_all} <= values


def test_contents_and_findings_link_to_what_is_there(page: Page) -> None:
    anchors = {str(tag["id"]) for _, tag in page.tags if tag.get("id")}
    links = [str(tag["href"]) for tag in page.all_tags("a")]
    assert {link.removeprefix("#") for link in links} <= anchors
    assert len(links) > 8


def test_what_was_not_measured_is_said_instead_of_an_empty_chart() -> None:
    view = view_of([unmeasured_cell(Cell(layout=DP4), "oom", "out of memory")])
    page = Page(build_html(view))
    assert "No cell has a step time." in page.texts["modes"]
    assert "sizes" not in page.texts
    assert page.figures() == []


def test_a_run_without_cells_is_a_page() -> None:
    assert "This run has no cells." in Page(build_html(view_of([]))).texts["verdict"]


def test_nothing_is_fetched_and_only_two_scripts_may_run(page: Page, html: str) -> None:
    assert not [tag for tag, attributes in page.tags if attributes.keys() & {"src", "srcset", "action"}]
    assert all(str(tag["href"]).startswith("#") for tag in page.all_tags("a")) and not page.all_tags("link")
    assert "data:text" not in html and "data:application" not in html
    (policy,) = [tag["content"] or "" for tag in page.all_tags("meta") if tag.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    plotly = gzip.decompress(base64.b64decode(page.texts["plotly"])).decode()
    assert allowed == {_digest(page.texts["script"]), _digest(plotly)}


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_records_are_in_the_page(page: Page) -> None:
    data = page.unpacked("data")
    assert RunView.model_validate_json(data["cells.json"]) == sample_view()
    lines = {name: len(text.splitlines()) - 1 for name, text in data.items() if name.endswith(".csv")}
    cells = sample_view().cells
    assert lines == {
        "cells.csv": len(cells),
        "launches.csv": sum(len(cell.launch_values) for cell in cells),
        "collectives.csv": sum(len(cell.collectives) for cell in cells),
    }


def test_the_speed_of_a_cell_is_there_against_every_reference_of_its_group(page: Page) -> None:
    speeds = page.unpacked("speeds")
    groups = Compared.of(sample_view()).groups
    assert {cell: set(row) for cell, row in speeds.items()} == {
        cell.cell: {other.cell for other in group.measured} for group in groups for cell in group.measured
    }
    assert speeds[groups[0].measured[0].cell][groups[0].measured[0].cell] == ["reference", 1.0]


def test_no_anchor_is_there_twice(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_page(html: str) -> None:
    assert build_html(sample_view()) == html


def hostile_view(text: str) -> RunView:
    cell = Cell(layout=DP4_EP4)
    model = cell.model.model_dump(mode="json") | {"preset": text}
    keys: dict[str, Any] = {"phases_s": {"measure": {text: 1.0}}, "kernels_s": {text: 0.1}}
    own = OwnDtypeRecord(dtype=text, loss_error=0, loss_bound=1, grad_bound=1, norm_bound=1, passed=True)
    verify = VerifyRecord(scope="loss", passed=True, own_dtype=own)
    cells = [
        measured_cell(cell, 0.3, layout=text, mode=text, routing=text, reason=text, model=model, verify=verify, **keys),
        measured_cell(Cell(layout=DP4), 0.4, routing=text + "2"),
        unmeasured_cell(Cell(layout=DP4, mode="compiled"), "crashed", text, layout=text),
    ]
    return view_of(cells, name=text, description=text, scenario_path=text, command=[text], device_reason=text)


LONG_NAMES = ["../../etc/passwd", "x" * 10_000, "<b>" * 3000, "\u202e" * 5000, "' onmouseover='x", "%s{0}$", ""]


@pytest.mark.parametrize("name", [HOSTILE, *LONG_NAMES], ids=lambda name: repr(name[:12]))
def test_hostile_names_stay_text(name: str, page: Page) -> None:
    html = build_html(hostile_view(name))
    found = Page(html)
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in page.tags}
    inert = [tag for tag in found.all_tags("script") if tag.get("type") == "text/plain"]
    assert len(inert) == len(found.all_tags("script")) - 1 and not found.all_tags("img")
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
    outside = html[: html.index('<script type="text/plain"')]
    assert not set("\u202e\u2028\u2029") & set(html)
    assert len(outside) < 120_000
    figures = json.dumps(found.figures(), ensure_ascii=False)
    assert not set("\u202e\u2028\u2029<>") & set(MARKUP.sub("", figures))


def test_names_in_charts_are_not_read_as_markup() -> None:
    figures = Page(build_html(hostile_view("<a href='x'>b</a>"))).figures()
    assert "<a" not in json.dumps(figures)


def test_a_template_that_asks_for_what_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = build._rendered

    def without_title(variables: dict[str, Any]) -> str:
        return rendered({key: value for key, value in variables.items() if key != "title"})

    monkeypatch.setattr(build, "_rendered", without_title)
    with pytest.raises(UndefinedError, match="title"):
        build_html(sample_view())


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.write_run(run_record())
    return directory


def test_a_report_is_written_into_its_run_or_where_asked(run: RunDirectory, tmp_path: Path) -> None:
    assert write_report(run.path) == run.path / "report.html"
    assert "This run has no cells." in (run.path / "report.html").read_text(encoding="utf-8")
    elsewhere = tmp_path / "page.html"
    assert write_report(run.path, output=elsewhere) == elsewhere
    assert elsewhere.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert write_csv(run.path, tmp_path / "cells.csv") == tmp_path / "cells.csv"


def test_a_file_that_cannot_be_written_is_one_sentence(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*nowhere.*: No such file or directory"):
        write_report(run.path, output=tmp_path / "nowhere" / "report.html")
    with pytest.raises(RunError, match="no run directory"):
        write_report(tmp_path)


@pytest.mark.parametrize("write", [lambda run, file: write_report(run, output=file), write_csv], ids=["page", "csv"])
def test_where_nobody_may_look_is_a_matter_of_the_machine(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, Path], Path]
) -> None:
    file = tmp_path / "closed" / "file"
    look = Path.stat

    def closed(path: Path, **options: Any) -> os.stat_result:
        if path.name in {"closed", "file"}:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(StorageError, match=r"cannot write '.*closed/file': Permission denied"):
        write(run.path, file)
