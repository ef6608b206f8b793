"""What may be said: fastest only where every interval says so, ties as ties, sizes never as layouts."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.analysis.statistics import launch_interval
from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import CellResult
from epbench.report.comparison import Compared, groups_of, pareto, speed_ratio
from epbench.report.frontier import choice_of
from epbench.report.text import clean, interval, number, speed_up
from epbench.report.verdict import Verdict, by_importance, outcome_counts, summary, verdict_words, verdicts
from tests.report.sample import DP4, DP4_EP4, FEW, TP2_EP4, measured_cell, sample_view, unmeasured_cell, view_of


def say(*cells: CellResult) -> list[Verdict]:
    return list(verdicts(Compared.of(view_of(list(cells)))))


def cell(layout: Layout, step_s: float, mode: str = "eager", **fields: Any) -> CellResult:
    return measured_cell(Cell.model_validate({"layout": layout, "mode": mode}), step_s, **fields)


def test_the_fastest_is_named_with_its_step_and_its_lead_over_plain_data_parallelism() -> None:
    wide, few = verdicts(Compared.of(sample_view()))
    assert wide.kind == few.kind == "fastest"
    assert wide.text == (
        "128 experts, top-8, width 768: dp4-ep4 compiled is fastest: 317.8 [310.4, 325.8] ms/step, "
        "10.8 % [10.4, 11.0] faster than dp4 compiled; peak 48.8 GiB of 141."
    )


def test_the_next_is_named_when_it_is_not_the_reference() -> None:
    (verdict,) = say(cell(DP4, 0.5), cell(DP4_EP4, 0.4, sign=-1), cell(TP2_EP4, 0.3))
    assert verdict.sentence.startswith("dp2-tp2-ep4 eager is fastest: ")
    assert "66.7 % [66.7, 66.7] faster than dp4 eager and 33.2 % [33.0, 33.7] faster than dp4-ep4 eager, the next" in (
        verdict.sentence
    )


def test_what_cannot_be_told_apart_is_a_tie() -> None:
    (verdict,) = say(cell(DP4, 0.4), cell(DP4_EP4, 0.4001, sign=-1), cell(TP2_EP4, 0.6))
    assert verdict.kind == "tie"
    assert verdict.sentence.startswith("dp4-ep4 eager and dp4 eager cannot be told apart")
    assert "Of these dp4-ep4 eager has the lowest peak, 58.9 of 141 GiB." in verdict.sentence
    assert verdict.sentence.endswith("The other one is slower.")


@pytest.mark.parametrize("launches", [1, 2])
def test_too_few_launches_are_not_ranked(launches: int) -> None:
    (verdict,) = say(cell(DP4, 0.4, launches=launches), cell(DP4_EP4, 0.2, launches=launches))
    assert verdict.kind == "unranked"
    assert (
        f"No ranking: an interval needs 3 valid launches a cell, and fewer than two cells have them (most: {launches})"
        in verdict.sentence
    )
    assert "fastest" not in verdict.sentence


def test_a_cell_with_too_few_launches_is_left_out_of_the_ranking_by_name() -> None:
    (verdict,) = say(cell(DP4, 0.4), cell(DP4_EP4, 0.3), cell(TP2_EP4, 0.1, launches=2))
    assert verdict.sentence.startswith("dp4-ep4 eager is fastest")
    assert verdict.sentence.endswith("Not ranked, fewer than 3 valid launches: dp2-tp2-ep4 eager.")


def test_an_unstable_cell_with_a_number_is_not_ranked() -> None:
    (verdict,) = say(cell(DP4, 0.4), cell(DP4_EP4, 0.3), cell(TP2_EP4, 0.1, outcome="unstable", reason="x"))
    assert verdict.sentence.startswith("dp4-ep4 eager is fastest")


def test_memory_is_told_against_what_the_device_has_where_that_is_known() -> None:
    rows = [cell(DP4, 0.4), cell(DP4_EP4, 0.3, peak_reserved_bytes=52 * 2**30)]
    assert say(*rows)[0].sentence.endswith("; peak 52.0 GiB of 141.")
    on_cpu = view_of([cell(DP4, 0.4, device="cpu"), cell(DP4_EP4, 0.3, device="cpu")], device="cpu")
    assert verdicts(Compared.of(on_cpu))[0].sentence.endswith("; peak 50.5 GiB.")
    unknown: dict[str, Any] = {"peak_reserved_bytes": None, "peak_allocated_bytes": None}
    assert say(rows[0], cell(DP4_EP4, 0.3, **unknown))[0].sentence.endswith("faster than dp4 eager.")


def timed(layout: Layout, *steps_ms: float, hosts: Sequence[dict[str, Any]] = ({}, {}, {})) -> CellResult:
    """A cell with these three launches, on these hosts."""
    row = cell(layout, 1.0)
    launches = zip(row.launch_values, steps_ms, hosts, strict=True)
    values = [one.model_copy(update={"step_s": step_ms / 1e3, "host": host}) for one, step_ms, host in launches]
    step = launch_interval([step_ms / 1e3 for step_ms in steps_ms])
    assert step is not None
    found = {"launch_values": values, "step_s": step.value, "step_s_low": step.low, "step_s_high": step.high}
    return row.model_copy(update=found)


def test_a_cell_that_is_slower_than_one_of_the_tied_is_not_among_them() -> None:
    rows = [timed(DP4, 90, 100, 135), timed(DP4_EP4, 101, 101.1, 101.2), timed(TP2_EP4, 120, 120.1, 120.2)]
    (verdict,) = say(*rows)
    assert verdict.sentence.startswith("dp4 eager and dp4-ep4 eager cannot be told apart: ")
    assert verdict.sentence.endswith("The other one is slower.")
    assert [*verdict_words(Compared.of(view_of(rows))).values()] == ["tied", "tied", "slower"]


UNLIKE = "Not all ran on the same machine starts; what a start adds is in no interval."
A, B = {"names": ["a"], "gpu_uuids": ["GPU-1"]}, {"names": ["b"], "gpu_uuids": ["GPU-2"]}
STARTS: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]], str, bool]] = [
    ("the same start", [A] * 3, [A] * 3, "fastest", False),
    ("one sitting each", [A] * 3, [B] * 3, "tie", True),
    ("another start in one round", [A, A, B], [A, B, B], "tie", True),
    ("both moved after a round", [A, B, B], [A, B, B], "fastest", False),
    ("not recorded", [{}] * 3, [{}] * 3, "fastest", False),
    ("one not recorded", [A] * 3, [{}] * 3, "tie", False),
]


@pytest.mark.parametrize(("one", "other", "kind", "is_told"), [it[1:] for it in STARTS], ids=[it[0] for it in STARTS])
def test_launches_are_pairs_on_one_machine_start_only(
    one: list[dict[str, Any]], other: list[dict[str, Any]], kind: str, is_told: bool
) -> None:
    rows = [timed(DP4, 290, 300, 310, hosts=one), timed(DP4_EP4, 285, 295, 305, hosts=other)]
    (verdict,) = say(*rows)
    assert (verdict.kind, UNLIKE in verdict.sentence) == (kind, is_told)
    choice = choice_of(Compared.of(view_of(rows)), rows)
    assert choice.points[-1].standing == ("dominated" if kind == "fastest" else "may be")


def test_every_cell_has_a_word_that_its_intervals_bear_out() -> None:
    rows = [
        cell(DP4, 0.4),
        cell(DP4_EP4, 0.4001, sign=-1),
        cell(TP2_EP4, 0.6),
        cell(DP4, 0.1, "compiled", launches=2),
        unmeasured_cell(Cell(layout=DP4_EP4, mode="compiled"), "oom", "out of memory"),
        unmeasured_cell(Cell(layout=TP2_EP4, mode="compiled"), None, "not run yet"),
    ]
    words = verdict_words(Compared.of(view_of(rows)))
    assert [words[row.cell] for row in rows] == ["tied", "tied", "slower", "not ranked", "oom", "not run"]
    assert set(verdict_words(Compared.of(sample_view(launches=2))).values()) >= {"not ranked"}
    assert "fastest" in verdict_words(Compared.of(sample_view())).values()


def with_routing(routing: str, *steps: float) -> list[CellResult]:
    return [
        measured_cell(Cell.model_validate({"layout": layout, "routing": routing}), step_s)
        for layout, step_s in zip((DP4, DP4_EP4), steps, strict=False)
    ]


def test_many_groups_are_summed_up_and_the_important_ones_come_first() -> None:
    rows = [
        *with_routing("zipf:1.0", 0.4, 0.3),
        *with_routing("zipf:1.2", 0.3),
        *with_routing("natural", 0.4, 0.3),
        *with_routing("uniform", 0.3, 0.4),
    ]
    compared = Compared.of(view_of(rows))
    assert summary(compared) == (
        "Of 4 groups of comparable cells: dp4-ep4 eager is fastest in 2, dp4 eager is fastest in 1, 1 has no ranking."
    )
    assert [verdict.work for verdict in by_importance(compared)] == [
        "natural routing",
        "zipf:1.0 routing",
        "uniform routing",
        "zipf:1.2 routing",
    ]
    assert summary(Compared.of(sample_view())) == ""


def test_one_number_and_no_number() -> None:
    oom = unmeasured_cell(Cell(layout=DP4), "oom", "out of memory")
    assert "Only dp4-ep4 eager has a number" in say(cell(DP4_EP4, 0.3), oom)[0].sentence
    assert say(oom)[0].sentence == "No cell has a number (1 oom)."
    assert say() == []


def test_sizes_are_groups_of_their_own() -> None:
    groups = groups_of(sample_view())
    assert [group.work for group in groups] == ["128 experts, top-8, width 768", "64 experts, top-4, width 1536"]
    assert all(row.model["num_experts"] == 64 for row in groups[1].cells)


def test_ways_to_compute_share_a_group_and_are_named() -> None:
    full = Cell.model_validate({"layout": DP4, "train": {"activation_checkpointing": "full"}})
    (verdict,) = say(cell(DP4, 0.4), measured_cell(full, 0.5))
    assert verdict.sentence.startswith("dp4 eager, activation_checkpointing none is fastest")


def test_more_work_is_another_group() -> None:
    longer = Cell.model_validate({"layout": DP4, "train": {"seq_len": 256}})
    assert [verdict.work for verdict in say(cell(DP4, 0.4), measured_cell(longer, 0.5))] == [
        "seq_len 128",
        "seq_len 256",
    ]


def test_outcomes_are_counted_with_those_not_run() -> None:
    counts = outcome_counts(sample_view())
    assert counts == {"ok": 10, "oom": 1, "wrong": 1, "unstable": 1, "crashed": 1, "skipped": 1, "not run": 1}


def test_invalid_launches_and_failed_cells_have_no_ratio() -> None:
    good, bad = cell(DP4, 0.4), cell(DP4_EP4, 0.3, outcome="wrong", reason="x")
    assert speed_ratio(good, bad) is None
    assert speed_ratio(good, good) is None
    values = [launch.model_copy(update={"valid": False}) for launch in good.launch_values]
    assert speed_ratio(good.model_copy(update={"cell": "other", "launch_values": values}), good) is None


def test_the_model_of_a_run_is_named_only_where_it_varies() -> None:
    one = Compared.of(view_of([cell(DP4, 0.4), cell(DP4_EP4, 0.3)]))
    assert one.naming.full(one.view.cells[0]) == "dp4 eager"
    few = measured_cell(Cell(layout=DP4, model=FEW), 0.3)
    two = Compared.of(view_of([cell(DP4, 0.4), few]))
    assert two.naming.full(few).startswith("dp4 eager, 64 / 4 / 1536")


@pytest.mark.parametrize(
    ("value", "text"),
    [(33194.4, "33,194"), (318.24, "318"), (0.01954, "0.0195"), (0.0, "0"), (None, "\u2013"), (float("nan"), "\u2013")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert number(value) == text


def test_intervals_share_the_decimals_of_their_value() -> None:
    assert interval(0.3182, 0.3151, 0.32101, scale=1e3) == "318.2 [315.1, 321.0]"
    assert interval(0.3182, None, None, scale=1e3) == "318.2"
    assert interval(None, None, None) == speed_up(None) == "\u2013"


def test_names_become_one_short_line() -> None:
    assert clean("a\nb\u202ec\u2028d") == "a\ufffdb\ufffdc\ufffdd"
    assert clean("x" * 10_000, 50) == "x" * 49 + "…"


points = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


@given(points)
def test_no_point_of_the_frontier_is_beaten_and_all_others_are(found: list[tuple[int, int]]) -> None:
    named = {str(index): point for index, point in enumerate(found)}
    frontier = pareto((name, float(memory), float(speed)) for name, (memory, speed) in named.items())

    def beaten(name: str) -> bool:
        memory, speed = named[name]
        return any(m <= memory and s >= speed and (m, s) != (memory, speed) for m, s in named.values())

    assert sorted(frontier) == sorted(name for name in named if not beaten(name))
