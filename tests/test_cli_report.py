"""``epbench compare``, and ``epbench report`` of several runs: what they print, write and refuse."""

import json
import os
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest

from epbench.cells import Cell
from epbench.store import CellEntry, create_run
from tests.command_line import epbench
from tests.report.sample import DP4, DP4_EP4, measured_cell, run_record

REPOSITORY = Path(__file__).parents[1]


def finished_run(steps_s: dict[str, float], *, started: str, protocol: int | None = None) -> str:
    """A run directory with one result a layout; returns its path."""
    record = run_record(started=started)
    if protocol is not None:
        record = record.model_copy(update={"protocol": protocol})
    run = create_run(Path("reports"), record, "")
    for order, layout in enumerate((DP4, DP4_EP4)):
        if layout.slug in steps_s:
            cell = Cell(layout=layout)
            run.write_cell(CellEntry(order=order, cell=cell))
            run.write_result(measured_cell(cell, steps_s[layout.slug]))
    return str(run.path)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Monday's and Tuesday's: dp4 became 25 % slower."""
    monkeypatch.chdir(tmp_path)
    monday = finished_run({"dp4": 0.4, "dp4-ep4": 0.3}, started="2026-11-23T10:15:00Z")
    return monday, finished_run({"dp4": 0.5, "dp4-ep4": 0.3}, started="2026-11-24T10:15:00Z")


def test_compare_prints_the_change_then_the_last_run_and_what_is_next(runs: tuple[str, str]) -> None:
    result = epbench("compare", *runs)
    assert result.exit_code == 0
    assert "1 cell is slower, dp4 eager (-20.0 % [" in result.stdout
    assert result.stdout.splitlines()[-1] == runs[1]
    assert result.stderr == f"next: epbench report {runs[0]} {runs[1]} --compare\n"


def test_compare_json_is_one_document(runs: tuple[str, str]) -> None:
    result = epbench("compare", *runs, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [cell["verdict"] for cell in json.loads(result.stdout)["cells"]] == ["slower", "no difference"]


def test_report_of_several_runs_is_a_page_each(runs: tuple[str, str]) -> None:
    result = epbench("report", *runs)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{run}/report.html" for run in runs]
    assert all("Compared with" not in Path(page).read_text("utf-8") for page in result.stdout.splitlines())


def test_report_compare_is_one_page_of_the_last_run(runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def no_browser(address: str) -> bool:
        opened.append(address)
        return False

    monkeypatch.setattr(webbrowser, "open", no_browser)
    result = epbench("report", *runs, "--compare", "--output", "page.html", "--csv", "cells.csv", "--open")
    assert (result.exit_code, result.stdout) == (0, "page.html\n")
    assert opened == [Path("page.html").resolve().as_uri()]
    assert result.stderr.splitlines() == [
        "wrote cells.csv",
        "there is no browser here to open page.html with",
        f"next: epbench show {runs[1]}",
    ]
    page = Path("page.html").read_text("utf-8")
    assert (
        page.index("Verdict</h2>")
        < page.index(f"Compared with {Path(runs[0]).name}</h2>")
        < page.index("All cells</h2>")
    )


def test_what_the_browser_says_is_not_in_stdout(runs: tuple[str, str], tmp_path: Path) -> None:
    talks = tmp_path / "talks"
    talks.write_text("#!/bin/sh\necho opening\n")
    talks.chmod(0o755)
    command = [sys.executable, "-m", "epbench", "report", runs[0], "--open"]
    environment = os.environ | {"BROWSER": str(talks), "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout == f"{runs[0]}/report.html\n"
    assert "opening\n" in found.stderr


def test_markdown_goes_to_stdout_and_no_page_is_written(runs: tuple[str, str]) -> None:
    result = epbench("report", *runs, "--compare", "--md")
    assert result.exit_code == 0
    assert result.stdout.startswith("## made-up-sizes\n") and "### Compared with" in result.stdout
    assert result.stderr == f"next: epbench show {runs[1]}\n"
    assert not list(Path("reports").glob("*/report.html"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "0"], "a comparison needs two runs or more"),
        (["compare", "0", "0"], "a run is given twice"),
        (["compare", "0", "none-such"], "there is no run 'none-such'"),
        (["compare", "0", "other"], "is of protocol 2"),
        (["report", "0", "other", "--compare"], "are never compared"),
        (["report", "0", "--compare"], "--compare needs two runs or more"),
        (["report", "0", "1", "--output", "x.html"], "--output and --csv name one file"),
        (["report", "0", "1", "--csv", "x.csv"], "--output and --csv name one file"),
        (["report", "0", "--output", "x.html", "--csv", "./x.html"], "--output and --csv name the same file"),
        (["report", "0", "--output", "x" * 300], "File name too long"),
        (["report", "0", "--csv", "x" * 300], "File name too long"),
        (["report", "0", "--output", "/dev/null/x.html"], "Not a directory"),
        (["report", "0", "--md", "--open"], "--md prints and writes no page"),
        (["report", "0", "--md", "--output", "x.html"], "--md prints and writes no page"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_one_sentence(runs: tuple[str, str], arguments: list[str], sentence: str) -> None:
    names = {"0": runs[0], "1": runs[1]}
    if "other" in arguments:
        names["other"] = finished_run({"dp4": 0.4}, started="2026-11-25T10:15:00Z", protocol=2)
    result = epbench(*(names.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr and result.stderr.count("\n") == 1
