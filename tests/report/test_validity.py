"""Noise and validity: every launch is drawn, what does not count says why, and the machine's tables tell all."""

import json
from typing import Any

import pytest

from epbench.records import CellResult, LaunchValue, RunView, Telemetry
from epbench.report.comparison import Compared
from epbench.report.data import RunData
from epbench.report.machine_tables import canary_table, checks_table, gpu_table
from epbench.report.sections.model import Section
from epbench.report.sections.validity import validity_section
from epbench.report.tables import Table
from tests.report.gallery import RUNS, cell_of
from tests.report.sample import DP4, DP4_EP4, measured_cell, view_of
from tests.report.sample_data import sample_data


def launches(*steps: tuple[float | None, str, str]) -> list[LaunchValue]:
    """Launches as (step seconds, host, why it is invalid)."""
    return [
        LaunchValue(
            index=at,
            order=at,
            step_s=step_s,
            step_sd_s=0.003,
            valid=not why,
            invalid_reason=why or None,
            host={"names": [host]},
        )
        for at, (step_s, host, why) in enumerate(steps)
    ]


def cell(*steps: tuple[float | None, str, str]) -> CellResult:
    return measured_cell(cell_of(DP4), 0.3).model_copy(update={"launch_values": launches(*steps)})


MIXED = cell(
    (0.30, "a", ""), (0.33, "b", ""), (0.27, "a", ""), (0.60, "b", "GPU 0: <b>too hot"), (None, "a", "it hung")
)


def section_of(run: RunView | RunData) -> Section:
    return validity_section(Compared.of(run))


def table_of(section: Section, title: str) -> list[list[str]]:
    return texts(next(part.table for part in section.tables if part.title == title))


def texts(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[value.text for value in row] for row in table.rows]


def series(section: Section) -> dict[str, dict[str, Any]]:
    ((variant,),) = [chart.variants for chart in section.charts]
    return {trace["name"]: trace for trace in json.loads(variant.figure.json)["data"]}


def test_launches_stand_around_the_median_of_the_valid_ones() -> None:
    found = series(section_of(view_of([MIXED])))
    assert {name: trace["x"] for name, trace in found.items()} == {
        "valid, machine start 1": [0.0, -10.0],
        "valid, machine start 2": [10.0],
        "invalid, machine start 2": [100.0],
    }
    hollow = found["invalid, machine start 2"]
    assert hollow["marker"]["symbol"] == "diamond-open"
    assert hollow["text"] == ["launch 3, 600.0 ms, invalid: GPU 0: &lt;b&gt;too hot"]


def on(gpus: str, *, host: str = "a") -> CellResult:
    """A cell whose launches name these GPUs."""
    launches = MIXED.launch_values[:2]
    named = {"names": [host], "gpu_uuids": list(gpus)} if host else {}
    return MIXED.model_copy(
        update={"cell": f"on-{gpus}", "launch_values": [one.model_copy(update={"host": named}) for one in launches]}
    )


def test_cells_with_fewer_ranks_are_on_the_same_machine_start() -> None:
    section = section_of(view_of([on("01"), on("0123")]))
    assert section.note == "4 launches of all cells, none of them invalid, on 1 machine start."
    assert list(series(section)) == ["valid launch"]


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        (["a", ""], ["valid launch"]),
        (["", "a", "b"], ["valid, machine start not recorded", "valid, machine start 1", "valid, machine start 2"]),
    ],
)
def test_launches_that_name_no_host_are_no_machine_start(hosts: list[str], names: list[str]) -> None:
    cells = [on(str(at), host=host) for at, host in enumerate(hosts)]
    section = section_of(view_of(cells))
    assert list(series(section)) == names
    assert section.note.endswith("1 machine start." if len(hosts) == 2 else "2 machine starts.")


def test_nothing_is_said_of_machine_starts_where_no_launch_names_a_host() -> None:
    assert section_of(view_of([on("", host="")])).note == "2 launches of all cells, none of them invalid."


def test_every_invalid_launch_has_its_reason_in_a_table() -> None:
    section = section_of(view_of([MIXED]))
    assert table_of(section, "Invalid launches") == [
        ["dp4 eager", "GPU 0: <b>too hot", "3", "600.0"],
        ["dp4 eager", "it hung", "4", "\u2013"],
    ]
    assert section.note == "5 launches of all cells, 2 of them invalid, on 2 machine starts."


def test_the_table_has_the_scatter_and_what_it_can_find() -> None:
    variant = section_of(view_of([cell((0.300, "a", ""), (0.303, "a", ""))])).charts[0].variants[0]
    assert variant.table is not None
    row = dict(zip(variant.table.titles, texts(variant.table)[0], strict=True))
    # sd of two logs: ln(303/300) / sqrt(2)
    assert (row["between"], row["launches"], row["spread of the step"]) == ("0.70 %", "2", "1.0 %")
    assert row["finds at 3"] == row["finds at 8"] == "\u2013"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], "No cell has two launches with a step time"),
        ([cell((0.3, "a", ""))], "No cell has two launches with a step time"),
        ([cell((None, "a", "it hung"), (None, "a", "it hung"))], "No cell has two launches with a step time"),
    ],
)
def test_without_a_second_launch_it_says_so_and_draws_nothing(cells: list[CellResult], said: str) -> None:
    section = section_of(view_of(cells))
    assert section.missing.startswith(said)
    assert section.charts == ()


def test_cells_with_one_launch_are_named_beside_the_others() -> None:
    alone = measured_cell(cell_of(DP4_EP4), 0.31, launches=1)
    (chart,) = section_of(view_of([MIXED, alone])).charts
    assert chart.variants[0].note == "One launch only, which says nothing of noise: dp4-ep4 eager."


def test_only_checks_that_were_not_ok_are_shown_with_their_fix() -> None:
    view = sample_data().view
    shown = ["warn", "shm", "64 MiB", "run the container with --shm-size=16g"]
    assert texts(checks_table(view)) == [["1", *shown], ["2", *shown]]
    assert checks_table(view_of([])) is None


def test_the_canary_says_what_changed_beyond_doubt() -> None:
    spread = {"median": 1.0, "low": 0.97, "high": 1.04}
    slow, near = ({key: factor * value for key, value in spread.items()} for factor in (1.3, 1.05))
    before = {"outcome": "ok", "seconds": {"gemm": spread, "all_reduce": spread, "all_to_all": spread}}
    after = {"outcome": "ok", "seconds": {"gemm": slow, "all_reduce": near}}
    sitting = {"started": "2026-11-22T10:15:00+00:00", "canary_before": before, "canary_after": after}
    rows = texts(canary_table(view_of([], sittings=[sitting])))
    assert [row[1:] for row in rows] == [
        ["gemm", "1,000 [970, 1,040]", "1,300 [1,261, 1,352]", "+30.0 %", "changed"],
        ["all_reduce", "1,000 [970, 1,040]", "1,050 [1,018, 1,092]", "+5.0 %", "no change beyond doubt"],
        ["all_to_all", "1,000 [970, 1,040]", "\u2013", "\u2013", "no pair to compare"],
    ]
    assert canary_table(view_of([])) is None


def test_a_row_for_each_gpu_over_its_valid_launches() -> None:
    table = gpu_table(sample_data().view)
    assert table is not None
    row = dict(zip(table.titles, texts(table)[0], strict=True))
    assert len(table.rows) == 4
    assert row["GPU"] == "GPU-0"
    assert row["held back by"] == "software power cap (up to 40.0 %)"
    assert row["SM clock, MHz"] == "1755 [1720, 1790]"
    assert row["utilisation"] == "96 [94, 98] %"
    assert texts(table)[1][1] == "nothing"


def test_what_a_driver_does_not_tell_is_a_dash() -> None:
    silent = Telemetry.model_validate(
        {"window_s": 1, "interval_s": 0.2, "cost": 0, "gpus": [{"uuid": "GPU-x", "samples": 5}]}
    )
    watched = [one.model_copy(update={"telemetry": silent}) for one in MIXED.launch_values]
    rows = texts(gpu_table(view_of([MIXED.model_copy(update={"launch_values": watched})])))
    assert rows == [["GPU-x", "\u2013", "3", *["\u2013"] * 7]]
    assert gpu_table(view_of([MIXED])) is None


def test_losses_are_held_against_what_is_allowed() -> None:
    agreed = MIXED.model_copy(update={"verify": MIXED.verify.model_copy(update={"losses_error": 3e-5})})
    foreign = agreed.model_copy(update={"cell": "foreign", "train": {}, "loss": []})
    rows = table_of(section_of(view_of([agreed, foreign])), "Agreement of losses")
    assert [row[1:] for row in rows] == [
        ["12.1000, 11.8000, 11.2000", "3.0e-05", "1.0e-03"],
        ["\u2013", "3.0e-05", "\u2013"],
    ]


def test_a_run_that_was_cut_off_still_shows_its_launches() -> None:
    section = section_of(RUNS["unfinished"]())
    assert "of them invalid" in section.note
    assert "HW thermal slowdown" in table_of(section, "Invalid launches")[0][1]
