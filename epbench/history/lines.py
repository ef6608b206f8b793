"""The lines of a history file, and the files of a store: append-only JSON, one file a scenario.

A file holds four kinds of lines. ``history`` comes first and names the schema and the scenario. ``cell`` and
``environment`` describe one each, once, under a short name that ``night`` lines use: one night is one cell of one run.
So a night takes a few hundred bytes, and what never changes is not written 365 times.

There is no index: a year of 50 cells is 18 250 lines, and reading them all takes less than a second.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from epbench.cells import digest
from epbench.errors import RunError
from epbench.wording import place, shown
from epbench.writing import writing

__all__ = [
    "HISTORY_SCHEMA",
    "CellLine",
    "EnvironmentLine",
    "HistoryFile",
    "HistoryLine",
    "Line",
    "NightLine",
    "append_lines",
    "history_files",
    "history_path",
    "read_history",
]

HISTORY_SCHEMA = 1
_SUFFIX = ".jsonl"


class HistoryLine(msgspec.Struct, frozen=True, tag_field="kind", tag="history"):
    """The first line of a file."""

    scenario: str
    schema_version: int = HISTORY_SCHEMA


class CellLine(msgspec.Struct, frozen=True, tag_field="kind", tag="cell"):
    """A cell, or a benchmark, which is a cell without settings whose layout is its name."""

    key: str
    cell: str
    layout: str
    mode: str = ""
    routing: str = ""
    world_size: int = 0
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}


class EnvironmentLine(msgspec.Struct, frozen=True, tag_field="kind", tag="environment"):
    """Machine and software of a run: what may explain a change."""

    key: str
    device: str
    device_name: str
    protocol: int
    torch: str
    world_size: int = 0
    driver: str | None = None
    cuda: str | None = None
    nccl: str | None = None
    python: str = ""
    code: str = ""
    machine: list[str] = []


class NightLine(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="night"):
    """One cell of one run: a value of every valid launch by metric, and counters."""

    run: str
    started: str
    cell: str
    environment: str
    outcome: str
    reason: str | None = None
    timings: dict[str, list[float]] = {}
    counters: dict[str, float] = {}

    @property
    def night(self) -> tuple[str, str, str]:
        """What tells nights apart; a run's name alone does not where directories were copied under one name."""
        return self.run, self.started, self.cell


Line = HistoryLine | CellLine | EnvironmentLine | NightLine


@dataclass(frozen=True)
class HistoryFile:
    """What a file holds; a second line of one key, or of one night, is as if it were not there."""

    scenario: str
    cells: dict[str, CellLine] = field(default_factory=dict)
    environments: dict[str, EnvironmentLine] = field(default_factory=dict)
    nights: dict[tuple[str, str, str], NightLine] = field(default_factory=dict)  # by their key
    damaged: int = 0  # lines that could not be read: torn, or of a merge


def history_path(store: Path, scenario: str) -> Path:
    """The file of a scenario; a name that is no plain file name is told apart by its digest."""
    plain = re.sub(r"[^a-zA-Z0-9._-]", "-", scenario).lstrip(".")[:64]
    return store / (f"{plain}{_SUFFIX}" if plain == scenario else f"{plain}-{digest(scenario)[:6]}{_SUFFIX}")


def history_files(store: Path) -> list[Path]:
    """All files of a store. Raises RunError if there is no such directory."""
    if not store.is_dir():
        raise RunError(f"there is no history '{place(store)}'; make one with: epbench history add RUN --store DIR")
    return sorted(path for path in store.iterdir() if path.suffix == _SUFFIX and path.is_file())


def read_history(path: Path) -> HistoryFile:
    """Everything that a file says. Raises RunError if it cannot be read, is no history or is of another schema."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"'{place(path)}' cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    lines = list(_decoded(content))
    head = next((line for line in lines if line is not None), None)
    if not isinstance(head, HistoryLine):
        raise RunError(f"'{place(path)}' is no history: its first line does not say so; give --store another directory")
    if head.schema_version != HISTORY_SCHEMA:
        version = shown(head.schema_version)
        raise RunError(f"'{place(path)}' is of schema {version}; this epbench reads schema {HISTORY_SCHEMA}")
    return _gathered(head.scenario, lines)


def _decoded(content: bytes) -> Iterator[Line | None]:
    """Each line, or None for one that is none."""
    decoder = msgspec.json.Decoder(Line)
    for text in filter(bytes.strip, content.splitlines()):
        try:
            yield decoder.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            yield None


def _gathered(scenario: str, lines: Iterable[Line | None]) -> HistoryFile:
    found = HistoryFile(scenario)
    damaged = 0
    for line in lines:
        match line:
            case None:
                damaged += 1
            case CellLine():
                found.cells.setdefault(line.key, line)
            case EnvironmentLine():
                found.environments.setdefault(line.key, line)
            case NightLine():
                found.nights.setdefault(line.night, line)
    known = {
        key: night
        for key, night in found.nights.items()
        if night.cell in found.cells and night.environment in found.environments
    }
    orphans = len(found.nights) - len(known)
    return HistoryFile(scenario, found.cells, found.environments, known, damaged + orphans)


def append_lines(path: Path, lines: Iterable[Line]) -> None:
    """Append lines in one piece, on disk when this returns. Raises StorageError."""
    encoder = msgspec.json.Encoder()
    content = b"".join(encoder.encode(line) + b"\n" for line in lines)
    with writing(path, num_bytes=len(content)), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            content = content if file.read(1) == b"\n" else b"\n" + content
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
