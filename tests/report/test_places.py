"""What is too large for one file goes beside it, is said on the page by name, and nothing is lost."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from epbench.records import RunView
from epbench.report.build import Page as Built
from epbench.report.build import build_page, write_report
from epbench.report.comparison import Compared
from epbench.report.data import RunData
from epbench.report.page import Limits
from epbench.store import RunDirectory
from tests.report.sample import run_record
from tests.report.sample_data import many_cells
from tests.report.test_page import Page

CELLS = 12
ROOM_FOR_FEW = Limits(records=1, cell_charts=30_000)


@pytest.fixture(scope="module")
def run() -> RunData:
    return many_cells(CELLS)


@pytest.fixture(scope="module")
def parted(run: RunData) -> Built:
    return build_page(run, stem="of-night", limits=ROOM_FOR_FEW)


def options(page: Page, picked_by: str) -> set[str | None]:
    """Values of all pickers of a kind."""
    found, inside = set(), False
    for tag, attributes in page.tags:
        if tag == "select":
            inside = attributes.get("data-picker") == picked_by
        elif tag == "option" and inside:
            found.add(attributes["value"])
    return found


def test_24_cells_are_one_file_of_3_megabytes() -> None:
    built = build_page(many_cells(24))
    assert len(built.html.encode()) <= 3e6
    assert not built.beside
    assert len(options(Page(built.html), "cell")) == 24


def test_above_a_size_records_and_charts_of_single_cells_go_beside(run: RunData, parted: Built) -> None:
    page = Page(parted.html)
    assert set(parted.beside) == {"of-night-cells.html", "of-night-records.json"}
    assert RunView.model_validate_json(parted.beside["of-night-records.json"]) == run.view
    assert set(page.unpacked("data")) == {"cells.csv", "launches.csv", "collectives.csv"}
    assert {"./of-night-cells.html", "./of-night-records.json"} <= {tag["href"] for tag in page.all_tags("a")}
    assert re.search(r"\d of 12 are in this file", page.texts["experts"])


def test_the_page_keeps_the_fastest_of_each_group_and_the_one_beside_has_all(run: RunData, parted: Built) -> None:
    kept, every = (options(Page(html), "cell") for html in (parted.html, parted.beside["of-night-cells.html"]))
    groups = Compared.of(run).groups
    fastest = {min(group.measured, key=lambda cell: cell.step_s or 0.0).cell for group in groups}
    assert fastest <= kept < every
    assert every == {cell.cell for cell in run.view.cells}


def test_the_page_beside_links_back_and_has_charts_of_single_cells_only(parted: Built) -> None:
    page = Page(parted.beside["of-night-cells.html"])
    assert "./of-night.html" in {tag["href"] for tag in page.all_tags("a")}
    assert {tag["data-picker"] for tag in page.all_tags("select")} == {"cell"}
    assert not page.texts.keys() & {"verdict", "cells", "data"}


def test_every_variant_has_its_table_plain_or_packed(parted: Built) -> None:
    page = Page(parted.beside["of-night-cells.html"])
    numbers = [tag["data-figure"] for tag in page.all_tags("div") if tag.get("class") == "chart"]
    plain = [tag["data-variant"] for tag in page.all_tags("details") if "variant" in (tag["class"] or "")]
    packed = [key for at in numbers if f"tables-{at}" in page.texts for key in page.unpacked(f"tables-{at}")]
    variants = sorted(str(at) for number in numbers for at in range(len(page.unpacked(f"figures-{number}"))))
    assert sorted([*map(str, plain), *packed]) == variants
    assert packed and plain


def test_files_beside_a_report_are_written_with_it(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.write_run(run_record())
    page = tmp_path / "night.html"
    assert write_report(directory.path, output=page, limits=Limits(records=0)) == page
    assert "night-records.json" in page.read_text(encoding="utf-8")
    assert RunView.model_validate_json((tmp_path / "night-records.json").read_text()).cells == []
    (tmp_path / "nights-records.json").touch()
    write_report(directory.path, output=page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["night.html", "nights-records.json", "run"]


def test_a_link_to_a_file_beside_is_its_name_whatever_the_name_is(tmp_path: Path) -> None:
    stem = "javascript:night #3: a%20b?\"'&"
    page = Page(build_page(many_cells(1), stem=stem, limits=Limits(records=0)).html)
    links = [tag["href"] or "" for tag in page.all_tags("a")]
    assert f"{stem}-records.json" in {unquote(urlsplit(link).path).removeprefix("./") for link in links}
