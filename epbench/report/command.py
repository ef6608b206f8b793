"""What ``epbench report`` makes of one run or of several: a page each, one page that compares them, or markdown."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epbench.errors import ScenarioError
from epbench.report.build import write_csv, write_report
from epbench.report.data import read_run
from epbench.report.gate.section import verdict_markdown, verdict_section
from epbench.report.markdown import markdown_report
from epbench.report.runs import ComparedRuns, compared_runs
from epbench.report.sections.change import change_section
from epbench.report.sections.history import history_section
from epbench.report.sections.model import Section

__all__ = ["ReportOptions", "compare_paths", "markdown_of", "write_pages"]


@dataclass(frozen=True)
class ReportOptions:
    """What was asked for. ``is_compared``: all runs on one page, that of the last."""

    is_compared: bool = False
    is_markdown: bool = False
    is_opened: bool = False
    output: Path | None = None
    csv: Path | None = None
    history: Path | None = None  # a store of nights to draw on the page

    def check(self, count: int) -> None:
        """Raises ScenarioError for options that contradict each other or the number of runs."""
        if self.is_compared and count < 2:
            raise ScenarioError("--compare needs two runs or more: epbench report OLD NEW --compare")
        if self.is_markdown and (self.output is not None or self.is_opened):
            raise ScenarioError("--md prints and writes no page, so it goes with neither --output nor --open")
        if self.is_markdown and self.history is not None:
            raise ScenarioError("--history draws charts, which --md has none of: epbench history show prints its table")
        if count > 1 and not self.is_compared and (self.output is not None or self.csv is not None):
            raise ScenarioError("--output and --csv name one file: give one run, or several with --compare")
        if self.output is not None and self.csv is not None and _is_same_file(self.output, self.csv):
            raise ScenarioError("--output and --csv name the same file: a page and its cells need one each")


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether what is written to one replaces the other; a pipe or a terminal takes both."""
    is_special = one.exists() and not one.is_file()
    return os.path.realpath(one) == os.path.realpath(other) and not is_special


def compare_paths(paths: Sequence[Path]) -> ComparedRuns:
    """The runs at ``paths``, oldest first; raises RunError as ``compared_runs`` and ``read_run`` do."""
    return compared_runs([read_run(path) for path in paths])


def write_pages(paths: Sequence[Path], options: ReportOptions) -> list[Path]:
    """Write a page for each run, or one for all of them, and the CSV of the (last) run if asked; returns the pages.

    Raises RunError if a run cannot be read or the runs cannot be compared, StorageError if a file cannot be written.
    """
    shown = paths[-1:] if options.is_compared else paths
    compared = (change_section(compare_paths(paths)),) if options.is_compared else ()
    pages = [
        write_report(path, output=options.output, leading=(*_verdict(path), *compared, *_nights(path, options)))
        for path in shown
    ]
    _write_csv(shown, options)
    return pages


def _verdict(path: Path) -> tuple[Section, ...]:
    found = verdict_section(path)
    return () if found is None else (found,)


def _nights(path: Path, options: ReportOptions) -> tuple[Section, ...]:
    return () if options.history is None else (history_section(read_run(path), options.history),)


def markdown_of(paths: Sequence[Path], options: ReportOptions) -> str:
    """The same as markdown, and the CSV if asked; raises as ``write_pages`` does."""
    _write_csv(paths[-1:], options)
    if not options.is_compared:
        return "\n".join(_after_verdict(path, markdown_report(read_run(path))) for path in paths)
    compared = compare_paths(paths)
    return _after_verdict(paths[-1], markdown_report(compared.runs[-1], changes=compared))


def _after_verdict(path: Path, text: str) -> str:
    verdict = verdict_markdown(path)
    return f"{verdict}\n{text}" if verdict else text


def _write_csv(paths: Sequence[Path], options: ReportOptions) -> None:
    if options.csv is not None:
        write_csv(paths[-1], options.csv)
