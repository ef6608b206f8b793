"""A verdict in every format: what each says, in which order, in how much room, and that names stay names."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.gate_records import CellVerdict, EnvironmentDifference, GateSpec, Verdict
from epbench.report.gate import comment, step_summary
from epbench.report.gate.comment import comment_markdown, marker
from epbench.report.gate.fitted import Part, fitted, lines_part
from epbench.report.gate.junit import junit_xml
from epbench.report.gate.step_summary import append_summary, summary_markdown
from epbench.report.gate.text import render_verdict
from tests.report.gate.made import broken, cell, counter, many, new, regressed, timing, verdict
from tests.report.sample import HOSTILE

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))
NASTY = f"{HOSTILE}\x00\x1b[31m\x85\ufffe\udc80" + "x" * 10_000
TRANSFER = "transfer_s:all_to_all/dispatch/forward/ep"


@pytest.fixture(scope="module")
def night() -> Verdict:
    """One of everything."""
    slower = cell(
        "dp2-ep2 compiled",
        "regression",
        timing(1.034),
        timing(1.01, "no change", metric="step_s", limit=0.05, p_holm=1.0),
        counter(100 * 2**30, 105 * 2**30, "regression"),
        timing(1.2, "regression", metric=TRANSFER, gated=False),
    )
    doubtful = cell("cp2 eager", "inconclusive", timing(1.01, "inconclusive", why="launches scatter by 6 %"))
    known = regressed("rep2 eager", 1.5, acknowledged="issue 7")
    faster = cell("tp2 compiled", "improvement", timing(0.95, "improvement"))
    failing = cell("tp2-ep2 eager", "failing", base_outcome="oom", head_outcome="oom", why="oom in both")
    cells = [*many(2), faster, slower, doubtful, known, failing, new(), broken()]
    return verdict(*cells, warnings=["head: the canary was 8 % slower afterwards"])


def nasty(**fields: Any) -> Verdict:
    """Whatever can come from a file is hostile."""
    cells = [
        regressed(NASTY).model_copy(update={"cell": NASTY}),
        regressed(f"{NASTY}2", acknowledged=NASTY),
        broken(NASTY, NASTY, head_outcome=NASTY),
        cell(NASTY, "inconclusive", timing(1.01, "inconclusive", why=NASTY, metric=NASTY), why=NASTY),
        cell("further", "regression", timing(), timing(metric=f"transfer_s:{NASTY}", gated=False)),
        new(NASTY, NASTY),
    ]
    found = verdict(*cells, scenario=NASTY, warnings=[NASTY], **fields)
    arm = found.base.model_copy(update={"label": NASTY, "path": NASTY, "started": NASTY})
    differences = [EnvironmentDifference(what=NASTY, base=NASTY, head=NASTY)]
    return found.model_copy(update={"base": arm, "head": arm, "differences": differences})


# ---------------------------------------------------------------- text


def test_the_text_begins_with_the_sentence_and_has_a_block_a_timing(night: Verdict) -> None:
    text = render_verdict(night)
    assert text.startswith("1 broken: tp2 eager was ok") and night.summary[1:] in text.splitlines()[0]
    assert "base: monday, started 2026-11-23 02:30 UTC\nhead: tuesday, started 2026-11-24 02:30 UTC" in text
    first, second = text.index("device work, ms (limit 2 %)"), text.index("step, ms (limit 5 %)")
    assert (
        first < second < text.index("Counters that changed") < text.index("Not judged") < text.index("What else diff")
    )


def test_a_row_is_like_benchstat(night: Verdict) -> None:
    rows = [line.split() for line in render_verdict(night).splitlines() if line.startswith("dp2-ep2 compiled")]
    assert " ".join(rows[0]) == "dp2-ep2 compiled 400.0 ± 1.2 % 413.6 ± 0.4 % +3.4 % [2.8, 4.0] <0.001 5+5 regression"
    assert " ".join(rows[2]) == "dp2-ep2 compiled peak memory, GiB 100 105 +5.0 % 1 % regression"
    assert " ".join(rows[3][2:6]) == "all_to_all/dispatch/forward/ep, ms 400.0 ±"


def test_what_was_not_judged_says_why(night: Verdict) -> None:
    text = render_verdict(night)
    for line in (
        "- tp2-ep2 eager: failing: oom in both",
        "- cp2 eager: inconclusive: launches scatter by 6 %",
        "- cp2 eager: new: base does not have it; ok in head",
        "- rep2 eager: device work +50.0 % [49.4, 50.6] (limit 2 %); acknowledged: issue 7",
        "warning: head: the canary was 8 % slower afterwards",
        "To make the improvement the new baseline: epbench baseline accept reports/tuesday --reset",
    ):
        assert line in text.splitlines()


def test_looks_pairs_and_limits_are_told() -> None:
    short = timing(1.0, "no change", limit=0.12)
    found = verdict(*many(1), cell("tiny", "no change", short), paired=True, look=2, alpha=0.005,
                    gate=GateSpec(looks=(5, 10)), differences=[])  # fmt: skip
    text = render_verdict(found)
    assert "after Holm over 2 tests, at 0.005, look 2 of 2; launches of one round are pairs." in text
    assert "device work, ms (limit 2 % to 12 %, 1 ms at least)" in text
    assert "Nothing else that is recorded differs." in text and "accept" not in text
    assert "may be no difference. No timing was tested." in render_verdict(verdict(broken(), family=0))


def test_an_ab_tells_nobody_to_accept_its_head() -> None:
    better = cell("tp2 compiled", "improvement", timing(0.95, "improvement"))
    assert "epbench baseline accept" in render_verdict(verdict(better))
    assert "epbench baseline accept" not in render_verdict(verdict(better, paired=True))


def test_counters_that_did_not_change_are_counted_only() -> None:
    same = cell("tp2", "no change", timing(1.0, "no change"), counter(2**30, 2**30), counter(0, 0, metric="recompiles"))
    text = render_verdict(verdict(same))
    assert "Counters: none of 2 changed." in text and "peak memory" not in text
    nearly = [counter(2**30, 2**30 + 512), counter(10_000, 10_001, metric="kernel_count")]
    text = render_verdict(verdict(cell("tp2", "no change", timing(1.0, "no change"), *nearly[:1])))
    assert "Counters: none of 1 changed by more than rounding." in text and "peak memory" not in text
    text = render_verdict(verdict(cell("tp2", "no change", timing(1.0, "no change"), *nearly)))
    assert "10,000 \N{RIGHTWARDS ARROW} 10,001" in text and "peak memory" not in text


def test_no_control_character_reaches_a_terminal() -> None:
    text = render_verdict(nasty())
    assert not {"\x00", "\x1b", "\x85", "\u202e", "\u2028", "\udc80"} & set(text)
    assert all(len(line) < 3000 for line in text.splitlines()) and len(text) < 60_000


# ---------------------------------------------------------------- JUnit XML


def endings(found: Verdict) -> dict[tuple[str, str], str]:
    root = ElementTree.parse(BytesIO(junit_xml(found)))
    return {
        (case.get("classname", ""), case.get("name", "")): case[0].tag if len(case) else "passed"
        for case in root.iter("testcase")
    }


def test_a_suite_is_a_cell_and_a_test_what_is_gated_of_it(night: Verdict) -> None:
    assert endings(night) == {
        ("dp0 eager", "outcome"): "passed",
        ("dp0 eager", "device_work_s"): "passed",
        ("dp1 eager", "outcome"): "passed",
        ("dp1 eager", "device_work_s"): "passed",
        ("tp2 compiled", "outcome"): "passed",
        ("tp2 compiled", "device_work_s"): "passed",
        ("dp2-ep2 compiled", "outcome"): "passed",
        ("dp2-ep2 compiled", "device_work_s"): "failure",
        ("dp2-ep2 compiled", "step_s"): "passed",
        ("dp2-ep2 compiled", "peak_allocated_bytes"): "failure",
        ("cp2 eager", "outcome"): "skipped",  # of the new one, which is named like the doubtful one
        ("cp2 eager", "device_work_s"): "skipped",
        ("rep2 eager", "outcome"): "passed",
        ("rep2 eager", "device_work_s"): "skipped",
        ("tp2-ep2 eager", "outcome"): "error",
        ("tp2-ep2 eager", "device_work_s"): "passed",
        ("tp2 eager", "outcome"): "failure",
    }


def test_counts_messages_and_properties(night: Verdict) -> None:
    root = ElementTree.fromstring(junit_xml(night))
    assert [root.get(key) for key in ("tests", "failures", "errors")] == ["18", "3", "1"]
    suite = next(one for one in root if one.get("name") == "dp2-ep2 compiled")
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped", "timestamp")} == {
        "tests": "4", "failures": "2", "skipped": "0", "timestamp": "2026-11-24T02:30:00",
    }  # fmt: skip
    values = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert values["device_work_s.ratio"] == "1.034" and values["device_work_s.p_holm"] == "0.0004"
    assert values["device_work_s.n"] == "5+5" and values["verdict"] == "regression"
    failure = next(suite.iter("failure"))
    assert failure.get("message") == "device work, ms: +3.4 % [2.8, 4.0], limit 2 %"
    assert failure.text == "base 400.0, head 413.6, n=5+5, p=<0.001"
    known = next(one for one in root if one.get("name") == "rep2 eager")
    assert next(known.iter("skipped")).get("message", "").startswith("acknowledged: issue 7; device work")


@pytest.mark.parametrize("found", [verdict(), nasty(), verdict(*many(300))], ids=["empty", "nasty", "many"])
def test_it_is_what_the_schema_says(found: Verdict) -> None:
    SCHEMA.validate(BytesIO(junit_xml(found)))


@pytest.mark.parametrize("wrong", ["said=", 'test="', "T"])
def test_the_schema_refuses_what_is_not_junit(wrong: str, night: Verdict) -> None:
    text = junit_xml(night).decode()
    right = {"said=": "message=", 'test="': 'tests="', "T": "T02:30"}[wrong]
    assert SCHEMA.is_valid(BytesIO(text.encode()))
    assert not SCHEMA.is_valid(BytesIO(text.replace(right, wrong).encode()))


@settings(max_examples=60, deadline=None)
@given(name=st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_name_makes_a_document_that_parses(name: str) -> None:
    found = verdict(broken(name, name), regressed(name, acknowledged=name), scenario=name)
    root = ElementTree.fromstring(junit_xml(found))
    assert root.get("tests") == "3"


# ---------------------------------------------------------------- markdown


def test_the_summary_is_worst_first_and_unfolded(night: Verdict) -> None:
    text = summary_markdown(night)
    titles = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert titles == [
        "Regressions (2)",
        "What else changed in them, not gated (1)",
        "Not judged (3)",
        "Improvements (1)",
        "Known regressions, which fail nothing (1)",
        "Warnings (1)",
        "What else differs (1)",
        "Without change (2)",
    ]
    assert text.startswith("## Gate: nightly: failed\n\n**1 broken: tp2 eager") and "<details>" not in text
    assert text.index("| tp2 eager | outcome | ok | crashed |") < text.index("| dp2-ep2 compiled | device work, ms |")


def test_the_comment_begins_with_its_marker_and_folds_all_but_regressions(night: Verdict) -> None:
    text = comment_markdown(night)
    assert text.startswith("<!-- epbench-gate:nightly -->\n## Gate: nightly: failed\n")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == ["Regressions (2)"]
    assert text.count("<details><summary>") == text.count("</details>") == 7
    assert "<details><summary>Without change (2)</summary>\n\n| cell |" in text


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("qwen3-30b_2gpu.v1", "<!-- epbench-gate:qwen3-30b_2gpu.v1 -->"),
        ("a--b", "<!-- epbench-gate:a--b -->"),
    ],
)
def test_the_marker_holds_any_name_of_a_scenario(scenario: str, expected: str) -> None:
    assert marker(scenario) == expected


@pytest.mark.parametrize("name", ["-->", NASTY, "", "x" * 65])
def test_the_marker_of_other_names_is_a_digest(name: str) -> None:
    assert re.fullmatch(r"<!-- epbench-gate:[0-9a-f]{16} -->", marker(name))


def test_names_do_nothing_in_markdown() -> None:
    for text in (summary_markdown(nasty()), comment_markdown(nasty())):
        assert "<script" not in text.replace("\\<script", "") and "<img" not in text.replace("\\<img", "")
        assert not {"\x00", "\x1b", "\u202e", "\u2028"} & set(text)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} <= {4, 7, 10}


@pytest.mark.parametrize("limit", [4_000, comment.LIMIT])
def test_a_comment_of_any_number_of_cells_fits(limit: int) -> None:
    slower = [regressed(f"\N{SNOWMAN}{place} eager", 1.03 + place / 1000) for place in range(600)]
    text = comment_markdown(verdict(*slower, *many(700)), limit=limit)
    assert limit * 0.8 < len(text.encode()) <= limit
    shown = text.count("| regression |")
    assert f"and {600 - shown} more lines of regressions, in verdict.json" in text
    assert "and 700 more cells without change, in verdict.json" in text
    assert "\N{SNOWMAN}599 eager" in text


def test_a_summary_of_many_cells_fits_into_what_github_takes() -> None:
    quiet = [cell(f"{place} {'x' * 150}") for place in range(6_000)]
    text = summary_markdown(verdict(regressed(), *quiet))
    assert step_summary.LIMIT * 0.99 < len(text.encode()) <= step_summary.LIMIT == 1_048_576
    shown = len(re.findall(r"^\| \d+ xxx", text, re.MULTILINE))
    assert f"and {6_000 - shown} more cells without change, in verdict.json" in text and 4_000 < shown < 6_000


def test_what_fits_whole_is_whole() -> None:
    part = lines_part("List", ["one", "two"], "lines")
    whole = "Opening\n\n### List\n\n- one\n- two\n"
    assert fitted("Opening", [part, Part("Empty", (), "nothing")], limit=1000) == whole


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), max_size=4),
    row=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1, max_size=30),
    limit=st.integers(500, 4000),
)
def test_nothing_is_longer_than_its_limit_and_nothing_is_lost_silently(counts: list[int], row: str, limit: int) -> None:
    parts = [Part("Title", tuple([f"- {row}"] * count), "rows", head="x" * 10, is_folded=True) for count in counts]
    text = fitted("Opening", parts, limit=limit)
    assert len(text.encode()) <= limit
    left = sum(map(int, re.findall(r"and (\d+) more rows", text)))
    shown = sum(line == f"- {row}" for line in text.split("\n"))
    assert shown + left == sum(counts)


def test_headings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="hold not even the headings"):
        summary_markdown(verdict(*many(1)), limit=100)


# ---------------------------------------------------------------- a step's summary on GitHub


def test_the_summary_of_a_step_is_appended(night: Verdict, tmp_path: Path) -> None:
    file = tmp_path / "summary"
    file.write_text("# before\n")
    assert append_summary(night, {"GITHUB_STEP_SUMMARY": str(file)}) is None
    assert file.read_text() == f"# before\n\n{summary_markdown(night)}"
    assert append_summary(night, {}) is None


@pytest.mark.parametrize(("there", "is_full"), [(step_summary.LIMIT - 3000, False), (step_summary.LIMIT - 10, True)])
def test_a_summary_that_is_nearly_full_takes_what_has_room(there: int, is_full: bool, tmp_path: Path) -> None:
    file = tmp_path / "summary"
    file.write_bytes(b"x" * there)
    said = append_summary(verdict(*many(300)), {"GITHUB_STEP_SUMMARY": str(file)})
    assert (said is not None and "is full" in said) == is_full
    assert file.stat().st_size <= step_summary.LIMIT
    assert (" more cells without change, in verdict.json" in file.read_text()) == (not is_full)


def test_one_word_a_cell_decides_what_is_shown() -> None:
    """A cell that is outside of the gate, or was skipped in both arms, is without change and says why."""
    outside = cell("dp2", why="not gated, otherwise regression: 5 % slower")
    found: list[CellVerdict] = [outside.model_copy(update={"metrics": []})]
    assert "- dp2: not gated, otherwise regression: 5 % slower" in render_verdict(verdict(*found))
