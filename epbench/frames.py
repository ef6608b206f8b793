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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epbench.comm_records import CommRecord, Swept
from epbench.memory_records import MemoryTimeline
from epbench.records import CellResult, EnvironmentRecord, RunRecord, RunView

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunFrames", "cells_csv", "collectives_csv", "frames_of", "launches_csv", "load"]

_NAMES = ("cell", "layout", "mode", "routing")
_NESTED = (
    "launch_values",
    "collectives",
    "all_to_all",
)  # frames of their own; all_to_all is part of collectives


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
    import pandas as pd

    return RunFrames(
        run=view.run,
        environment=view.environment,
        cells=pd.DataFrame.from_records(list(_rows(view))),
        launches=pd.DataFrame.from_records(list(_launches(view))),
        collectives=pd.DataFrame.from_records(list(_collectives(view))),
        gpus=pd.DataFrame.from_records(list(_gpus(view))),
        memory=pd.DataFrame.from_records(list(_timelines(view, timelines or {}))),
        comm=pd.DataFrame.from_records([row for swept in (comm.swept if comm else ()) for row in _swept(swept)]),
    )


def cells_csv(view: RunView) -> str:
    """The ``cells`` frame as CSV with a header line; missing values are empty."""
    return _csv(_rows(view))


def launches_csv(view: RunView) -> str:
    """The ``launches`` frame likewise."""
    return _csv(_launches(view))


def collectives_csv(view: RunView) -> str:
    """The ``collectives`` frame likewise, with nested values as dotted columns."""
    return _csv(map(_flat, _collectives(view)))


def _csv(found: Iterable[Mapping[str, Any]]) -> str:
    rows = list(found)
    file = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


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
