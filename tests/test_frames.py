"""Tidy frames: one row one observation, units in the names, nothing lost and nothing invented."""

import csv
import io
import math
import subprocess
import sys
from pathlib import Path

import pytest

import epbench
from epbench.cells import Cell
from epbench.errors import RunError
from epbench.frames import cells_csv, frames_of
from epbench.memory_records import MemoryTimeline
from epbench.records import GpuTelemetry, Spread, Telemetry
from epbench.store import CellEntry, RunDirectory, write_record
from tests.report.sample import DP4, measured_cell, run_record, sample_view, unmeasured_cell, view_of


def test_cells_have_one_row_each_failed_ones_too() -> None:
    view = sample_view()
    cells = frames_of(view).cells
    assert list(cells["cell"]) == [cell.cell for cell in view.cells]
    assert set(cells["outcome"].dropna()) == {"ok", "oom", "wrong", "unstable", "crashed", "skipped"}
    assert cells["outcome"].isna().sum() == 1


def test_nested_records_are_dotted_columns() -> None:
    cells = frames_of(sample_view()).cells.set_index("cell")
    first = sample_view().cells[0]
    assert cells.loc[first.cell, "verify.grad_error"] == first.verify.grad_error
    assert cells.loc[first.cell, "model.num_experts"] == 128
    assert cells.loc[first.cell, "train.seq_len"] == 4096
    assert cells.loc[first.cell, "memory_bytes.params"] == 10 * 2**30
    assert cells.loc[first.cell, "step_s"] == first.step_s


def test_what_was_not_measured_is_missing() -> None:
    cells = frames_of(sample_view("cpu")).cells
    assert cells["mfu"].isna().all() and cells["peak_reserved_bytes"].isna().all()
    oom = cells[cells["outcome"] == "oom"].iloc[0]
    assert math.isnan(oom["step_s"])


def test_launches_and_collectives_carry_the_names_of_their_cell() -> None:
    view = sample_view()
    frames = frames_of(view)
    assert len(frames.launches) == sum(len(cell.launch_values) for cell in view.cells) == 33
    assert len(frames.collectives) == sum(len(cell.collectives) for cell in view.cells)
    for frame in (frames.launches, frames.collectives):
        assert list(frame.columns[:4]) == ["cell", "layout", "mode", "routing"]
    medians = frames.launches.groupby("cell")["step_s"].median()
    assert medians[view.cells[0].cell] == pytest.approx(view.cells[0].step_s)


def test_gpus_have_one_row_for_each_launch_that_was_watched() -> None:
    view = sample_view()
    power = Spread(median=600.0, low=500.0, high=650.0)
    gpus = [GpuTelemetry(uuid=f"GPU-{number}", samples=9, power_w=power) for number in range(2)]
    watched = Telemetry(window_s=9.0, interval_s=0.2, cost=0.001, gpus=gpus)
    first = view.cells[0].launch_values[1].model_copy(update={"telemetry": watched})
    cell = view.cells[0].model_copy(update={"launch_values": [view.cells[0].launch_values[0], first]})
    frame = frames_of(view_of([cell])).gpus
    assert list(frame[["index", "gpu", "uuid", "power_w.median"]].itertuples(index=False, name=None)) == [
        (1, 0, "GPU-0", 600.0),
        (1, 1, "GPU-1", 600.0),
    ]
    assert frames_of(view).gpus.empty
    assert not [name for name in frames_of(view).launches.columns if "telemetry" in name]


def test_a_run_without_cells_has_empty_frames() -> None:
    frames = frames_of(view_of([]))
    assert frames.cells.empty and frames.launches.empty and frames.collectives.empty and frames.memory.empty
    assert cells_csv(view_of([])) == ",".join(frames.cells.columns) + "\n"


def test_the_examples_of_the_docs_run_where_nothing_was_measured() -> None:
    failed = frames_of(view_of([unmeasured_cell(Cell(layout=DP4), "oom", "out of memory")]))
    for run in (failed, frames_of(view_of([]))):
        assert run.cells.query("outcome == 'ok'").sort_values("step_s")[["layout", "model.num_experts"]].empty
        assert run.collectives.groupby(["layout", "mode", "purpose"])["transfer_s"].sum().empty
        assert run.launches.groupby("cell")["step_s"].agg(["count", "median", "std"]).empty
        assert run.gpus.groupby(["layout", "gpu"])[["sm_clock_mhz.median", "temperature_c.high"]].median().empty
        assert run.memory[["cell", "time_s"]].empty and run.comm[["op", "seconds.median"]].empty


def test_an_empty_frame_has_the_columns_of_a_full_one() -> None:
    full, empty = frames_of(sample_view()), frames_of(view_of([]))
    for name in ("launches", "collectives"):
        missing = set(getattr(full, name).columns) - set(getattr(empty, name).columns)
        assert all(column.startswith(("host", "last_rank_share")) for column in missing)
    assert set(full.cells.columns) & set(empty.cells.columns) >= {"step_s", "verify.grad_error", "train.seq_len"}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("@SUM(1)", "'@SUM(1)"),
        ("-2+3", "'-2+3"),
        ("\tx", "'\tx"),
        ("-0.5 1e-05", "-0.5 1e-05"),
        ("dp4=2", "dp4=2"),
    ],
)
def test_no_text_of_a_csv_is_a_formula(text: str, written: str) -> None:
    view = view_of([measured_cell(Cell(layout=DP4), 0.4, reason=text, mfu=-0.5)])
    (row,) = csv.DictReader(io.StringIO(cells_csv(view)))
    assert (row["reason"], row["mfu"]) == (written, "-0.5")
    assert frames_of(view).cells["reason"][0] == text


def test_csv_has_the_columns_of_the_frame_and_empty_for_missing() -> None:
    view = sample_view()
    rows = list(csv.DictReader(io.StringIO(cells_csv(view))))
    assert list(rows[0]) == list(frames_of(view).cells.columns)
    assert rows[0]["step_s"] == repr(view.cells[0].step_s)
    assert rows[10]["outcome"] == "oom" and rows[10]["step_s"] == ""


def test_load_reads_a_run_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_run(run_record())
    cell = Cell(layout=DP4)
    run.write_cell(CellEntry(order=0, cell=cell))
    run.write_cell(CellEntry(order=1, cell=cell.model_copy(update={"mode": "compiled"})))
    run.write_result(measured_cell(cell, 0.4))
    timeline = {"time_s": [0.0, 0.1], "low_bytes": [4, 5], "high_bytes": [6, 9], "backward_s": [], "step_s": 0.2}
    write_record(
        run.cell_path(cell.id) / "memory.json",
        MemoryTimeline(rank=1, peak_allocated_bytes_per_rank=[7, 9], **timeline),
    )
    frames = epbench.load(run.path)
    assert list(frames.memory[["cell", "rank", "time_s", "low_bytes", "high_bytes"]].itertuples(index=False)) == [
        (cell.id, 1, 0.0, 4, 6),
        (cell.id, 1, 0.1, 5, 9),
    ]
    assert list(frames.cells["mode"]) == ["eager", "compiled"]
    assert frames.cells["reason"].isna().tolist() == [True, False]
    assert frames.cells["reason"][1] == "not run yet"
    assert len(frames.launches) == 3
    assert frames.environment.device_name == "NVIDIA H200"


def test_a_missing_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run"):
        epbench.load(tmp_path / "nothing")


def test_importing_epbench_imports_nothing_heavy() -> None:
    code = "import sys, epbench; print([m for m in ('torch', 'pandas', 'plotly', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
