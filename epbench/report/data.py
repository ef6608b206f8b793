"""Everything that a report of one run is made from: its view, and what lies beside the results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from epbench.comm_records import CommRecord
from epbench.frames import read_timeline
from epbench.memory_records import MemoryTimeline
from epbench.records import ExpertCopies, RunView

__all__ = ["RunData", "read_run"]


@dataclass(frozen=True)
class RunData:
    """A run's view, and by cell id what its cells left in files of their own; a cell without one has no entry."""

    view: RunView
    timelines: Mapping[str, MemoryTimeline] = field(default_factory=dict)
    copies: Mapping[str, ExpertCopies] = field(default_factory=dict)
    comm: CommRecord | None = None
    path: Path | None = None  # of the run directory; None: the view did not come from one


def read_run(path: Path | str) -> RunData:
    """What the run directory at ``path`` holds; a file that is torn or missing is as if it had not been written.

    Raises RunError if there is no such run or it cannot be read.
    """
    from epbench.store import open_run, read_record

    run = open_run(path)
    view = run.view()
    places = {cell.cell: run.cell_path(cell.cell) for cell in view.cells}
    timelines = {cell: read_timeline(place) for cell, place in places.items()}
    copies = {cell: read_record(place / "routing.json", ExpertCopies) for cell, place in places.items()}
    return RunData(
        view,
        timelines={cell: found for cell, found in timelines.items() if found is not None},
        copies={cell: found for cell, found in copies.items() if found is not None},
        comm=read_record(run.path / "comm.json", CommRecord),
        path=run.path,
    )
