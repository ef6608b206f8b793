"""Run directories: the only place that a run writes to, and the way back from one to what ``show`` prints.

``result.json`` of a cell is written last, by rename, so that its presence means "complete"; a file that is
torn or of another schema counts as absent and the cell as not run, which its row and a warning say. Nothing here
imports torch.
"""

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from epbench.cells import Cell, Frozen, digest
from epbench.errors import RunError, StorageError
from epbench.records import SCHEMA_VERSION, CellResult, RunRecord, RunView
from epbench.wording import shown
from epbench.writing import IMPOSSIBLE_PATH, append_line, replace_file, write_atomically, writing

__all__ = [
    "CellEntry",
    "RunDirectory",
    "create_run",
    "create_run_at",
    "make_directory",
    "new_path",
    "open_run",
    "read_json",
    "read_record",
    "result_of",
    "write_atomically",
    "write_record",
]

_NAME_OF_RUN = re.compile(r"\d{8}T\d{6}Z-.+-[0-9a-f]{4}")
_CELL_ID = re.compile(r"[a-z0-9._-]{1,200}")
_TWO_ARMS = "arms.json"  # of a directory whose runs are one level further down (epbench.ab_records)
_SHOWN_CHARACTERS = 80
_SEAL = "sha256"  # key of a record's digest in its file

Record = TypeVar("Record", bound=Frozen)


class CellEntry(Frozen):
    """``cell.json``: one planned cell, its place in the plan, and what its result will depend on."""

    schema_version: int = SCHEMA_VERSION
    order: int = Field(ge=0)
    cell: Cell
    skip_reason: str | None = None
    world_size: int | None = Field(None, description="asked for, where an illegal layout spans another number")
    varied: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Paths are made of cell ids only, which hold no separators."""

    path: Path

    @property
    def name(self) -> str:
        """What the run is called in baselines and histories: its directory, of an arm of an A/B with that of both."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if (path.parent / _TWO_ARMS).is_file() else path.name

    @property
    def record(self) -> RunRecord:
        """``run.json``; raises RunError when it is missing, torn or of another schema."""
        return _read_run(self.path)

    def cell_path(self, cell_id: str) -> Path:
        """Directory of one cell; raises RunError for anything that is not a cell id."""
        if not _CELL_ID.fullmatch(cell_id) or cell_id in {".", ".."}:
            raise RunError(f"'{_shortened(cell_id)}' is not the id of a cell")
        return self.path / "cells" / cell_id

    def entries(self) -> dict[str, CellEntry]:
        """All planned cells by their id, in the order of the plan.

        A cell is called what its directory is called: a version whose cells had fewer settings made another id of it.
        """
        paths = [path for path in self.path.glob("cells/*/cell.json") if _CELL_ID.fullmatch(path.parent.name)]
        found = {path.parent.name: read_record(path, CellEntry) for path in paths}
        planned = {cell_id: entry for cell_id, entry in found.items() if entry}
        return dict(sorted(planned.items(), key=lambda item: (item[1].order, item[0])))

    def view(self) -> RunView:
        """Every planned cell: its result, or its plan where it has none yet; then cells whose plan cannot be read."""
        record, entries = self.record, self.entries()
        results = {cell_id: self.read_result(cell_id) for cell_id in self._cell_ids()}
        damaged = self._unreadable({"cell.json": entries, "result.json": results})
        planned = [results.get(cell_id) or _not_run(cell_id, entry, damaged) for cell_id, entry in entries.items()]
        return RunView(
            run=record,
            protocol=record.protocol,
            environment=record.environment,
            cells=planned + [row for cell_id, row in results.items() if row and cell_id not in entries],
            damaged=damaged,
        )

    def _cell_ids(self) -> list[str]:
        """Cells that have a directory."""
        return sorted(path.name for path in self.path.glob("cells/*") if _CELL_ID.fullmatch(path.name))

    def _unreadable(self, found: Mapping[str, Mapping[str, object]]) -> list[str]:
        """Files of cells that are there, but not in what was ``found`` of each name."""
        return [
            f"cells/{cell_id}/{name}"
            for cell_id in self._cell_ids()
            for name, records in found.items()
            if records.get(cell_id) is None and (self.cell_path(cell_id) / name).exists()
        ]

    def write_cell(self, entry: CellEntry) -> None:
        """Plan one cell."""
        write_record(self.cell_path(entry.cell.id) / "cell.json", entry)

    def write_result(self, result: CellResult) -> None:
        """Complete one cell: the last thing that is written of it."""
        write_record(self.cell_path(result.cell) / "result.json", result)

    def read_result(self, cell_id: str) -> CellResult | None:
        """The result of one cell, or None while there is none that can be trusted."""
        result = read_record(self.cell_path(cell_id) / "result.json", CellResult)
        return result if result and result.cell == cell_id else None

    def event(self, event: dict[str, Any]) -> None:
        """Append one line with its time (UTC) to ``events.jsonl``."""
        line = json.dumps({"time": datetime.now(UTC).isoformat()} | event, allow_nan=False)
        append_line(self.path / "events.jsonl", line)

    def write_run(self, record: RunRecord) -> None:
        """Write ``run.json``."""
        write_record(self.path / "run.json", record)


def result_of(entry: CellEntry) -> CellResult:
    """A planned cell as a row without numbers: ``skipped`` with its reason, or not run yet (outcome None)."""
    cell = entry.cell
    return CellResult(
        cell=cell.id,
        layout=cell.layout.slug,
        mode=cell.mode,
        routing=cell.routing,
        model=cell.model.model_dump(mode="json"),
        train=cell.train.model_dump(mode="json"),
        varied=entry.varied,
        outcome="skipped" if entry.skip_reason else None,
        reason=entry.skip_reason or "not run yet",
        world_size=entry.world_size or cell.world_size,
    )


def _not_run(cell_id: str, entry: CellEntry, damaged: Sequence[str]) -> CellResult:
    """The row of a cell without a result, with the settings that its file names and no others."""
    changes = entry.cell.model_dump(mode="json", include={"model", "train"}, exclude_unset=True) | {"cell": cell_id}
    if f"cells/{cell_id}/result.json" in damaged and entry.skip_reason is None:
        changes["reason"] = "result.json is damaged"
    return result_of(entry).model_copy(update=changes)


def create_run(reports_dir: Path, record: RunRecord, scenario_text: str) -> RunDirectory:
    """A new directory ``<20261122T101500Z>-<scenario>-<4 hex>`` with ``run.json`` and ``scenario.toml``.

    Raises RunError when it cannot be there (a file in the way), StorageError when it cannot be written.
    """
    return create_run_at(new_path(reports_dir, record.name, record.started), record, scenario_text)


def new_path(reports_dir: Path, name: str, started: str) -> Path:
    """A name for a new directory that nothing has: when, what, and four random digits."""
    stamp = datetime.fromisoformat(started).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    plain = re.sub(r"[^a-zA-Z0-9._-]", "-", name)[:64]
    return reports_dir / f"{stamp}-{plain}-{secrets.token_hex(2)}"


def create_run_at(path: Path, record: RunRecord, scenario_text: str) -> RunDirectory:
    """As :func:`create_run`, at a path of the caller's, where nothing is yet."""
    with writing(path):
        make_directory(path)
    run = RunDirectory(path)
    try:
        replace_file(path / "scenario.toml", scenario_text.encode())
        run.write_run(record)
    except StorageError:
        shutil.rmtree(path, ignore_errors=True)  # it holds nothing yet, and could not be resumed
        raise
    return run


def make_directory(path: Path) -> None:
    """Make the directory of a run, where nothing is yet; raises RunError if its path cannot be one."""
    try:
        path.mkdir(parents=True)
    except OSError as error:
        if error.errno not in IMPOSSIBLE_PATH:
            raise
        raise RunError(f"cannot make the run directory under '{path.parent}': {error.strerror}") from None


def open_run(name: Path | str, *, reports_dir: Path = Path("reports")) -> RunDirectory:
    """The run at a path, with a (unique start of a) name under ``reports_dir``, or the ``latest`` there.

    Raises RunError in one sentence when there is none, several, or one that cannot be read.
    """
    text = str(name)
    if _is_directory(Path(text)):
        path = Path(text)
    elif text == "latest":
        path = _latest(reports_dir)
    else:
        path = _named(text, reports_dir)
    _read_run(path)
    return RunDirectory(path)


def _read_run(path: Path) -> RunRecord:
    file = path / "run.json"
    found = read_json(file)
    if found is None and (path / _TWO_ARMS).is_file():
        raise RunError(f"'{_shortened(str(path))}' holds the two runs of an A/B: give its base or its head")
    if found is None:
        raise RunError(f"'{_shortened(str(path))}' is no run directory: it has no readable run.json")
    if not _is_whole(found):
        raise RunError(f"'{file}' is damaged: it is not what was written; run the scenario again")
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RunError(f"'{file}' is of schema {shown(version)}; this epbench reads schema {SCHEMA_VERSION}")
    try:
        return RunRecord.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise RunError(f"'{file}' is damaged at {shown(where)}; run the scenario again") from None


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _runs(reports_dir: Path) -> Iterator[Path]:
    if reports_dir.is_dir():
        named = (path for path in reports_dir.iterdir() if _NAME_OF_RUN.fullmatch(path.name))
        yield from sorted(path for path in named if not (path / _TWO_ARMS).is_file())


def _latest(reports_dir: Path) -> Path:
    runs = list(_runs(reports_dir))
    if not runs:
        raise RunError(f"there is no run under '{reports_dir}'; make one with: epbench run SCENARIO")
    return runs[-1]


def _named(text: str, reports_dir: Path) -> Path:
    matches = [path for path in _runs(reports_dir) if text and text in path.name]
    exact = [path for path in matches if path.name == text]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        raise RunError(f"'{_shortened(text)}' fits {len(matches)} runs under '{reports_dir}': give more of its name")
    raise RunError(f"there is no run '{_shortened(text)}', neither as a path nor under '{reports_dir}'")


def _shortened(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= _SHOWN_CHARACTERS else printable[:_SHOWN_CHARACTERS] + "..."


def write_record(path: Path, record: Frozen) -> None:
    """Write a record with a digest of its contents, so that a flipped digit in it is noticed. Raises StorageError."""
    content = json.loads(record.model_dump_json())
    write_atomically(path, json.dumps(content | {_SEAL: digest(content)}, indent=2))


def _is_whole(found: dict[str, Any]) -> bool:
    """Takes the digest off what was read; False if the contents are not those that were written.

    A file of a version that wrote no digest has none to fit.
    """
    seal = found.pop(_SEAL, None)
    return seal is None or seal == digest(found)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None if there is no whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """A record of ``kind``, or None if the file is absent, torn, changed or of another schema."""
    found = read_json(path)
    if found is None or not _is_whole(found):
        return None
    try:
        return kind.model_validate(found)
    except ValidationError:
        return None
