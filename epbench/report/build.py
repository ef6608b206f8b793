"""One run as one HTML file that opens from disk, without a network, years from now.

The page holds everything: its script, its style, plotly's library (from the installed wheel, gzip + base64,
1.9 MB) and the run's records. Every text of the run is escaped. Behind that stands a content security policy, which
refuses every request, every form and every script but the two that are meant, which it knows by their digests; what
a policy in a page cannot refuse is that the page is left, so against a link or a refresh the escaping stands alone.
Verdict, tables and reasons are plain HTML and need no script at all.
"""

import errno
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epbench.errors import RunError, StorageError
from epbench.frames import cells_csv
from epbench.records import RunView
from epbench.report.comparison import Compared
from epbench.report.data import RunData, read_run
from epbench.report.page import Limits, page_parts
from epbench.report.sections.model import Section
from epbench.wording import shown
from epbench.writing import IMPOSSIBLE_PATH, replace_file, writing

__all__ = ["Page", "build_html", "build_page", "write_csv", "write_report"]


def write_report(
    run_path: Path,
    *,
    output: Path | None = None,
    leading: tuple[Section, ...] = (),
    limits: Limits | None = None,
) -> Path:
    """Write the report of a run, by default to ``report.html`` in its directory, and return its path.

    What is too large for one file is written beside it, and said on the page with its name; what an earlier page of
    this name had beside it is removed.

    Raises RunError if the run cannot be read or the file cannot be there, StorageError if it cannot be written.
    """
    run = read_run(run_path)
    assert run.path is not None
    path = output or run.path / "report.html"
    _refuse_impossible(path)
    whole = Limits(records=math.inf, cell_charts=math.inf)  # for what is no plain file, such as a pipe
    is_special = _is_special(path)
    page = build_page(run, leading=leading, stem=path.stem, limits=whole if is_special else limits)
    try:
        for name, text in page.beside.items():
            _write(path.with_name(name), text)
        _write(path, page.html)
        if not is_special:
            _remove([path.with_name(name) for name in _beside(path.stem) if name not in page.beside])
        return path
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
    _refuse_impossible(path)
    if _is_special(path):
        with writing(path, num_bytes=len(text)):
            path.write_text(text, encoding="utf-8")
    else:
        replace_file(path, text.encode())
    return path


def _remove(stale: Iterable[Path]) -> None:
    """Files that belonged to a page that is no more: they are of other records than the page beside them."""
    for path in stale:
        with writing(path):
            path.unlink(missing_ok=True)


def _beside(stem: str) -> tuple[str, str]:
    """Names of the files that a page may have beside it: charts of single cells, and records."""
    return f"{stem}-cells.html", f"{stem}-records.json"


def _refuse_impossible(path: Path) -> None:
    """Raises RunError where no file can be, StorageError where the system does not let us look."""
    with writing(path):
        obstacle = _obstacle(path)
    if obstacle:
        raise RunError(f"cannot write {shown(str(path), limit=200)}: {os.strerror(obstacle)}")


def _obstacle(path: Path) -> int:
    """Why no file can be at a path, as the system's number of that error; 0 if one can be."""
    try:
        if not stat.S_ISDIR(path.parent.stat().st_mode):
            return errno.ENOTDIR
        return errno.EISDIR if path.is_dir() else 0
    except OSError as error:
        if error.errno not in IMPOSSIBLE_PATH | {errno.ENOENT}:
            raise
        return error.errno


def _is_special(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_file())


@dataclass(frozen=True)
class Page:
    """A report, and the files that belong beside it: their text by name."""

    html: str
    beside: Mapping[str, str]


def build_html(run: RunView | RunData, *, leading: tuple[Section, ...] = ()) -> str:
    """The report of a run as one self-contained page; ``leading`` sections stand before the table of cells."""
    return build_page(run, leading=leading).html


def build_page(
    run: RunView | RunData, *, leading: tuple[Section, ...] = (), stem: str = "report", limits: Limits | None = None
) -> Page:
    """The report of a run named ``stem``, with what is too large for one file in files beside it."""
    parts = page_parts(Compared.of(run), leading=leading, stem=stem, limits=limits or Limits())
    texts = (_rendered(parts.cells) if parts.cells is not None else None, parts.records)
    beside = {name: text for name, text in zip(_beside(stem), texts, strict=True) if text is not None}
    return Page(_rendered(parts.main), beside)


def _rendered(variables: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(**variables)
