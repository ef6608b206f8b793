"""How long it will be: from launches alike, or not at all. Hand-made records."""

import pytest

from epbench.cells import Cell, Mode
from epbench.layout import Layout
from epbench.records import MemoryBytes
from epbench.runner.forecast import Ahead, Durations, Left, launches_ahead
from epbench.runner.launched import LaunchRecord
from epbench.runner.schedule import Kind
from tests.runner.test_schedule import crashed, record, timed, verified

PEAK = MemoryBytes()  # that there is one is all that counts


def cell(layout: Layout, mode: Mode = "eager") -> Cell:
    return Cell(layout=layout, mode=mode)


def took(kind: Kind, seconds: float, *, first: bool = False) -> LaunchRecord:
    return record(kind, elapsed_s=seconds).model_copy(update={"memory": PEAK if first else None})


DP4, DP4_EP4 = Layout(dp_shard=4), Layout(dp_shard=4, ep=4)
A, B, COMPILED = cell(DP4), cell(DP4_EP4), cell(DP4, "compiled")


def durations() -> Durations:
    """Cell A in full, the first launch of B, and of compiled cells the verification and a first launch."""
    found = Durations()
    for one, launch in (
        (A, took("verify", 8.0)),
        (A, took("measure", 20.0, first=True)),
        (A, took("measure", 10.0)),
        (A, took("measure", 12.0)),
        (B, took("measure", 30.0, first=True)),
        (COMPILED, took("verify", 40.0)),
        (COMPILED, took("measure", 90.0, first=True)),
        (B, crashed(1)),
    ):
        found.learn(one, launch)
    return found


@pytest.mark.parametrize(
    ("ahead", "left"),
    [
        ([Ahead(A, "measure", first=False)], Left(11.0)),
        ([Ahead(B, "measure", first=False)], Left(11.0)),  # like A's
        ([Ahead(B, "measure", first=True)], Left(30.0)),  # its own
        ([Ahead(cell(Layout(tp=4, etp=4)), "measure", first=True)], Left(25.0)),
        ([Ahead(B, "verify", first=False)], Left(8.0)),
        ([Ahead(COMPILED, "measure", first=False)], Left(90.0, at_most=True)),
        ([Ahead(A, "measure", first=False), Ahead(COMPILED, "measure", first=False)], Left(101.0, at_most=True)),
        ([], None),
    ],
)
def test_a_launch_is_like_another_of_its_kind_and_mode(ahead: list[Ahead], left: Left | None) -> None:
    assert durations().total(ahead) == left


def test_nothing_is_said_before_the_like_of_every_launch_was_seen() -> None:
    early = Durations()
    early.learn(A, took("verify", 8.0))
    early.learn(A, took("measure", 20.0, first=True))
    eager = [Ahead(A, "measure", first=False), Ahead(B, "verify", first=False)]
    assert early.total(eager) == Left(28.0, at_most=True)
    assert early.total([*eager, Ahead(COMPILED, "measure", first=False)]) is None
    assert Durations().total(eager) is None
    assert (early.rough_s(Ahead(COMPILED, "measure", first=True)), Durations().rough_s(eager[0])) == (20.0, 0.0)


@pytest.mark.parametrize(
    ("launches", "kinds"),
    [
        ([], ["verify", "first", "measure", "measure"]),
        ([verified()], ["first", "measure", "measure"]),
        ([verified(), timed(0).model_copy(update={"memory": PEAK})], ["measure", "measure"]),
        ([verified(), timed(0, invalid="x")], ["first", "measure", "measure"]),  # the repeat and two more
        ([verified(passed=False)], []),
        ([verified(), crashed(0)], []),
        ([verified(), timed(0), timed(1), timed(2)], []),
    ],
)
def test_what_is_ahead_of_a_cell(launches: list[LaunchRecord], kinds: list[str]) -> None:
    ahead = launches_ahead(A, launches, asked=3)
    assert ["first" if one.first else one.kind for one in ahead] == kinds
