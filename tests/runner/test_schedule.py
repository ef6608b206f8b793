"""Rounds, repeats, completeness, budget, and the row that comes of the launches: hand-made records."""

from typing import Any

import pytest

from epbench.cells import Cell, MeasureSpec
from epbench.layout import Layout
from epbench.provenance import describe_environment
from epbench.records import LaunchValue, VerifyRecord
from epbench.runner.aggregate import cell_result
from epbench.runner.launched import LaunchRecord, protocol_digest, slowest_per_step
from epbench.runner.schedule import Budget, Needed, is_complete, needed, rounds
from epbench.store import CellEntry

ENVIRONMENT = describe_environment("cpu", world_size=2, variables={})
ENTRY = CellEntry(order=0, cell=Cell(layout=Layout(dp_shard=2)))


def record(kind: str, index: int = 0, **changes: Any) -> LaunchRecord:
    known: dict[str, Any] = {
        "cell": ENTRY.cell.id, "kind": kind, "index": index, "order": index, "environment": "e", "protocol": "p",
        "outcome": "ok", "reason": None, "elapsed_s": 10.0,
    }  # fmt: skip
    return LaunchRecord(**(known | changes))


def verified(*, passed: bool = True) -> LaunchRecord:
    errors = VerifyRecord(
        scope="full", loss_error=1e-7, grad_error=0.5 if not passed else 1e-6, worst_parameter="gate.weight",
        norm_error=1e-7, step_error=1e-7, tolerance=1e-5, passed=passed,
    )  # fmt: skip
    return record("verify", verify=errors)


def timed(index: int, step_s: float = 0.1, *, invalid: str | None = None, repeats: int | None = None) -> LaunchRecord:
    value = LaunchValue(index=index, order=index, step_s=step_s, valid=invalid is None, invalid_reason=invalid)
    return record("measure", index, value=value, repeats=repeats)


def crashed(index: int) -> LaunchRecord:
    return record("measure", index, outcome="crashed", reason="rank 0 was killed by signal 9 during timing")


def test_rounds_go_there_and_back_with_modes_together() -> None:
    cells = [Cell(layout=Layout(dp_shard=degree), mode=mode) for mode in ("eager", "compiled") for degree in (2, 4)]
    entries = [CellEntry(order=order, cell=cell) for order, cell in enumerate(cells)]
    seen = [[(e.cell.layout.slug, e.cell.mode) for e in order] for order in rounds(entries, 3)]
    there = [("dp2", "eager"), ("dp2", "compiled"), ("dp4", "eager"), ("dp4", "compiled")]
    assert seen == [there, there[::-1], there]


@pytest.mark.parametrize(
    ("launches", "by_round", "need"),
    [
        ([], 0, Needed("verify", 0, detailed=False)),
        ([verified()], 0, Needed("measure", 0, detailed=True)),
        ([verified(), timed(0)], 0, None),
        ([verified(), timed(0)], 1, Needed("measure", 1, detailed=True)),
        ([verified(passed=False)], 0, None),
        ([verified(), crashed(0)], 2, None),
        ([verified(), timed(0), crashed(1)], 1, Needed("measure", 2, detailed=True, repeats=1)),
        ([verified(), timed(0, invalid="x")], 0, Needed("measure", 1, detailed=True, repeats=0)),
        ([verified(), timed(0, invalid="x"), timed(1, invalid="x", repeats=0)], 0, None),
        ([verified(), timed(0, invalid="x"), timed(1, repeats=0)], 1, Needed("measure", 2, detailed=True)),
        ([verified(), timed(0), timed(1), timed(2)], 9, None),
    ],
)
def test_what_a_cell_needs_next(launches: list[LaunchRecord], by_round: int, need: Needed | None) -> None:
    assert needed(launches, asked=3, by_round=by_round) == need


def test_complete_is_when_nothing_is_needed() -> None:
    assert not is_complete([verified(), timed(0), timed(1)], 3)
    assert is_complete([verified(), timed(0), timed(1)], 2)


def test_a_budget_starts_no_launch_that_would_end_later() -> None:
    assert Budget(25.0).allows(20.0, 5.0)
    assert not Budget(25.0).allows(20.0, 5.1)
    assert Budget(None).allows(1e9, 1e9)


def test_a_step_is_done_when_the_slowest_rank_is() -> None:
    assert slowest_per_step([[1.0, 5.0, 3.0], [2.0, 4.0, 3.5]]) == [2.0, 5.0, 3.5]
    with pytest.raises(AssertionError, match="different numbers"):
        slowest_per_step([[1.0], [1.0, 2.0]])


def row(*launches: LaunchRecord, asked: int = 3, expect: str = "ok") -> Any:
    entry = CellEntry(order=0, cell=ENTRY.cell.model_copy(update={"expect": expect}))
    return cell_result(entry, launches, asked=asked, environment=ENVIRONMENT)


def test_a_row_has_the_median_launch_and_the_rate_of_one_rank() -> None:
    result = row(verified(), timed(0, 0.2), timed(1, 0.1), timed(2, 0.4))
    assert (result.outcome, result.reason, result.step_s, result.launches) == ("ok", None, 0.2, 3)
    assert result.step_s_low < 0.1
    assert result.step_s_high > 0.4
    assert result.tokens_per_s_per_rank == pytest.approx(4 * 128 / 0.2 / 2)


def device_times(work_s: float) -> dict[str, float]:
    return {"device_work_s": work_s, "kernel_union_s": 2 * work_s}


def test_device_work_has_its_own_interval_and_the_kernel_union_none() -> None:
    launches = [timed(index, 0.2) for index in range(3)]
    worked = [
        launch.model_copy(update={"value": launch.value.model_copy(update=device_times(work_s))})
        for launch, work_s in zip(launches, (0.11, 0.12, 0.13), strict=True)
        if launch.value is not None
    ]
    result = row(verified(), *worked)
    assert result.device_work_s == 0.12
    assert result.device_work_s_low < 0.11
    assert result.kernel_union_s == 0.24
    without = row(verified(), *launches)
    assert (without.device_work_s, without.kernel_union_s) == (None, None)


def test_one_launch_gives_a_value_without_an_interval() -> None:
    result = row(verified(), timed(0, 0.2), asked=1)
    assert (result.outcome, result.step_s, result.step_s_low, result.step_s_high) == ("ok", 0.2, None, None)


def test_a_wrong_cell_has_no_number_and_says_where() -> None:
    result = row(verified(passed=False))
    assert result.outcome == "wrong"
    assert result.step_s is None
    assert result.reason == "differs from one rank: gradient of gate.weight off by 5.0e-01 (tolerance 1e-05)"


def test_a_verification_that_crashes_ends_the_cell() -> None:
    result = row(record("verify", outcome="crashed", reason="rank 0 raised ValueError during verify: x"))
    assert (result.outcome, result.step_s) == ("crashed", None)
    assert result.reason == "verification: rank 0 raised ValueError during verify: x"


def test_too_few_valid_launches_are_unstable() -> None:
    launches = [timed(0, 0.2), timed(1, 0.2), timed(2, 9.0, invalid="x"), timed(3, 9.0, invalid="x", repeats=2)]
    result = row(verified(), *launches)
    assert result.outcome == "unstable"
    assert result.reason == "2 of 4 launches are valid: x"
    assert result.step_s == 0.2
    assert [value.valid for value in result.launch_values] == [True, True, False, False]


def test_a_later_crash_is_an_invalid_launch_and_its_repeat_counts() -> None:
    result = row(verified(), timed(0), crashed(1), timed(2, repeats=1), timed(3))
    assert result.outcome == "ok"
    assert result.launch_values[1].invalid_reason == "rank 0 was killed by signal 9 during timing"


@pytest.mark.parametrize(("expect", "expected"), [("ok", False), ("oom", True), ("any", True)])
def test_what_was_expected(expect: str, expected: bool) -> None:
    result = row(verified(), record("measure", outcome="oom", reason="r"), expect=expect)
    assert (result.outcome, result.expected) == ("oom", expected)


def test_the_protocol_follows_how_it_is_measured_and_not_how_often() -> None:
    base = protocol_digest(MeasureSpec())
    assert protocol_digest(MeasureSpec(launches=9, launch_timeout_s=1.0)) == base
    assert protocol_digest(MeasureSpec(min_steps=31)) != base
