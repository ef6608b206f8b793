"""Words of cells: which launches are compared, by which test, and what follows, on hand-made launches."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from epbench.analysis.arms import Arm, arm_of
from epbench.analysis.differences import growth_found, holm, paired, welch
from epbench.analysis.gate import Judged, judge, worst
from epbench.gate_records import GateSpec, Word
from epbench.records import Breakdown, CellResult, CollectiveRow, CompileRecord, LaunchValue
from epbench.runner.schedule import needed
from tests.analysis.gate_cells import QUIET, SPEC, arm_like, cell_of, launches_of, metric, pair_of, verdict_of
from tests.runner.test_schedule import timed, verified

ALSO_QUIET = (0.2001, 0.2, 0.2002, 0.1998, 0.1999)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("scale", "word"),
    [(1.0, "no change"), (1.015, "no change"), (1.1, "regression"), (1 / 1.1, "improvement"), (1.03, "regression")],
)
def test_what_is_beyond_the_limit_is_a_change(scale: float, word: Word, interleaved: bool) -> None:
    verdict = verdict_of(cell_of(*QUIET), cell_of(*ALSO_QUIET, scale=scale), interleaved=interleaved)
    assert verdict.word == word, verdict.why
    step, work = metric(verdict, "step_s"), metric(verdict, "device_work_s")
    assert (work.gated, step.gated, work.paired) == (True, True, interleaved)
    assert (work.limit, step.limit) == pytest.approx((0.02, 0.05))
    assert work.ratio == pytest.approx(scale, rel=0.002)
    assert work.ratio_low is not None and work.ratio_high is not None
    assert work.ratio_low <= (work.ratio or 0) <= work.ratio_high
    assert (work.base_launches, work.head_launches, work.base_nights) == (5, 5, 1)
    assert work.detectable is not None and 0.02 < work.detectable < 0.03


def test_p_and_interval_of_pairs_by_hand() -> None:
    """Log ratios 0.10, 0.11, 0.12: mean 0.11, standard error 0.01 / sqrt 3, two degrees of freedom."""
    base = cell_of(0.2, 0.3, 0.25)
    head = cell_of(*(step * math.exp(by) for step, by in zip((0.2, 0.3, 0.25), (0.10, 0.11, 0.12), strict=True)))
    work = metric(verdict_of(base, head), "device_work_s")
    error = 0.01 / math.sqrt(3)
    statistic = (0.11 - math.log(1.02)) / error
    assert work.p == pytest.approx(0.5 - statistic / (2 * math.sqrt(2 + statistic**2)))
    assert work.p_holm == pytest.approx(2 * (work.p or 0))  # step_s, with its wider limit, is the other of two tests
    assert work.ratio_low == pytest.approx(math.exp(0.11 - 4.302652729911275 * error))
    assert work.p_rank == pytest.approx(0.7)  # 14 of 20 orders of three and three are as far from even


def test_the_limit_is_a_floor_of_seconds_for_short_steps() -> None:
    """A millisecond of the smaller arm, so that which of them is base does not matter."""
    short, longer = (cell_of(*QUIET, scale=scale / 200) for scale in (4, 5.1))
    found = [metric(verdict_of(*arms), "step_s") for arms in ((short, longer), (longer, short))]
    assert [change.limit for change in found] == pytest.approx([1 / 4] * 2)
    assert [change.word for change in found] == ["regression", "improvement"]
    assert verdict_of(short, cell_of(*QUIET, scale=4.8 / 200)).word == "no change", "0.8 ms is nothing to stop for"
    tiny, tenfold = (cell_of(*QUIET, scale=scale / 200) for scale in (0.05, 0.5))
    assert [verdict_of(*arms).word for arms in ((tiny, tenfold), (tenfold, tiny))] == ["no change"] * 2


@pytest.mark.parametrize(
    ("base", "head", "why"),
    [
        (cell_of(*QUIET), cell_of(0.3, 0.3), "2 valid launches in head, 3 are needed"),
        (cell_of(0.1), cell_of(*QUIET), "1 valid launch in base, 3 are needed"),
        (cell_of(*[0.2] * 20), cell_of(*[0.2] * 11, *[0.24] * 9), "slower than others: +8.6 % by the mean, +0.0 % by"),
        (cell_of(*[0.2] * 11, *[0.24] * 9), cell_of(*[0.2] * 20), "faster than others: -7.9 % by the mean, +0.0 % by"),
        (cell_of(1e-3, 1e-4, 0.2, 9.0), cell_of(1e-2, 7.0, 0.2, 1e-5), "even a slowdown to tenfold would be missed"),
        (cell_of(0.2, 0.2), cell_of(0.2, 0.2), "2 valid launches in base"),
        (cell_of(*QUIET), cell_of(*QUIET, outcome="unstable", reason="2 of 5"), "unstable (2 of 5) in head"),
        (cell_of(*QUIET, outcome="unstable", reason="2 of 5"), arm_like("oom"), "unstable (2 of 5) in base"),
        (cell_of(*QUIET), cell_of(outcome=None), "not run in head"),
        (cell_of(outcome="interrupted", reason="stopped"), cell_of(*QUIET), "interrupted (stopped) in base"),
        (cell_of(0.2, 0.25, 0.16, 0.22, 0.18), cell_of(0.19, 0.17, 0.26, 0.2, 0.21), "would be missed"),
    ],
)
def test_what_cannot_be_told_is_inconclusive(base: CellResult | Arm, head: CellResult | Arm, why: str) -> None:
    verdict = verdict_of(base, head)
    assert verdict.word == "inconclusive"
    assert why in verdict.why


LOADED = (1.0, 1.25, 1.3, 1.45, 1.1)  # of a busy machine: mean log 0.19, standard error 0.063, interval 0.02 to 0.37


def test_a_change_beyond_the_limit_that_no_test_refutes_is_no_pass() -> None:
    """Two equal arms on a loaded machine: 25 % slower, an interval without zero, and p above alpha."""
    spec = GateSpec(primary="step_s", practical_limit=0.1, also={}, detectable=10)
    even, loaded = (cell_of(*factors, scale=0.2) for factors in ([1.0] * 5, LOADED))
    for arms, why in (((even, loaded), "25.0 % slower"), ((loaded, even), "20.0 % faster")):
        verdict = verdict_of(*arms, spec)
        step = metric(verdict, "step_s")
        assert step.p is not None and step.ratio_low is not None and step.ratio_high is not None
        assert 0.01 < step.p < 0.12 and not step.ratio_low <= 1 <= step.ratio_high
        expected = f"{why}, perhaps beyond the limit of 10.0 %: more launches would tell"
        assert (verdict.word, step.why) == ("inconclusive", expected)
    slightly = cell_of(*(factor**0.3 for factor in LOADED), scale=0.2)
    assert verdict_of(even, slightly, spec).word == "no change", "7 % is allowed, whatever its interval leaves out"


def test_a_regression_has_its_whole_interval_beyond_the_limit() -> None:
    """A false alarm in five nights is more than the interval stands for, so the interval decides."""
    spec = GateSpec(primary="step_s", practical_limit=0.1, also={}, detectable=10, alpha=0.2)
    verdict = verdict_of(cell_of(*[0.2] * 5), cell_of(*LOADED, scale=0.2), spec)
    step = metric(verdict, "step_s")
    assert step.p_holm is not None and step.p_holm < 0.2 and step.ratio_low is not None and step.ratio_low < 1.1
    assert verdict.word == "inconclusive"


def test_words_say_what_tables_print() -> None:
    faster = metric(verdict_of(cell_of(*QUIET), cell_of(*QUIET, scale=0.8)), "step_s")
    assert faster.ratio == pytest.approx(0.8) and faster.why == "20.0 % faster"
    slower = metric(verdict_of(cell_of(*QUIET), cell_of(*QUIET, scale=1.25)), "step_s")
    assert slower.why == "25.0 % slower, where 5.0 % is allowed"


def test_a_launch_without_a_value_is_valid_all_the_same() -> None:
    """Communication that is no longer exposed takes no time, which has no logarithm."""
    hidden = cell_of(launch_values=[one.model_copy(update={"exposed_s": 0.0}) for one in launches_of(QUIET)])
    exposed = cell_of(launch_values=[one.model_copy(update={"exposed_s": 0.02}) for one in launches_of(QUIET)])
    verdict = verdict_of(exposed, hidden, GateSpec(also={"exposed_s": 0.1}))
    expected = "0 of 5 valid launches with a value above zero in head, 3 are needed"
    assert (verdict.word, metric(verdict, "exposed_s").why) == ("inconclusive", expected)


@pytest.mark.parametrize(
    ("base", "head", "word"),
    [
        ("ok", "oom", "broken"),
        ("ok", "crashed", "broken"),
        ("ok", "wrong", "broken"),
        ("ok", "timeout", "broken"),
        ("ok", "skipped", "broken"),
        ("oom", "ok", "fixed"),
        ("skipped", "ok", "fixed"),
        ("oom", "oom", "failing"),
        ("oom", "crashed", "failing"),
        ("skipped", "crashed", "failing"),
        ("skipped", "skipped", "no change"),
        (None, None, "inconclusive"),
        ("interrupted", "oom", "inconclusive"),
        ("unstable", "ok", "inconclusive"),
    ],
)
def test_outcomes_decide_where_an_arm_has_no_number(base: str | None, head: str | None, word: Word) -> None:
    verdict = verdict_of(arm_like(base), arm_like(head, reason="rank 1 asked for 9 GiB"))
    assert (verdict.word, verdict.base_outcome, verdict.head_outcome) == (word, base, head)
    assert word != "broken" or verdict.why == f"was ok, is {head} (rank 1 asked for 9 GiB)"


def test_a_cell_that_is_to_run_out_of_memory_does_not_fail() -> None:
    as_expected = arm_like("oom", expected=True)
    assert verdict_of(as_expected, as_expected).word == "no change"
    assert verdict_of(arm_like("oom"), as_expected).word == "failing"


def test_cells_of_one_arm() -> None:
    assert verdict_of(None, cell_of(*QUIET)).word == "new"
    assert verdict_of(cell_of(*QUIET), None).word == "missing"
    assert judge([pair_of(None, None)], SPEC) == Judged(cells=[], family=0)


COLLECTIVE = CollectiveRow(
    op="all_to_all", purpose="dispatch", phase="forward", axis="ep", calls_per_step=8, bytes=1000, bytes_mean=1000,
    bytes_per_step=8000, transfer_s=0.01, wait_s=0, p50_s=0.001, p95_s=0.001, algbw_bytes_per_s=None,
    busbw_bytes_per_s=None,
)  # fmt: skip
TRACED: dict[str, Any] = {"breakdown_s": Breakdown(step_s=0.2), "kernel_count": 1000.0, "collectives": [COLLECTIVE]}


def with_calls(count: float) -> dict[str, Any]:
    row = COLLECTIVE.model_copy(update={"calls_per_step": count, "bytes_per_step": 8000})
    return TRACED | {"collectives": [row]}


def compiled(graph_breaks: int) -> dict[str, Any]:
    return {"compile": CompileRecord(graph_breaks=graph_breaks, recompiles=0)}


def peak(allocated: int) -> dict[str, Any]:
    return {"peak_allocated_bytes": allocated}


@pytest.mark.parametrize(
    ("base", "head", "name", "word"),
    [
        ({}, peak(1_050_000_000), "peak_allocated_bytes", "regression"),
        ({}, peak(1_010_000_000), "peak_allocated_bytes", "no change"),
        (peak(4_000_000), peak(5_040_000), "peak_allocated_bytes", "no change"),
        (peak(4_000_000), peak(5_060_000), "peak_allocated_bytes", "regression"),
        (peak(5_040_000), peak(4_000_000), "peak_allocated_bytes", "no change"),
        ({}, peak(980_000_000), "peak_allocated_bytes", "improvement"),
        (TRACED, with_calls(9), "collective_count", "regression"),
        (with_calls(8.1 + 0.2), with_calls(8.3), "collective_count", "no change"),  # but for rounding
        (with_calls(8.3), with_calls(8.1 + 0.2), "collective_count", "no change"),
        (TRACED, with_calls(7), "collective_count", "improvement"),
        (TRACED, TRACED | {"collectives": []}, "collective_bytes", "improvement"),
        (TRACED | {"collectives": []}, TRACED, "collective_count", "regression"),  # from nothing
        (TRACED, TRACED | {"kernel_count": 1011.0}, "kernel_count", "regression"),
        (compiled(0), compiled(1), "graph_breaks", "regression"),
        (compiled(0), compiled(1), "recompiles", "no change"),
    ],
)  # fmt: skip
def test_one_launch_is_enough_for_counters(base: dict[str, Any], head: dict[str, Any], name: str, word: Word) -> None:
    verdict = verdict_of(cell_of(0.2, **base), cell_of(0.2, **head))
    change = metric(verdict, name)
    assert (change.word, change.kind, change.gated) == (word, "counter", True)
    if word == "regression":
        assert verdict.word == "regression" and name in verdict.why, "though one launch tells nothing of times"


def test_a_counter_that_one_arm_does_not_know_decides_nothing_and_is_told() -> None:
    verdict = verdict_of(cell_of(*QUIET, **TRACED), cell_of(*ALSO_QUIET))
    changes = [metric(verdict, name) for name in ("collective_count", "collective_bytes", "kernel_count")]
    assert {(change.word, change.gated, change.ratio) for change in changes} == {("missing", False, None)}
    assert verdict.word == "no change"
    assert "kernel_count is not known in head" in verdict.why
    unknown = COLLECTIVE.model_copy(update={"bytes_per_step": None})  # an older record
    assert (
        "collective_bytes"
        not in arm_of(cell_of(*QUIET, **TRACED | {"collectives": [unknown]}), source=0).nights[0].counters
    )


@pytest.mark.parametrize("empty", [0.0, math.inf])
def test_a_trace_without_a_kernel_is_no_step_without_one(empty: float) -> None:
    """Nothing was recorded, so nothing became better; nor has a cell without memory been measured."""
    blank = TRACED | {"kernel_count": empty, "peak_allocated_bytes": 0} | ({"collectives": []} if not empty else {})
    names = ["kernel_count", "peak_allocated_bytes"] + ["collective_count"] * (not empty)
    for arms, word in (((TRACED, blank), "missing"), ((blank, TRACED), "new")):
        verdict = verdict_of(cell_of(*QUIET, **arms[0]), cell_of(*QUIET, **arms[1]))
        assert {metric(verdict, name).word for name in names} == {word}
        assert verdict.word == "no change" and "kernel_count is not known in" in verdict.why


def without_work(cell: CellResult) -> CellResult:
    values = [value.model_copy(update={"device_work_s": None}) for value in cell.launch_values]
    return cell.model_copy(update={"launch_values": values})


def test_steps_are_judged_where_a_device_gives_no_device_work() -> None:
    verdict = verdict_of(cell_of(*QUIET), without_work(cell_of(*ALSO_QUIET)))
    step = metric(verdict, "step_s")
    assert step.gated
    assert step.limit == pytest.approx(0.02)
    assert "device_work_s is not known in both arms, step_s is judged instead" in verdict.why
    work = metric(verdict, "device_work_s")
    assert (work.gated, work.word, work.head, work.head_launches) == (False, "inconclusive", None, 0)


def test_only_what_is_gated_decides() -> None:
    def cell(scale: float) -> CellResult:
        transfers_s = {"all_to_all/dispatch/forward/ep": 0.1 * scale, "all_gather/fsdp/forward/dp": scale}
        found = {"exposed_s": 0.1 * scale, "transfers_s": transfers_s}
        return cell_of(launch_values=[value.model_copy(update=found) for value in launches_of(QUIET)])

    spec = GateSpec(also={})
    verdict = verdict_of(cell(1.0), cell(2.0), spec)
    exposed, transfer = (metric(verdict, name) for name in ("exposed_s", "transfer_s:all_to_all/dispatch/forward/ep"))
    assert [(one.word, one.gated, one.p_holm) for one in (exposed, transfer)] == [("regression", False, None)] * 2
    assert verdict.word == "no change"
    assert not any("all_gather" in change.metric for change in verdict.metrics)
    assert verdict_of(cell(1.0), cell(2.0), GateSpec(also={"exposed_s": 0.5})).word == "regression"
    assert verdict_of(cell(1.0), cell_of(*QUIET), GateSpec(also={"exposed_s": 0.5})).word == "inconclusive"


def test_cells_that_no_glob_names_fail_nothing() -> None:
    spec = GateSpec(cells=("dp4*", "tp*"))
    slow = verdict_of(cell_of(*QUIET), cell_of(*QUIET, scale=2), spec)
    assert (slow.word, slow.why, slow.metrics[0].word, slow.metrics[0].gated) == (
        "no change", "not gated", "regression", False,
    )  # fmt: skip
    assert judge([pair_of(cell_of(*QUIET), cell_of(*QUIET))], spec).family == 0
    ended = verdict_of(arm_like("ok"), arm_like("oom"), spec)
    assert (ended.word, ended.why) == ("no change", "not gated, otherwise broken: was ok, is oom")
    assert verdict_of(arm_like("ok"), arm_like("oom"), GateSpec(cells="dp2-*")).word == "broken"


def test_holm_spans_the_gated_timings_of_all_cells() -> None:
    """One cell is slower by what is found alone, and not among many."""
    slow = cell_of(*0.2 * np.exp(0.0269 + 0.002 * np.arange(-2, 3)))
    alone = judge([pair_of(cell_of(*[0.2] * 5), slow)], GateSpec(also={}))
    equal = [pair_of(cell_of(*QUIET), cell_of(*ALSO_QUIET)) for _ in range(11)]
    among = judge([*equal, pair_of(cell_of(*[0.2] * 5), slow)], GateSpec(also={}))
    assert (alone.family, among.family) == (1, 12)
    p = alone.cells[0].metrics[0].p
    assert p is not None and p == among.cells[-1].metrics[0].p and 0.01 / 12 < p < 0.01
    assert [alone.cells[0].word, among.cells[-1].word] == ["regression", "inconclusive"]
    assert "2.7 % slower, perhaps beyond the limit of 2.0 %" in among.cells[-1].why
    assert among.cells[-1].metrics[0].p_holm == pytest.approx(12 * p)
    error = 0.002 * math.sqrt(2.5 / 5)
    for judged, tests in ((alone, 1), (among, 12)):
        expected = growth_found(error, 4, limit=math.log(1.02), alpha=0.01 / tests)
        assert judged.cells[-1].metrics[0].detectable == pytest.approx(expected)
    half = judge([pair_of(cell_of(*[0.2] * 5), slow)], GateSpec(also={}), alpha=p / 2)
    assert half.cells[0].word == "inconclusive", "a look has its own share of the false alarms"


def test_decisions_are_those_of_the_simulations() -> None:
    """``test_power`` asks the arrays; the gate must answer alike, night for night."""
    random = np.random.default_rng(9)
    arms = 0.01 * random.normal(size=(2, 12, 4, 5)) + random.normal(size=(12, 4, 1))
    arms[1, :, 0] += 0.05
    for compare, interleaved in ((paired, True), (welch, False)):
        adjusted = holm(compare(arms[0], arms[1]).above(math.log1p(0.02)))
        for night, expected in enumerate(adjusted):
            cells = [[cell_of(*np.exp(launches)) for launches in arm[night]] for arm in arms]
            pairs = [pair_of(*both, interleaved=interleaved) for both in zip(*cells, strict=True)]
            judged = judge(pairs, GateSpec(also={}, absolute_floor_s=0))
            found = [verdict.metrics[0] for verdict in judged.cells]
            regressions = [change.word == "regression" for change in found]
            assert regressions == list(expected <= 0.01)
            for change, p in zip(found, expected, strict=True):
                assert change.ratio is not None
                assert change.ratio_low is not None
                assert change.p_holm == pytest.approx(p) or change.ratio_low < 1  # else it is the p of a fall


@pytest.mark.parametrize("pattern", ["vvv", "ivv", "vivv", "iivv", "viivv", "vivivv", "iiiivvv"])
def test_rounds_are_those_of_the_schedule(pattern: str) -> None:
    """``v`` a valid launch, ``i`` an invalid one, in the order in which they are made."""
    made, round_of = [verified()], dict[int, int]()
    for at, kind in enumerate(pattern):
        need = needed(made, asked=9, by_round=8)
        assert need is not None and need.index == at
        done = sum(launch.repeats is None for launch in made[1:])
        round_of[at] = done if need.repeats is None else round_of[need.repeats]
        made.append(timed(at, 0.1 + at, invalid="x" if kind == "i" else None, repeats=need.repeats))
    values = [launch.value for launch in made if launch.value is not None]
    found = arm_of(cell_of(launch_values=values), source="s").nights[0].timings["step_s"]
    valid = [at for at, kind in enumerate(pattern) if kind == "v"]
    assert found == {("s", round_of[at], ((), ())): 0.1 + at for at in valid}


def test_a_repeated_launch_is_the_pair_of_its_round() -> None:
    steps = [0.2, 0.3, 0.25, 0.22]
    base = launches_of(steps)
    head = launches_of([0.2, 9.0, *steps[1:]], scale=1.1)  # the second was invalid, and was made again
    head[1] = head[1].model_copy(update={"valid": False})
    change = metric(verdict_of(cell_of(launch_values=base), cell_of(launch_values=head)), "step_s")
    assert change.paired
    assert (change.ratio_low, change.ratio_high) == pytest.approx((1.1, 1.1))


def of_rounds(numbers: Sequence[int], start: str = "a") -> CellResult:
    """Only these of six rounds are valid; all others, and their repeats, are not."""
    made = [number in numbers for number in range(6) for _ in range(1 if number in numbers else 2)]
    values = [
        LaunchValue(index=at, order=at, step_s=0.2, valid=valid, host={"names": [start]})
        for at, valid in enumerate(made)
    ]
    return cell_of(launch_values=values)


@pytest.mark.parametrize(
    ("base", "head", "is_paired"),
    [
        ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), True),
        ((0, 1, 2, 3, 4, 5), (0, 1, 3, 4, 5), True),
        ((0, 1, 2, 3), (0, 1, 2, 4), True),  # three of four
        ((0, 1, 2, 3, 4), (0, 1, 2, 5), True),
        ((0, 1, 2, 3, 4), (0, 3, 4, 5), True),
        ((0, 1, 2), (0, 1, 3), False),  # two pairs are too few, three launches are not
        ((0, 1, 2, 3, 4), (1, 3, 5), False),
    ],
)
def test_rounds_that_both_arms_have_are_pairs(base: Sequence[int], head: Sequence[int], is_paired: bool) -> None:
    change = metric(verdict_of(of_rounds(base), of_rounds(head)), "step_s")
    assert (change.paired, change.base_launches, change.head_launches) == (is_paired, len(base), len(head))
    assert not metric(verdict_of(of_rounds(base), of_rounds(head, "another machine")), "step_s").paired


def test_a_look_sees_the_launches_of_the_first_rounds() -> None:
    cell = of_rounds((0, 2, 3, 4))
    assert [len(arm_of(cell, source=0, launches=count).nights[0].timings["step_s"]) for count in (1, 3, 9)] == [1, 2, 4]


@pytest.mark.parametrize("step_s", [0.0, -1.0, math.inf, math.nan])
def test_a_time_that_has_no_logarithm_is_no_value(step_s: float) -> None:
    assert arm_of(cell_of(0.2, step_s, 0.3), source=0).nights[0].timings["step_s"].keys() == {
        (0, number, (("a",), ())) for number in (0, 2)
    }


def test_the_worst_word_is_the_cells() -> None:
    assert worst(["no change", "improvement"]) == "improvement"
    assert worst(["improvement", "inconclusive", "no change"]) == "inconclusive"
    assert worst(["inconclusive", "regression"]) == "regression"
    assert worst([]) == "no change"
