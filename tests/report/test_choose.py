"""Choosing a layout: who is on the frontier as far as launches tell, and what fits a device with some memory free."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import CellResult, RunView
from epbench.report.comparison import Compared
from epbench.report.frontier import Choice, Room, answer_for, choice_of, room_of
from epbench.report.placement import Axes, label_places, text_box
from epbench.report.sections.choose import choose_section, frontier_table
from epbench.report.selection import absent_note
from epbench.report.text import UNKNOWN
from tests.report.sample import DP4, environment, measured_cell, sample_view, unmeasured_cell, view_of

GIB = 2**30
ROOM = Room(80 * GIB, GIB)
SURE, NOISY = 0, 60  # sizes of the noise that cells do not share: 3 % of the step for the noisy ones
LAYOUTS = [
    Layout(dp_shard=4, ep=4), Layout(dp_shard=2, tp=2, ep=4), Layout(dp_shard=2, cp=2, ep=4),
    Layout(tp=4, etp=4), Layout(dp_replicate=2, dp_shard=2), DP4,
]  # fmt: skip
Spec = tuple[float, float, int]  # peak GiB, step ms, noise


def cells_of(specs: Sequence[Spec], *, launches: int = 3) -> list[CellResult]:
    return [
        measured_cell(Cell(layout=layout), step_ms / 1e3, launches=launches, sign=noise).model_copy(
            update={"peak_reserved_bytes": int(peak * GIB)}
        )
        for layout, (peak, step_ms, noise) in zip(LAYOUTS, specs, strict=False)
    ]


def chosen(specs: Sequence[Spec], *, launches: int = 3) -> tuple[Compared, Choice]:
    cells = cells_of(specs, launches=launches)
    compared = Compared.of(view_of(cells))
    return compared, choice_of(compared, cells)


CASES: list[tuple[str, list[Spec], dict[str, str]]] = [
    ("more memory buys speed", [(60, 300, SURE), (40, 400, SURE)], {"dp4-ep4": "on", "dp2-tp2-ep4": "on"}),
    ("more memory, slower", [(60, 400, SURE), (40, 300, SURE)], {"dp4-ep4": "dominated", "dp2-tp2-ep4": "on"}),
    ("more memory, no telling", [(60, 300, NOISY), (40, 302, SURE)], {"dp4-ep4": "may be", "dp2-tp2-ep4": "on"}),
    ("as much memory, no telling", [(40, 300, NOISY), (40, 302, SURE)], {"dp4-ep4": "may be", "dp2-tp2-ep4": "may be"}),
    (
        "beaten by one, not told from another",
        [(40, 300, SURE), (50, 400, NOISY), (60, 402, SURE)],
        {"dp4-ep4": "on", "dp2-tp2-ep4": "dominated", "dp2-cp2-ep4": "dominated"},
    ),
]


@pytest.mark.parametrize(("specs", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_cell_stands_on_the_frontier_as_far_as_intervals_tell(specs: list[Spec], expected: dict[str, str]) -> None:
    _, choice = chosen(specs)
    assert {point.cell.layout: point.standing for point in choice.points} == expected


def test_a_dominated_cell_names_the_fastest_of_its_rivals() -> None:
    _, choice = chosen([(60, 400, SURE), (40, 300, SURE), (50, 320, SURE)])
    name, speed = choice.points[-1].rival or ("", None)
    assert name == "dp2-tp2-ep4 eager" and speed is not None and speed.value == pytest.approx(4 / 3)


def test_without_intervals_only_the_smallest_peak_is_sure() -> None:
    _, choice = chosen([(60, 300, SURE), (40, 400, SURE), (50, 500, SURE)], launches=2)
    assert [point.standing for point in choice.points] == ["on", "may be", "may be"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([40.0, 50.0, 60.0]), st.sampled_from([300.0, 303.0, 330.0, 400.0]),
                          st.sampled_from([SURE, -1, NOISY])), min_size=1, max_size=6))  # fmt: skip
def test_whatever_was_measured_the_standings_agree_with_each_other(specs: list[Spec]) -> None:
    _, choice = chosen(specs)
    standing = {point.name: point.standing for point in choice.points}
    assert {"on", "may be"} >= {point.standing for point in choice.line}
    assert {name for name in standing if standing[name] == "on"} <= {point.name for point in choice.line}
    assert [bool(point.rival) for point in choice.points] == [kind == "dominated" for kind in standing.values()]
    highest = max(peak for peak, _, _ in specs)
    within = [point for point in choice.points if point.peak_bytes < highest * GIB]
    kept = {point.cell.layout for point in within}
    compared = Compared.of(view_of([cell for cell in cells_of(specs) if cell.layout in kept]))
    fewer = choice_of(compared, compared.measured)
    assert [(point.name, point.standing) for point in fewer.points] == [(one.name, one.standing) for one in within]


# ---------------------------------------------------------------- what fits

SLOW_SMALL, FAST_LARGE = (40, 400, SURE), (76, 300, SURE)
ANSWERS: list[tuple[str, list[Spec], int, str]] = [
    (
        "the fastest",
        [SLOW_SMALL, FAST_LARGE],
        2,
        "With 2.00 GiB of 80.0 GiB kept free, dp2-tp2-ep4 eager (427 tokens/s/GPU, peak 76.0 GiB) is the fastest "
        "that fits.",
    ),
    (
        "only the small one",
        [SLOW_SMALL, FAST_LARGE],
        8,
        "With 8.00 GiB of 80.0 GiB kept free, only dp4-ep4 eager (320 tokens/s/GPU, peak 40.0 GiB) fits.",
    ),
    (
        "nothing",
        [SLOW_SMALL, FAST_LARGE],
        50,
        "With 50.0 GiB of 80.0 GiB kept free, nothing that was measured fits: the smallest peak is 40.0 GiB.",
    ),
    (
        "a tie",
        [(40, 302, SURE), (50, 300, NOISY), (45, 400, SURE)],
        8,
        "With 8.00 GiB of 80.0 GiB kept free, dp4-ep4 eager and dp2-tp2-ep4 eager are the fastest that fit and cannot "
        "be told apart; dp4-ep4 eager (424 tokens/s/GPU, peak 40.0 GiB) needs the least memory.",
    ),
    (
        "a smaller cell not told from the noisy fastest, and told from another that ties with it",
        [(40, 310, SURE), (45, 302, SURE), (50, 297, 1500)],
        8,
        "With 8.00 GiB of 80.0 GiB kept free, dp2-cp2-ep4 eager and dp2-tp2-ep4 eager are the fastest that fit and "
        "cannot be told apart; dp2-tp2-ep4 eager (424 tokens/s/GPU, peak 45.0 GiB) needs the least memory.",
    ),
]


@pytest.mark.parametrize(("specs", "free", "sentence"), [case[1:] for case in ANSWERS], ids=[it[0] for it in ANSWERS])
def test_what_to_choose_where_some_memory_stays_free(specs: list[Spec], free: int, sentence: str) -> None:
    _, choice = chosen(specs)
    assert answer_for(choice, ROOM, free * GIB) == sentence


NO_RANKING = "; fewer than two cells that fit have 3 valid launches, so nothing is ranked."


def test_two_launches_rank_nothing() -> None:
    _, choice = chosen([SLOW_SMALL, FAST_LARGE], launches=2)
    assert answer_for(choice, ROOM, 0).endswith(NO_RANKING)


def test_one_cell_with_three_launches_is_fastest_of_nothing() -> None:
    slow, fast = cells_of([SLOW_SMALL])[0], cells_of([SLOW_SMALL, FAST_LARGE], launches=2)[1]
    choice = choice_of(Compared.of(view_of([slow, fast])), [slow, fast])
    sentence = answer_for(choice, ROOM, 0)
    assert "the highest median is that of dp2-tp2-ep4 eager" in sentence and sentence.endswith(NO_RANKING)


def test_a_cell_that_cannot_be_ranked_is_named_beside_the_fastest_that_can() -> None:
    few, slow, fast = *cells_of([(40, 200, SURE)], launches=2), *cells_of([SLOW_SMALL, SLOW_SMALL, FAST_LARGE])[1:]
    choice = choice_of(Compared.of(view_of([few, slow, fast])), [few, slow, fast])
    sentence = answer_for(choice, ROOM, 0)
    assert sentence.endswith("is the fastest that fits; not ranked, below 3 valid launches: dp4-ep4 eager.")


def test_a_record_with_tokens_and_no_step_is_no_point() -> None:
    cells = cells_of([SLOW_SMALL, FAST_LARGE])
    broken = cells[0].model_copy(update={"step_s": None})
    assert [point.cell for point in choice_of(Compared.of(view_of(cells)), [broken, cells[1]]).points] == [cells[1]]


def test_a_tenth_is_kept_free_in_whole_steps_and_nothing_where_capacity_is_not_known() -> None:
    room = room_of(Compared.of(sample_view()))
    assert room == Room(141 * GIB, GIB) and room.free_bytes == 14 * GIB
    assert Room(16 * GIB, GIB // 8).free_bytes == pytest.approx(1.6 * GIB, abs=GIB // 16)
    assert room_of(Compared.of(sample_view("cpu"))) is None


# ---------------------------------------------------------------- the section


def on_80(view: RunView) -> RunView:
    return on_device(view, 80)


def on_device(view: RunView, capacity_gib: float) -> RunView:
    """The run on GPUs with so much memory, its cells out of memory with what they asked for."""
    cells = [
        cell.model_copy(update={"requested_bytes": 3 * GIB}) if cell.outcome == "oom" else cell for cell in view.cells
    ]
    machine = environment().model_copy(update={"device_memory_bytes": int(capacity_gib * GIB)})
    return view.model_copy(update={"cells": cells, "environment": machine})


def figure_of(view: RunView, variant: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(choose_section(Compared.of(view)).charts[0].variants[variant].figure.json)
    return found


def test_the_chart_has_the_limit_and_the_cells_out_of_memory_beyond_it() -> None:
    figure = figure_of(on_80(sample_view()))
    freed, capacity = figure["layout"]["shapes"]
    (edge,) = [trace for trace in figure["data"] if trace.get("hovertext") and len(trace["x"]) == 1]
    assert (freed["x0"], freed["x1"], capacity["x0"]) == (72, 80, 80)
    assert edge["x"][0] > 80 and edge["hovertext"] == ["tp4-etp4 eager<br>out of memory, asked for 3.00 GiB more"]


def test_every_cell_that_is_no_point_is_named_below_the_chart() -> None:
    note = choose_section(Compared.of(on_80(sample_view()))).charts[0].variants[0].note
    assert note.endswith(
        "Out of memory, at the right edge: tp4-etp4 eager. "
        "Not shown: tp4-etp4 compiled (wrong), rep2-dp2 eager (unstable) and rep2-dp2 compiled (crashed)."
    )


@pytest.mark.parametrize("capacity_gib", [80, 11.76, 14.56])
def test_the_script_is_given_the_sentence_that_the_page_has_without_it(capacity_gib: float) -> None:
    """At 11.76 GiB 1.125 stay free, a half that Python and a browser may round to different sides."""
    view = on_device(sample_view(), capacity_gib)
    meta = figure_of(view)["layout"]["meta"]
    fitting = [text for at_least, text in meta["answers"] if at_least <= meta["capacity_gib"] - meta["free_gib"]]
    note = choose_section(Compared.of(view)).charts[0].variants[0].note
    assert meta["kind"] == "frontier" and note.startswith(meta["answer"])
    assert meta["answer"].endswith(f" of {meta['capacity']} GiB kept free, {fitting[-1]}")
    assert "meta" not in figure_of(sample_view("cpu"))["layout"]


def test_every_cell_of_a_group_has_its_row() -> None:
    compared = Compared.of(on_80(sample_view()))
    group = compared.groups[0]
    table = frontier_table(compared, group, choice_of(compared, group.measured), room_of(compared))
    rows = {row[0].text: [value.text for value in row] for row in table.rows}
    assert set(rows) == {compared.naming.arm(cell) for cell in group.cells}
    assert rows["tp4-etp4 eager"] == ["tp4-etp4 eager", "oom", *[UNKNOWN] * 7, "3.00"]
    assert rows["dp4 compiled"][1:2] + rows["dp4 compiled"][5:8] == ["ok", "73.0 %", "dominated", "dp4-ep4 compiled"]


def test_absent_cells_are_named_and_counted_where_they_are_many() -> None:
    few = [unmeasured_cell(Cell(layout=layout), "skipped", "illegal") for layout in LAYOUTS[:2]]
    many = [unmeasured_cell(Cell(layout=DP4), "oom", "") for _ in range(9)]
    for cells, words in (
        (few, "Not shown: dp4-ep4 eager (skipped) and dp2-tp2-ep4 eager (skipped)."),
        ([*few, *many], "Not shown: 2 skipped and 9 oom, named in the table of all cells."),
        ([], ""),
    ):
        compared = Compared.of(view_of([*cells, measured_cell(Cell(layout=DP4, mode="compiled"), 0.3)]))
        group = compared.groups[0]
        assert absent_note(compared, group, {cell.cell for cell in group.measured}) == words


def test_a_run_without_peaks_says_so() -> None:
    section = choose_section(Compared.of(view_of([unmeasured_cell(Cell(layout=DP4), "oom", "out of memory")])))
    assert section.charts == () and section.missing == "No cell has both a peak of memory and a throughput."


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8))
def test_names_of_points_never_cover_a_point_or_each_other(points: dict[str, tuple[float, float]]) -> None:
    axes = Axes((-0.1, 1.1), (-0.1, 1.1))
    names = {key: f"dp4-{key}" for key in points}
    places = label_places(points, names, axes=axes)
    boxes = [text_box(axes.share(*points[key]), names[key], place) for key, place in places.items()]
    for box in boxes:
        others = [other for other in boxes if other is not box]
        inside = [at for at in (axes.share(*point) for point in points.values()) if box[0] < at[0] < box[2]]
        assert not any(box[1] < y < box[3] for _, y in inside)
        assert not any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
                       for other in others)  # fmt: skip
