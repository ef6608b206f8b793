"""The gate's sentence, its exit codes, and how single numbers are written."""

import math
from collections.abc import Sequence

import pytest

from epbench.errors import ScenarioError
from epbench.gate_records import CellVerdict, MetricChange
from epbench.report.gate.words import (
    changed_text,
    exit_code_of,
    heading_of,
    in_words,
    launches_text,
    metric_text,
    parse_fail_on,
    reason,
    summary_of,
    value_text,
    word_text,
    worst_first,
)
from epbench.report.text import p_value
from tests.report.gate.made import broken, cell, counter, many, new, regressed, timing, verdict

DEFAULT = frozenset({"regression", "inconclusive"})
KNOWN = regressed(acknowledged="issue 7")
DOUBTFUL = cell("cp2 eager", "inconclusive", timing(1.01, "inconclusive", why="launches scatter by 6 %"))
FASTER = cell("tp2 compiled", "improvement", timing(0.95, "improvement"))
FIXED = cell("tp2 eager", "fixed", base_outcome="oom")
FAILING = cell("tp2 eager", "failing", base_outcome="oom", head_outcome="oom")
OUTSIDE = cell("cp2 eager", why="not gated, otherwise regression: step_s: 9.0 % slower")
YOUNG = cell("tp2 eager", "new", why="the baseline has 2 of 5 nights: compared, decides nothing yet")
GONE = cell("tp2 eager", "missing", head_outcome=None)


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (
            [*many(11), regressed()],
            "1 regression: dp2-ep2 compiled device work +3.4 % [2.8, 4.0] (limit 2 %); 11 cells without change",
        ),
        (many(1), "1 cell without change"),
        ([], "no cell to judge"),
        (
            [broken(), regressed(ratio=1.1), FASTER],
            "1 broken: tp2 eager was ok, is crashed (rank 1 was killed by signal 9); 1 regression: dp2-ep2 compiled "
            "device work +10.0 % [9.4, 10.6] (limit 2 %); 1 improvement: tp2 compiled device work -5.0 % [-5.6, -4.4] "
            "(limit 2 %)",
        ),
        ([KNOWN, DOUBTFUL, new()], "1 inconclusive; 1 new; 1 cell with a known regression"),
        (
            [regressed(f"dp{ratio}", 1 + ratio / 100) for ratio in (3, 7, 5, 4)],
            "4 regressions: dp7 device work +7.0 % [6.4, 7.6] (limit 2 %), dp5 device work +5.0 % [4.4, 5.6] (limit "
            "2 %), dp4 device work +4.0 % [3.4, 4.6] (limit 2 %) and 1 more",
        ),
        ([*many(2), OUTSIDE, KNOWN], "2 cells without change; 1 cell with a known regression; 1 cell not gated"),
        ([regressed("dp2, 8 / 2 / 32")], "1 regression: dp2, 8 / 2 / 32: device work +3.4 % [2.8, 4.0] (limit 2 %)"),
        (
            [cell("tp2", "regression", counter(100, 105, "regression"), timing())],
            "1 regression: tp2 device work +3.4 % [2.8, 4.0] (limit 2 %) and peak memory +5.0 % (limit 1 %)",
        ),
        (
            [cell("tp2", "regression", counter(0, 1, "regression", metric="graph_breaks", limit=0.0))],
            "1 regression: tp2 graph breaks 0 \N{RIGHTWARDS ARROW} 1 (limit 0 %)",
        ),
    ],
)
def test_the_sentence_names_what_is_worst_and_counts_the_rest(cells: list[CellVerdict], sentence: str) -> None:
    assert summary_of(cells) == sentence


def test_the_sentence_counts_everything_however_long_names_and_reasons_are() -> None:
    long = [f"{place} {'x' * 200}" for place in range(5)]
    worse = [*(broken(name, "y" * 500) for name in long), *map(regressed, long)]
    better = [cell(name, "improvement", timing(0.95, "improvement")) for name in long]
    others = [DOUBTFUL, FIXED, FAILING, GONE, KNOWN, OUTSIDE, *many(11)]
    sentence = summary_of([*worse, *better, *others])
    assert len(sentence) <= 1000 and sentence.count(" and 2 more") == 3
    counts = ("5 broken", "5 regressions", "5 improvements", "1 inconclusive", "1 failing", "1 missing", "1 fixed")
    for count in (*counts, "11 cells without change", "1 cell with a known regression", "1 cell not gated"):
        assert count in sentence


@pytest.mark.parametrize(
    ("cells", "fail_on", "unexpected", "code"),
    [
        (many(3), DEFAULT, [], 0),
        ([regressed()], DEFAULT, [], 3),
        ([broken()], DEFAULT, [broken().cell], 3),
        ([regressed(), DOUBTFUL], DEFAULT, [DOUBTFUL.cell], 3),
        ([DOUBTFUL, FAILING], DEFAULT, [FAILING.cell], 5),
        ([DOUBTFUL, *many(1)], DEFAULT, [], 4),
        ([DOUBTFUL], frozenset({"regression"}), [], 0),
        ([regressed()], frozenset({"inconclusive"}), [], 0),
        ([regressed(), FAILING], frozenset(), [FAILING.cell], 0),
        ([KNOWN, *many(1)], DEFAULT, [KNOWN.cell], 0),
        ([KNOWN], DEFAULT, [], 0),
        ([FASTER], DEFAULT, [], 0),
        ([FASTER], frozenset({"improvement"}), [], 3),
        ([FIXED], frozenset({"improvement"}), [], 3),
        ([new()], DEFAULT, [], 0),
        ([new(), *many(1)], frozenset({"new"}), [], 4),
        ([GONE, *many(1)], DEFAULT, [], 0),
        ([GONE, *many(1)], frozenset({"missing"}), [], 4),
        ([FAILING, GONE], DEFAULT, [], 4),
        ([GONE, new()], DEFAULT, [], 4),
        ([FAILING, new()], DEFAULT, [], 4),
        ([GONE, YOUNG], DEFAULT, [], 0),
        ([OUTSIDE, GONE], DEFAULT, [], 4),
        ([OUTSIDE], DEFAULT, [], 4),
        ([OUTSIDE, new()], DEFAULT, [], 0),
        ([KNOWN, OUTSIDE], DEFAULT, [], 0),
        ([OUTSIDE], frozenset({"regression"}), [], 0),
        ([OUTSIDE, *many(1)], DEFAULT, [], 0),
        ([OUTSIDE, OUTSIDE], frozenset({"inconclusive"}), [OUTSIDE.cell], 5),
        ([], DEFAULT, [], 0),
    ],
)
def test_exit_codes(cells: Sequence[CellVerdict], fail_on: frozenset[str], unexpected: list[str], code: int) -> None:
    """3 before 5 before 4; what is acknowledged fails nothing; nothing judged is no pass."""
    assert exit_code_of(cells, fail_on, unexpected=unexpected) == code


@pytest.mark.parametrize(
    ("cells", "fail_on", "title"),
    [
        ([*many(1), new(), GONE], DEFAULT, "passed"),
        ([KNOWN], DEFAULT, "passed"),
        ([FASTER], DEFAULT, "passed"),
        ([FASTER], frozenset({"improvement"}), "failed"),
        ([regressed()], DEFAULT, "failed"),
        ([DOUBTFUL], DEFAULT, "not decided"),
        ([regressed(), DOUBTFUL], frozenset(), "regressions, which fail nothing here"),
        ([DOUBTFUL, *many(1)], frozenset({"regression"}), "not decided, which fails nothing here"),
        ([YOUNG, new()], DEFAULT, "nothing to judge by yet"),
    ],
)
def test_the_title_is_no_pass_where_something_was_let_through(
    cells: Sequence[CellVerdict], fail_on: frozenset[str], title: str
) -> None:
    assert heading_of(verdict(*cells, exit_code=exit_code_of(cells, fail_on))) == title


def test_the_words_of_fail_on() -> None:
    assert parse_fail_on("regression, new") == {"regression", "new"}
    assert parse_fail_on("none") == frozenset()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("regresion", "does not know 'regresion'; did you mean 'regression'"),
        ("", "does not know ''"),
        ("none,regression", "--fail-on none goes with no other word"),
        ("x" * 10_000, r"\(10000 characters\)"),
    ],
)
def test_unknown_words_are_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence) as raised:
        parse_fail_on(text)
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


def test_worst_first_is_by_word_then_by_size() -> None:
    cells = [*many(1), KNOWN, new(), regressed("a", 1.03), FASTER, regressed("b", 1.3), broken(), DOUBTFUL]
    assert [one.name for one in worst_first(cells)] == [
        "tp2 eager", "b", "a", "cp2 eager", "cp2 eager", "dp2-ep2 compiled", "tp2 compiled", "dp0 eager",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (timing(1.034), "+3.4 % [2.8, 4.0]"),
        (timing(1.001), "~ +0.1 % [-0.5, 0.7]"),
        (timing(1.034, ratio_low=None, ratio_high=None), "+3.4 %"),
        (counter(100, 100), "same"),
        (counter(100, 105), "+5.0 %"),
        (counter(10_000, 10_001, metric="kernel_count"), "10,000 \N{RIGHTWARDS ARROW} 10,001"),
        (counter(40 * 2**30, 40 * 2**30 - 512), "-512 bytes"),
        (counter(0, 3, metric="recompiles"), "0 \N{RIGHTWARDS ARROW} 3"),
        (counter(None, 2**30), "\N{EN DASH} \N{RIGHTWARDS ARROW} 1.00"),
        (counter(None, None), "\N{EN DASH}"),
        (timing(math.inf, base=None, head=None), "\N{EN DASH}"),
    ],
)
def test_a_change(change: MetricChange, text: str) -> None:
    assert changed_text(change) == text


@pytest.mark.parametrize(
    ("metric", "value", "half", "text"),
    [
        ("device_work_s", 0.4123, 0.0121, "412.3 \N{PLUS-MINUS SIGN} 1.2 %"),
        ("transfer_s:all_to_all/dispatch/forward/ep", 0.003, None, "3.000"),
        ("peak_allocated_bytes", 54.5 * 2**30, None, "54.5"),
        ("kernel_count", 12345.0, None, "12,345"),
        ("kernel_count", 12345.5, None, "12,346"),
        ("graph_breaks", 0.0, None, "0"),
        ("step_s", None, 0.1, "\N{EN DASH}"),
    ],
)
def test_a_value_in_its_unit(metric: str, value: float | None, half: float | None, text: str) -> None:
    assert value_text(metric, value, half) == text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (timing(1.015, "no change", limit=0.05), "within limit"),
        (timing(0.985, "no change", limit=0.05), "within limit"),
        (timing(1.001, "no change"), "no change"),
        (timing(1.034, "regression"), "regression"),
        (timing(1.015, "no change", ratio_low=None, ratio_high=None), "no change"),
        (counter(1000, 1001, "no change"), "within limit"),
        (counter(1000, 1000, "no change"), "no change"),
        (counter(0, 0, "no change"), "no change"),
        (counter(None, 1000, "new"), "new"),
    ],
)
def test_what_changed_for_sure_and_may_is_within_its_limit(change: MetricChange, word: str) -> None:
    assert word_text(change) == word


def test_small_texts() -> None:
    assert [p_value(p) for p in (None, 0.0, 0.00099, 0.001, 1.0)] == [
        "\N{EN DASH}",
        "<0.001",
        "<0.001",
        "0.001",
        "1.000",
    ]
    assert launches_text(timing(base_nights=8, base_launches=40)) == "8 nights+5"
    assert launches_text(timing(head_launches=4)) == "5+4"
    assert metric_text("transfer_s:all_to_all/combine/backward/ep") == "all_to_all/combine/backward/ep"


def test_metrics_are_called_by_name_in_sentences() -> None:
    why = "step_s: launches scatter by 6 %; device_work_s is not known in both arms, step_s is judged instead"
    told = "step: launches scatter by 6 %; device work is not known in both arms, step is judged instead"
    assert reason(cell("tp2", "inconclusive", why=why)) == told
    assert in_words("my_step_s_x stays") == "my_step_s_x stays"
