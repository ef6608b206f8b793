"""The JSON lines that a rank writes and the parent follows while they are written.

Each line has ``t`` (seconds since the epoch, of the rank's host) and ``kind``: ``phase`` (entered),
``beat`` (a step was issued), ``result`` (named, of one pass) or ``failure`` (what ended this rank). No line
ever holds NaN: a value that is not finite is null. A beat costs one ``write`` of some 60 bytes (about 5 us)
between steps.
"""

import dataclasses
import json
import math
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from epbench.runner.spec import PHASES
from epbench.writing import writing

__all__ = ["Failure", "RankLog", "RankState", "RankTail"]


class RankLog:
    """The rank's end: every record reaches the file before the call returns, or raises StorageError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        self._phase = PHASES[0]

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        line = json.dumps({"t": time.time(), "kind": kind, **fields}, allow_nan=False).encode() + b"\n"
        with writing(self._path, num_bytes=len(line)):
            while line:  # a disk that is almost full takes a part of it
                line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Of a rank that lives on; an end of the process does it too."""
        os.close(self._descriptor)

    def phase(self, name: str, **fields: Any) -> None:
        """This rank enters a phase."""
        assert name in PHASES, f"no phase is named {name}"
        self._phase = name
        self._write("phase", {"phase": name} | plain(fields))

    def beat(self, phase: str, step: int) -> None:
        """Step ``step`` of ``phase`` was issued; enters the phase if it is new."""
        if phase != self._phase:
            self.phase(phase)
        self._write("beat", {"step": step})

    def result(self, name: str, value: Any) -> None:
        """What one pass measured."""
        self._write("result", {"name": name, "value": plain(value)})

    def failure(self, error: BaseException) -> None:
        """What ended this rank."""
        text = "".join(traceback.format_exception(error))
        fields = {
            "phase": self._phase,
            "type": type(error).__name__,
            "message": str(error),
            "traceback": text,
        }
        self._write("failure", fields)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: records and dataclasses as objects, what is not finite as null."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)


@dataclass(frozen=True)
class Failure:
    """What a rank said of its own end."""

    time_s: float
    phase: str
    kind: str
    message: str
    traceback: str


@dataclass(frozen=True)
class RankState:
    """How far one rank is known to have come."""

    rank: int
    phase: str = PHASES[0]
    step: int | None = None
    process_id: int | None = None
    failure: Failure | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Sorts ranks by how far they are."""
        return (PHASES.index(self.phase), -1 if self.step is None else self.step)

    @property
    def done(self) -> bool:
        """Whether this rank finished all that was asked."""
        return self.phase == "done"


_FIELDS = {
    "phase": {"phase"},
    "beat": {"step"},
    "result": {"name", "value"},
    "failure": {"phase", "type", "message", "traceback"},
}


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if a rank cannot have written it."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not _FIELDS.get(str(found.get("kind")), {None}) <= found.keys() - {"t"}:
        return None
    known = found.get("phase", PHASES[0]) in PHASES and isinstance(found.get("step", 0), int)
    return found if known and isinstance(found.get("t"), float | int) else None


class RankTail:
    """The parent's end: follows one rank's file from where it stopped reading."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path = path
        self._offset = 0
        self.state = RankState(rank)
        self.damaged = False  # there was a whole line that is no record
        self.results: dict[str, Any] = {}
        self.started: dict[str, Any] = {}
        self.entered: dict[str, float] = {}  # phase -> when, by the rank's clock
        self.reported: dict[str, float] = {}  # result -> when

    def poll(self) -> bool:
        """Read what was written since; whether there was a whole new record."""
        records = self._new_records()
        for record in records:
            self._take(record)
        return bool(records)

    def _new_records(self) -> list[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        records = [_record(line) for line in whole.splitlines()]
        self.damaged |= None in records
        return [record for record in records if record is not None]

    def _take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "phase":
            self._enter(record)
        elif record["kind"] == "beat":
            self.state = dataclasses.replace(self.state, step=record["step"])
        elif record["kind"] == "result":
            self.results[record["name"]] = record["value"]
            self.reported[record["name"]] = record["t"]
        else:
            failure = Failure(record["t"], record["phase"], record["type"], record["message"], record["traceback"])
            self.state = dataclasses.replace(self.state, failure=failure)

    def _enter(self, record: dict[str, Any]) -> None:
        self.state = dataclasses.replace(self.state, phase=record["phase"], step=None)
        self.entered.setdefault(record["phase"], record["t"])
        if record["phase"] == "start":
            self.started = record
            self.state = dataclasses.replace(self.state, process_id=record.get("process_id"))
