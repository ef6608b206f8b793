"""Made-up runs of one scenario, night after night: what baselines and histories are tested with."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from epbench.cells import Cell
from epbench.records import Breakdown, CellResult, EnvironmentRecord, LaunchValue, RunView
from epbench.store import CellEntry, RunDirectory, create_run
from tests.report.sample import DP4, DP4_EP4, environment, measured_cell, run_record, unmeasured_cell

__all__ = ["CELL", "EP_CELL", "night_cell", "night_run", "night_view", "started"]

CELL, EP_CELL = Cell(layout=DP4), Cell(layout=DP4_EP4)
_FIRST = datetime(2026, 9, 1, 2, 30, tzinfo=UTC)
_PATTERN = (1.0, 0.994, 1.006, 1.003, 0.997)  # of launches: median 1
_HOST = {"names": ["host-a"], "gpu_uuids": ["GPU-1a2b3c4d-0000", "GPU-5e6f7a8b-0000"]}


def started(night: int) -> str:
    """When a night's run began."""
    return (_FIRST + timedelta(days=night)).isoformat()


def night_cell(work_s: float, *, cell: Cell = CELL, launches: int = 5, **fields: Any) -> CellResult:
    """A measured cell with a device work of ``work_s`` and a step that is 10 % longer."""
    values = [
        LaunchValue(
            index=index,
            order=index,
            step_s=1.1 * work_s * factor,
            device_work_s=work_s * factor,
            exposed_s=0.1 * work_s * factor,
            transfers_s={"all_to_all/dispatch/forward/ep": 0.01 * work_s * factor} if cell.layout.ep > 1 else {},
            host=_HOST,
        )
        for index, factor in enumerate(_PATTERN[:launches])
    ]
    found: dict[str, Any] = {
        "launch_values": values,
        "launches": launches,
        "breakdown_s": Breakdown(step_s=1.2 * work_s),
    }
    found["peak_allocated_bytes"] = 40 * 2**30
    return measured_cell(cell, 1.1 * work_s, **(found | fields))


def failed_cell(outcome: str, reason: str, cell: Cell = CELL) -> CellResult:
    """One without a number."""
    return unmeasured_cell(cell, outcome, reason)


def night_view(night: int, *cells: CellResult, machine: EnvironmentRecord | None = None, **fields: Any) -> RunView:
    """The run of a night."""
    kept: dict[str, Any] = {"started": started(night), "environment": machine or environment()}
    record = run_record(**(kept | fields))
    return RunView(run=record, protocol=record.protocol, environment=record.environment, cells=list(cells))


def night_run(reports: Path, view: RunView) -> RunDirectory:
    """The same as a run directory."""
    run = create_run(reports, view.run, "")
    for order, result in enumerate(view.cells):
        run.write_cell(CellEntry(order=order, cell=EP_CELL if result.layout == EP_CELL.layout.slug else CELL))
        run.write_result(result)
    return run
