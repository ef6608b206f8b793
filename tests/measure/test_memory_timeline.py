"""Streams of a few events whose peak, and what it is made of, can be added up by hand."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.measure.memory_timeline import MemoryEvent, Recording, Replay, phase_at, split_peak
from epbench.memory_records import MemoryBytes

P, M, G, A, B = 10, 20, 30, 40, 50  # addresses: parameter, moment, gradient, two that steps use
HELD = {P: 100, M: 50}
NAMED = {P: "params", M: "optimizer"}
WITH_G = NAMED | {G: "grads"}


@dataclass(frozen=True)
class Case:
    """``changes`` are (address, bytes) in order; parts are params, grads, optimizer, activations, other."""

    changes: list[tuple[int, int]]
    parts: tuple[int, int, int, int, int]
    before: dict[int, int] = field(default_factory=lambda: HELD | {G: 100})
    after: dict[int, int] = field(default_factory=lambda: HELD | {G: 100})
    named_before: dict[int, str] = field(default_factory=lambda: WITH_G)
    named_after: dict[int, str] = field(default_factory=lambda: WITH_G)


CASES = {
    "the peak is before gradients exist": Case(
        [(G, -100), (A, 500), (A, -500), (G, 100)],
        (100, 0, 50, 500, 0),
    ),
    "the peak is in backward, when one of two gradients exists": Case(
        [(G, -100), (A, 300), (G, 40), (B, 80), (A, -300), (B, -80), (60, 60)],
        (100, 40, 50, 380, 0),
        after=HELD | {G: 40, 60: 60},
        named_after=WITH_G | {60: "grads"},
    ),
    "the last step's gradients are still there": Case(
        [(A, 500), (A, -500), (G, -100), (G, 100)],
        (100, 100, 50, 500, 0),
    ),
    "gradients that are kept and filled anew": Case([(A, 7), (A, -7)], (100, 100, 50, 7, 0)),
    "a gradient takes the address of an activation": Case(
        [(G, -100), (G, 900), (G, -900), (G, 100)],
        (100, 0, 50, 900, 0),
    ),
    "freed without having been seen: there from the beginning": Case(
        [(A, -30), (B, 20), (B, -20)],
        (100, 100, 50, 0, 30),
    ),
    "what stays and is none of the three is other": Case(
        [(A, 5), (A, -5)],
        (100, 100, 50, 5, 70),
        before=HELD | {G: 100, B: 70},
        after=HELD | {G: 100, B: 70},
    ),
    "what the step leaves behind is an activation": Case(
        [(A, 5)],
        (100, 100, 50, 5, 0),
        after=HELD | {G: 100, A: 5},
    ),
    "an address taken again without a free was free for long": Case(
        [(A, 40), (B, 60), (A, 50), (A, -50), (B, -60)],
        (100, 100, 50, 110, 0),
    ),
    "gone after the step without a free: it lived for a moment": Case(
        [(A, 40), (B, 60), (B, -60)],
        (100, 100, 50, 60, 0),
    ),
    "sizes of what stays are those found after the step": Case(
        [(G, -100), (G, 512)],
        (100, 700, 50, 0, 0),
        after=HELD | {G: 700},
    ),
    "nothing happens": Case([], (100, 100, 50, 0, 0)),
}


def replay_of(
    changes: list[tuple[int, int]], before: dict[int, int], after: dict[int, int], *, step_s: float | None = None
) -> Replay:
    events = [MemoryEvent(float(number), *change) for number, change in enumerate(changes, start=1)]
    return Replay(Recording(events, before, after, step_s=step_s or len(changes) + 1.0))


@pytest.mark.parametrize("name", CASES)
def test_what_is_alive_at_the_peak(name: str) -> None:
    case = CASES[name]
    replay = replay_of(case.changes, case.before, case.after)
    found = replay.parts(before=case.named_before, after=case.named_after, peak_bytes=replay.peak_bytes)
    expected = dict(zip(("params", "grads", "optimizer", "activations", "other"), case.parts, strict=True))
    assert found.model_dump() == expected
    assert replay.peak_bytes == sum(case.parts)


def test_activations_take_what_the_replay_cannot_explain() -> None:
    replay = replay_of([(A, 500), (A, -500)], HELD, HELD)
    found = replay.parts(before=NAMED, after=NAMED, peak_bytes=replay.peak_bytes + 24)
    assert found == MemoryBytes(params=100, grads=0, optimizer=50, activations=524, other=0)


def test_claims_above_the_peak_give_way() -> None:
    assert split_peak(10, params=4, grads=9, optimizer=9, other=1) == MemoryBytes(
        params=4, grads=6, optimizer=0, other=0, activations=0
    )


def test_of_equal_peaks_the_first() -> None:
    assert replay_of([(A, 5), (A, -5), (B, 5), (B, -5)], {}, {}).peak == 1


@pytest.mark.parametrize(
    ("time_s", "phase"),
    [(0.0, "forward"), (1.0, "backward"), (2.5, "forward"), (3.5, "backward"), (4.1, "optimizer")],
)
def test_the_phase_of_a_time(time_s: float, phase: str) -> None:
    assert phase_at(time_s, [(1.0, 2.0), (3.0, 4.0)]) == phase
    assert phase_at(time_s, []) is None


@pytest.mark.parametrize(
    ("segments", "share"),
    [
        ({0: 100}, 0.6),  # one segment: all that is free in it is stuck
        ({0: 50, 50: 50}, 0.1),  # the second is free, and could be returned
        ({0: 50, 60: 50}, 0.1),  # a block beyond every segment (of another pool) is in none
        ({}, None),
    ],
)
def test_free_memory_beside_a_live_block_is_stuck(segments: dict[int, int], share: float | None) -> None:
    assert replay_of([], {0: 30, 40: 10}, {0: 30, 40: 10}).fragmentation(segments) == share


def test_few_events_are_kept_exactly() -> None:
    replay = replay_of([(A, 5), (A, -5)], {P: 1}, {P: 1})
    assert replay.envelope() == ([0.0, 1.0, 2.0], [1, 6, 1], [1, 6, 1])


def test_a_bucket_keeps_both_extremes_and_begins_where_the_last_one_ended() -> None:
    changes = [(A, 9), (A, -9), (B, 3), (60, 5), (60, -5), (B, -3)]
    envelope = replay_of(changes, {P: 1}, {P: 1}, step_s=8.0).envelope(max_points=4)
    assert envelope == ([0.0, 4.0], [1, 1], [10, 9])


@st.composite
def recordings(draw: st.DrawFn) -> Replay:
    """Allocations and frees in any order, double ones and unseen ones among them."""
    sizes = st.integers(1, 1000)
    before = draw(st.dictionaries(st.integers(0, 8), sizes, max_size=4))
    after = draw(st.dictionaries(st.integers(0, 8), sizes, max_size=4))
    changes = draw(st.lists(st.tuples(st.integers(0, 8), st.one_of(sizes, sizes.map(int.__neg__))), max_size=60))
    return replay_of(changes, before, after)


@given(recordings(), st.dictionaries(st.integers(0, 8), st.sampled_from(["params", "grads", "optimizer"])))
def test_blocks_sum_to_the_level_and_parts_to_the_peak(replay: Replay, named: dict[int, str]) -> None:
    for moment, level in enumerate(replay.levels.tolist()):
        alive = replay.alive(moment)
        assert sum(block.size for block in alive) == level
        assert max(Counter(block.address for block in alive).values(), default=1) == 1
    parts = replay.parts(before=named, after=named, peak_bytes=replay.peak_bytes)
    assert sum(parts.model_dump().values()) == replay.peak_bytes == max(replay.levels)


@settings(max_examples=60)
@given(recordings(), st.integers(2, 40))
def test_the_envelope_loses_no_extreme(replay: Replay, max_points: int) -> None:
    times_s, low, high = replay.envelope(max_points=max_points)
    assert (max(high), min(low)) == (replay.peak_bytes, replay.levels.min())
    assert all(bottom <= top for bottom, top in zip(low, high, strict=True))
    assert times_s == sorted(times_s)
    assert times_s[0] == 0
    assert len(times_s) <= max(1, max_points // 2)
