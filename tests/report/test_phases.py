"""``epbench show RUN --phases``: where the time of launches and sittings went, from hand-made cells."""

from epbench.cells import Cell
from epbench.report.comparison import Compared
from epbench.report.phases import phases_table, render_phases
from epbench.report.text import UNKNOWN
from tests.report.sample import DP4, DP4_EP4, measured_cell, unmeasured_cell, view_of

VERIFY = {"start_up": 1.0, "verify_reference": 2.0, "verify_layout": 5.0, "teardown": 0.5, "analysis": 0.0}
EAGER = {"start_up": 1.0, "build": 1.0, "warmup": 2.0, "timing": 5.0, "memory": 1.0, "teardown": 0.5, "analysis": 0.5}
COMPILED = {"start_up": 1.0, "build": 1.0, "compile": 20.0, "warmup": 2.0, "timing": 4.0, "teardown": 1.0, "new": 1.0}
CELLS = [
    measured_cell(Cell(layout=DP4), 0.4, phases_s={"verify": VERIFY, "measure": EAGER}),
    measured_cell(Cell(layout=DP4, mode="compiled"), 0.3, launches=5, phases_s={"measure": COMPILED}),
    unmeasured_cell(Cell(layout=DP4_EP4), "skipped", "illegal"),
]


def texts(kind: str) -> list[list[str]]:
    table = phases_table(Compared.of(view_of(CELLS)), kind)
    assert table is not None
    return [list(table.titles), *([value.text for value in row] for row in table.rows)]


def test_cells_stand_with_their_phases_in_the_order_of_a_launch() -> None:
    titles, eager, compiled, shares = texts("measure")
    passed = ["build", "compile", "warmup", "timing", "memory", "teardown", "analysis", "new"]
    assert titles == ["cell", "n", "start up", *passed, "sum"]
    assert eager == [
        "dp4 eager",
        "3",
        "1.00",
        "1.00",
        UNKNOWN,
        "2.00",
        "5.00",
        "1.00",
        "0.50",
        "0.50",
        UNKNOWN,
        "11.00",
    ]
    assert compiled[:2] + compiled[-1:] == ["dp4 compiled", "5", "30.00"]
    # 3 launches of 11 s and 5 of 30 s: 183 s, of which 100 s compiled and 35 s timed
    assert shares[:2] + shares[-1:] == ["share of all", "8", "183.00"]
    assert (shares[4], shares[6]) == ("54.6 %", "19.1 %")


def test_the_stages_of_a_verification_have_their_own_table() -> None:
    titles, row, shares = texts("verify")
    assert titles == ["cell", "n", "start up", "reference", "layout", "teardown", "analysis", "sum"]
    assert row == ["dp4 eager", "1", "1.00", "2.00", "5.00", "0.50", "0.00", "8.50"]
    assert shares[4] == "58.8 %"


def test_the_terminal_gets_both_and_what_the_sitting_spent() -> None:
    sitting = {"started": "2026-11-22T10:15:00Z", "spent_s": {"fork_server": 11.2, "launches": 191.5, "elsewhere": 0.3}}
    text = render_phases(view_of(CELLS, sittings=[{"started": "2026-11-22T09:15:00Z"}, sitting]))
    assert text.index("Verification") < text.index("Measured launches") < text.index("The sitting took")
    assert text.endswith("The sitting took 203.0 s: fork server 11.2 s, launches 191.5 s, elsewhere 0.3 s.")
    assert max(map(len, text.splitlines())) <= 120


def test_no_name_of_a_phase_reaches_the_terminal_as_more_than_a_name() -> None:
    hostile = {"\x1b[31m[b]": 1.0, "\u202e" + "x" * 500: 2.0}
    sitting = {"started": "2026-11-22T10:15:00Z", "spent_s": hostile}
    text = render_phases(
        view_of([measured_cell(Cell(layout=DP4), 0.4, phases_s={"measure": hostile})], sittings=[sitting])
    )
    assert not {"\x1b", "\u202e"} & set(text)
    assert "[b]" in text and "x" * 101 not in text.replace("\n", "")


def test_a_run_from_before_phases_were_kept() -> None:
    assert render_phases(view_of([measured_cell(Cell(layout=DP4), 0.4)])) == "No launch of this run has its phases."
