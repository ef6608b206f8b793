"""The first losses of one model are the same in every layout, or the odd one out is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from epbench.analysis.work import loss_errors
from epbench.cells import Cell, Mode
from epbench.layout import Layout
from epbench.records import CellResult, LaunchValue
from epbench.runner.agreement import agreed, disagreement
from epbench.runner.launched import LaunchRecord, write_launch
from epbench.store import CellEntry, RunDirectory, read_record
from tests.report.sample import TRAIN, WIDE, measured_cell
from tests.runner.conftest import steady
from tests.runner.runs import planned, run, write_scenario

LOSSES = [12.3277, 12.3266, 12.3434]
DP4, EP4, TP4 = Layout(dp_shard=4), Layout(dp_shard=4, ep=4), Layout(tp=4, etp=4)


def cell_of(layout: Layout, factor: float = 1.0, *, mode: Mode = "eager", **changes: object) -> tuple[Cell, CellResult]:
    cell = Cell(layout=layout, mode=mode, model=WIDE, train=TRAIN).model_copy(update=changes)
    losses = [LOSSES[0], LOSSES[1] * factor, LOSSES[2]]
    return cell, measured_cell(cell, 0.3).model_copy(update={"loss": losses})


def errors_of(*cells: tuple[Cell, CellResult]) -> list[float | None]:
    found = loss_errors(result for _, result in cells)
    return [found.get(result.cell) for _, result in cells]


@pytest.mark.parametrize(
    ("cells", "errors"),
    [
        ([cell_of(DP4), cell_of(EP4), cell_of(TP4, 1.002)], [0.0, 0.0, 0.002]),
        ([cell_of(DP4), cell_of(EP4, 1.002)], [0.002 / 1.002, 0.002]),  # of two, nothing says which is right
        ([cell_of(DP4), cell_of(EP4, 1.002, routing="uniform")], [None, None]),
        ([cell_of(DP4), cell_of(EP4, 1.002, model=WIDE.model_copy(update={"num_layers": 4}))], [None, None]),
        ([cell_of(DP4), cell_of(DP4, 1.002, mode="compiled")], [None, None]),  # one layout
        ([cell_of(DP4), cell_of(EP4), cell_of(EP4, 1.002, mode="compiled")], [0.0, 0.0, 0.002]),
    ],
    ids=["odd one out", "two", "other routing", "other model", "one layout", "a mode"],
)
def test_the_difference_is_from_what_the_others_have(
    cells: list[tuple[Cell, CellResult]], errors: list[float | None]
) -> None:
    assert errors_of(*cells) == [error if error is None else pytest.approx(error, abs=1e-12) for error in errors]


def judged(*cells: tuple[Cell, CellResult]) -> list[CellResult]:
    """The rows as a run leaves them."""
    rows = {row.cell: row for _, row in cells}
    for order, (cell, row) in enumerate(cells):
        rows[row.cell] = agreed(CellEntry(order=order, cell=cell), row, rows.values())
    return list(rows.values())


THREE = (cell_of(DP4), cell_of(EP4), cell_of(TP4, 1.002))


def test_a_cell_with_other_losses_is_wrong_and_has_no_number() -> None:
    *good, bad = judged(*THREE)
    assert [row.outcome for row in good] == ["ok", "ok"]
    assert [row.verify.losses_error for row in good] == [0.0, 0.0]
    assert (bad.outcome, bad.expected, bad.step_s, bad.tokens_per_s_per_rank) == ("wrong", False, None, None)
    assert bad.verify.passed is False
    assert bad.verify.losses_error == pytest.approx(0.002)
    assert bad.reason is not None
    assert bad.reason.startswith("its first losses differ by 2.0e-03 from those of other layouts")
    assert [disagreement(row) for row in (*good, bad)] == [None, None, f"{bad.cell}: {bad.reason}"]


def test_judging_twice_changes_nothing() -> None:
    once = judged(*THREE)
    assert judged(*((cell, row) for (cell, _), row in zip(THREE, once, strict=True))) == once


def test_rounding_is_within_the_bound() -> None:
    rows = judged(cell_of(DP4), cell_of(EP4, 1.0005))
    assert [row.outcome for row in rows] == ["ok", "ok"]
    assert list(map(disagreement, rows)) == [None, None]


# ---------------------------------------------------------------- a run whose launches are all over


def complete(directory: Path, factors: Mapping[str, float]) -> tuple[Path, RunDirectory]:
    """A scenario and a run of it: each layout with the losses above, the second one times its factor."""
    scenario = write_scenario(directory, ["verifiable"], launches=1)
    layouts = ", ".join(f'"{slug}"' for slug in factors)
    scenario.write_text(scenario.read_text().replace('"dp2", "dp2-ep3"', layouts))
    found = planned(scenario)
    for cell_id, entry in found.entries().items():
        verified = found.cell_path(cell_id) / "verify" / "launch.json"
        record = read_record(verified, LaunchRecord)
        assert record is not None
        losses = [LOSSES[0], LOSSES[1] * factors[entry.cell.layout.slug], LOSSES[2]]
        value = LaunchValue(index=0, order=1, step_s=0.1)
        timed = record.model_copy(update={"kind": "measure", "verify": None, "value": value, "losses": losses})
        write_launch(found.cell_path(cell_id) / "launch-0", timed)
    return scenario, found


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    steady(monkeypatch)


def outcomes(found: RunDirectory) -> list[tuple[str, str | None]]:
    return [(cell.layout, cell.outcome) for cell in found.view().cells]


def test_a_wrong_row_is_wrong_at_every_moment_of_a_resumed_run(tmp_path: Path, capsys: Any) -> None:
    """A resumed run that ends early, for want of room, must not leave the row with the numbers that it had lost."""
    scenario, found = complete(tmp_path, {"dp2": 1.0, "rep2": 1.0, "cp2": 1.01})
    assert run(scenario, resume=found.path).exit_code == 5
    assert outcomes(found) == [("dp2", "ok"), ("rep2", "ok"), ("cp2", "wrong")]
    assert capsys.readouterr().err.count("WRONG cp2-") == 1
    written = {path: path.stat().st_mtime_ns for path in found.path.glob("cells/*/result.json")}
    assert run(scenario, resume=found.path).exit_code == 5
    assert capsys.readouterr().err.count("WRONG cp2-") == 1
    assert {path: path.stat().st_mtime_ns for path in found.path.glob("cells/*/result.json")} == written


def test_a_third_cell_tells_which_of_two_is_right(tmp_path: Path) -> None:
    scenario, found = complete(tmp_path, {"dp2": 1.0, "cp2": 1.01, "rep2": 1.0})
    (third,) = found.path.glob("cells/rep2-*")
    third.rename(tmp_path / "aside")
    assert run(scenario, resume=found.path, budget_s=0.0).exit_code == 5
    assert outcomes(found) == [("dp2", "wrong"), ("cp2", "wrong"), ("rep2", None)]
    (tmp_path / "aside" / "launch-0").rename(third / "launch-0")
    (tmp_path / "aside" / "verify").rename(third / "verify")
    assert run(scenario, resume=found.path, only="rep2-*").exit_code == 0
    assert outcomes(found) == [("dp2", "ok"), ("cp2", "wrong"), ("rep2", "ok")]
