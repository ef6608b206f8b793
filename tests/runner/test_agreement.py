"""The first losses of one model are the same in every layout, or the odd one out is wrong."""

from pathlib import Path

import pytest

from epbench.analysis.work import loss_errors
from epbench.cells import Cell, Mode
from epbench.layout import Layout
from epbench.records import CellResult
from epbench.runner.agreement import require_agreement
from epbench.store import CellEntry, RunDirectory, create_run
from tests.report.sample import TRAIN, WIDE, measured_cell, run_record

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


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = create_run(tmp_path, run_record(), "")
    for order, (cell, result) in enumerate([cell_of(DP4), cell_of(EP4), cell_of(TP4, 1.002)]):
        run.write_cell(CellEntry(order=order, cell=cell))
        run.write_result(result)
    return run


def test_a_cell_with_other_losses_is_wrong_and_has_no_number(run: RunDirectory) -> None:
    (sentence,) = require_agreement(run)
    *good, bad = run.view().cells
    assert [cell.outcome for cell in good] == ["ok", "ok"]
    assert [cell.verify.losses_error for cell in good] == [0.0, 0.0]
    assert (bad.outcome, bad.expected, bad.step_s, bad.tokens_per_s_per_rank) == ("wrong", False, None, None)
    assert bad.verify.passed is False
    assert bad.verify.losses_error == pytest.approx(0.002)
    assert bad.reason is not None
    assert bad.reason.startswith("its first losses differ by 2.0e-03 from those of other layouts")
    assert sentence == f"{bad.cell}: {bad.reason}"


def test_judging_twice_changes_nothing(run: RunDirectory) -> None:
    require_agreement(run)
    once = run.view()
    require_agreement(run)
    assert run.view() == once


def test_rounding_is_within_the_bound(tmp_path: Path) -> None:
    run = create_run(tmp_path, run_record(), "")
    for order, (cell, result) in enumerate([cell_of(DP4), cell_of(EP4, 1.0005)]):
        run.write_cell(CellEntry(order=order, cell=cell))
        run.write_result(result)
    assert require_agreement(run) == []
    assert [cell.outcome for cell in run.view().cells] == ["ok", "ok"]
