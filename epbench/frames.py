"""A run as tidy pandas frames: one row one observation, one column one quantity with its unit in its name.

>>> import epbench
>>> run = epbench.load("reports/20261122T101500Z-quick-1a2b")
>>> run.cells.query("outcome == 'ok'").sort_values("step_s")[["layout", "mode", "step_s"]]

``cells`` has one row a cell of the scenario, failed and skipped ones included; nested records become columns
joined by a dot (``verify.grad_error``, ``model.num_experts``, ``memory_bytes.params``). ``launches`` has one
row a launch, ``collectives`` one row a cell x op x purpose x phase x axis, ``memory`` the timeline of a step of each
cell's worst rank: lowest and highest allocated bytes from each ``time_s`` to the next. All carry ``cell``, ``layout``,
``mode`` and ``routing``, so that they need no join for most questions. ``comm`` is of no cell: collectives alone, one
row a set of groups (``{0, 1} {2, 3}``) x op x way x size, ``axes`` being those that make the groups. Seconds and bytes
throughout; what a device could not give is missing, never zero.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from epbench.cells import Cell
from epbench.comm_records import CommPoint, CommRecord, Swept
from epbench.layout import Layout
from epbench.memory_records import MemoryTimeline
from epbench.records import CellResult, CollectiveRow, EnvironmentRecord, GpuTelemetry, LaunchValue, RunRecord, RunView

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunFrames", "cells_csv", "collectives_csv", "csv_text", "frames_of", "launches_csv", "load"]

_NAMES = ("cell", "layout", "mode", "routing")
_NESTED = (
    "launch_values",
    "collectives",
    "all_to_all",
)  # frames of their own; all_to_all is part of collectives
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?")


def _columns(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Names of the columns that records of a kind become; tables with keys of their own have none."""
    for name, field in kind.model_fields.items():
        kinds = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
        nested = next((one for one in kinds if issubclass(one, BaseModel)), None)
        if nested is not None:
            yield from _columns(nested, f"{prefix}{name}.")
        elif get_origin(field.annotation) is not dict:
            yield f"{prefix}{name}"


_LAUNCHES = (*_NAMES, *(name for name in _columns(LaunchValue) if not name.startswith("telemetry.")))
_COLLECTIVES = (*_NAMES, *_columns(CollectiveRow))
_GPUS = (*_NAMES, "index", "gpu", *_columns(GpuTelemetry))
_MEMORY = (*_NAMES, "rank", "time_s", "low_bytes", "high_bytes")
_SPEEDS = ("algbw_bytes_per_s", "busbw_bytes_per_s")
_COMM = ("groups", "group_size", "axes", *_columns(CommPoint), *_SPEEDS)


@dataclass(frozen=True)
class RunFrames:
    """The frames of one run, with the records that say what was asked and on what machine."""

    run: RunRecord
    environment: EnvironmentRecord
    cells: "pd.DataFrame"
    launches: "pd.DataFrame"
    collectives: "pd.DataFrame"
    gpus: "pd.DataFrame"
    memory: "pd.DataFrame"
    comm: "pd.DataFrame"


def load(run: Path | str) -> RunFrames:
    """Frames of the run at a path, with a name under ``reports/``, or the ``latest`` there.

    Raises RunError if there is no such run or it cannot be read.
    """
    from epbench.store import open_run, read_record

    directory = open_run(run)
    view = directory.view()
    timelines = {cell.cell: read_timeline(directory.cell_path(cell.cell)) for cell in view.cells}
    return frames_of(view, timelines=timelines, comm=read_record(directory.path / "comm.json", CommRecord))


def read_timeline(cell_directory: Path) -> MemoryTimeline | None:
    """``memory.json`` of a cell; None if there is none that can be trusted."""
    from epbench.store import read_record

    return read_record(cell_directory / "memory.json", MemoryTimeline)


def frames_of(
    view: RunView,
    *,
    timelines: Mapping[str, MemoryTimeline | None] | None = None,
    comm: CommRecord | None = None,
) -> RunFrames:
    """Frames of a view; ``timelines`` are what lies beside the results, by cell, and ``comm`` beside all of them."""
    return RunFrames(
        run=view.run,
        environment=view.environment,
        cells=_frame(_rows(view), _cell_columns()),
        launches=_frame(_launches(view), _LAUNCHES),
        collectives=_frame(_collectives(view), _COLLECTIVES),
        gpus=_frame(_gpus(view), _GPUS),
        memory=_frame(_timelines(view, timelines or {}), _MEMORY),
        comm=_frame((row for swept in (comm.swept if comm else ()) for row in _swept(swept)), _COMM),
    )


def _frame(found: Iterable[Mapping[str, Any]], names: Iterable[str]) -> "pd.DataFrame":
    """Rows as a frame, which has columns of these names if there is no row."""
    import pandas as pd

    rows = list(found)
    return pd.DataFrame.from_records(rows) if rows else pd.DataFrame(columns=list(names), dtype=float)


def cells_csv(view: RunView) -> str:
    """The ``cells`` frame as CSV with a header line; missing values are empty.

    A text that a spreadsheet would calculate has an apostrophe before it, which the frames have not.
    """
    return csv_text(_rows(view), _cell_columns())


def launches_csv(view: RunView) -> str:
    """The ``launches`` frame likewise."""
    return csv_text(_launches(view), _LAUNCHES)


def collectives_csv(view: RunView) -> str:
    """The ``collectives`` frame likewise, with nested values as dotted columns."""
    return csv_text(map(_flat, _collectives(view)), _COLLECTIVES)


def csv_text(found: Iterable[Mapping[str, Any]], known: Iterable[str]) -> str:
    """Rows as CSV under the names of all of them, or under those that are ``known`` if there is no row; no formulas."""
    rows = list(found)
    file = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row)) or list(known)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_inert, names))
    writer.writerows([_inert(row.get(name)) for name in names] for row in rows)
    return file.getvalue()


def _inert(value: Any) -> Any:
    """The value, or a text that begins as a formula does with an apostrophe before it."""
    is_formula = isinstance(value, str) and value.startswith(_FORMULA) and not _are_numbers(value)
    return f"'{value}" if is_formula else value


def _are_numbers(text: str) -> bool:
    """Whether a text is a list of numbers, such as of losses."""
    return all(_NUMBER.fullmatch(word) for word in text.split(" "))


def _cell_columns() -> Iterable[str]:
    """Of a cell that was planned and did not run."""
    from epbench.store import CellEntry, result_of

    entry = CellEntry(order=0, cell=Cell(layout=Layout()))
    return _flat(result_of(entry).model_dump(exclude=set(_NESTED)))


def _rows(view: RunView) -> Iterable[dict[str, Any]]:
    for cell in view.cells:
        yield _flat(cell.model_dump(exclude=set(_NESTED)))


def _launches(view: RunView) -> Iterable[dict[str, Any]]:
    for cell in view.cells:
        for launch in cell.launch_values:
            yield _names(cell) | _flat(launch.model_dump(exclude={"telemetry"}))


def _collectives(view: RunView) -> Iterable[dict[str, Any]]:
    for cell in view.cells:
        yield from (_names(cell) | row.model_dump() for row in cell.collectives)


def _gpus(view: RunView) -> Iterable[dict[str, Any]]:
    """One row for each GPU of each launch that was watched: ``power_w.median`` and so on."""
    for cell in view.cells:
        for launch in cell.launch_values:
            for number, gpu in enumerate(launch.telemetry.gpus if launch.telemetry else ()):
                yield _names(cell) | {"index": launch.index, "gpu": number} | _flat(gpu.model_dump())


def _timelines(view: RunView, timelines: Mapping[str, MemoryTimeline | None]) -> Iterable[dict[str, Any]]:
    for cell in view.cells:
        timeline = timelines.get(cell.cell)
        if timeline is not None:
            for time_s, low, high in zip(timeline.time_s, timeline.low_bytes, timeline.high_bytes, strict=True):
                row = {"rank": timeline.rank, "time_s": time_s, "low_bytes": low, "high_bytes": high}
                yield _names(cell) | row


def _swept(swept: Swept) -> Iterable[dict[str, Any]]:
    """One row for each point of a sweep: ``seconds.median`` and so on."""
    groups = " ".join("{" + ", ".join(map(str, ranks)) + "}" for ranks in swept.partition.groups)
    whose = {"groups": groups, "group_size": swept.partition.group_size, "axes": " ".join(swept.partition.used_by)}
    for point in swept.points:
        speeds = {"algbw_bytes_per_s": point.algbw_bytes_per_s, "busbw_bytes_per_s": point.busbw_bytes_per_s}
        yield whose | _flat(point.model_dump(exclude={"group_s"})) | speeds


def _names(cell: CellResult) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in _NAMES}


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; lists (losses, varied keys) as text joined by spaces."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = " ".join(map(str, value))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
