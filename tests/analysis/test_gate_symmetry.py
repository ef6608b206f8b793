"""Which arm is called base must not matter: swapped, every word and sign flips, and nothing else changes."""

import math
from collections.abc import Hashable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epbench.analysis.arms import Arm, Night
from epbench.analysis.gate import Pair, judge, worst
from epbench.gate_records import COUNTERS, CellVerdict, GateSpec, MetricChange, Word
from tests.analysis.gate_cells import CELL

FLIPPED: dict[Word, Word] = {
    "regression": "improvement", "improvement": "regression", "broken": "fixed", "fixed": "broken", "new": "missing",
    "missing": "new",
}  # fmt: skip
METRICS = ("step_s", "device_work_s", "exposed_s", "transfer_s:all_to_all/dispatch/forward/ep")
counts = st.sampled_from([0.0, 1.0, 100.0, 101.0, 102.0, 1e9, 1.02e9])
counters = st.dictionaries(st.sampled_from(list(COUNTERS)), counts, max_size=3)
outcomes = st.sampled_from(["ok"] * 12 + ["oom", "crashed", "skipped", "unstable", "interrupted", None])


@st.composite
def nights(draw: st.DrawFn, *, source: int) -> Night:
    """Up to seven launches of each metric; arms of one source share rounds, in part or in whole."""
    seed, count = draw(st.integers(0, 10**6)), draw(st.sampled_from([0, 2, 3, 4, 5, 5, 5, 7]))
    typical_s, scatter = draw(st.sampled_from([0.2, 0.202, 0.22, 0.3])), draw(st.sampled_from([0.0, 0.002, 0.05]))
    random = Random(seed)
    rounds: list[Hashable] = [(source, place) for place in random.sample(range(7), count)]
    known = [metric for metric in METRICS if metric == "step_s" or random.random() < 0.9]
    timings = {metric: {place: typical_s * math.exp(random.gauss(0, scatter)) for place in rounds} for metric in known}
    return Night(timings=timings, counters=draw(counters))


@st.composite
def arms(draw: st.DrawFn, *, source: int) -> Arm | None:
    if not draw(st.integers(0, 19)):
        return None
    count = draw(st.sampled_from([1] * 6 + [2, 5, 6]))
    found = tuple(draw(nights(source=source + 10 * at)) for at in range(count))
    return Arm(outcome=draw(outcomes), reason=None, expected=draw(st.booleans()), nights=found)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    base, head = draw(arms(source=0)), draw(arms(source=draw(st.sampled_from([0, 0, 1]))))
    return Pair(cell=CELL, name="dp2", base=base, head=head)


specs = st.builds(
    GateSpec,
    primary=st.sampled_from(["device_work_s", "step_s"]),
    practical_limit=st.sampled_from([0.0, 0.02, 0.3]),
    absolute_floor_s=st.sampled_from([0.0, 0.001, 0.05]),
    alpha=st.sampled_from([0.01, 0.2]),
    cells=st.sampled_from(["*", "*", "*", "tp*"]),
    also=st.just({"step_s": 0.05}) | st.just({"exposed_s": 0.1}),
)


def flipped(word: Word) -> Word:
    return FLIPPED.get(word, word)


def assert_mirrored(change: MetricChange, back: MetricChange) -> None:
    assert (back.metric, back.kind, back.gated, back.paired) == (
        change.metric, change.kind, change.gated, change.paired,
    )  # fmt: skip
    assert back.word == flipped(change.word)
    assert (back.base, back.head) == (change.head, change.base)
    assert (back.base_launches, back.head_launches) == (change.head_launches, change.base_launches)
    for name in ("p", "p_holm", "p_rank", "limit", "detectable"):  # equal but for the order in which rounds are summed
        expected = getattr(change, name)
        assert getattr(back, name) == (None if expected is None else pytest.approx(expected, rel=1e-9))
    inverted = (change.ratio, change.ratio_high, change.ratio_low)
    for found, expected in zip((back.ratio, back.ratio_low, back.ratio_high), inverted, strict=True):
        assert found == (None if expected is None else pytest.approx(1 / expected))


def assert_words_flip(verdict: CellVerdict, back: CellVerdict) -> None:
    """A cell's word is the worst of its metrics, so one that has both a growth and a fall is a regression both ways."""
    assert (back.base_outcome, back.head_outcome) == (verdict.head_outcome, verdict.base_outcome)
    if verdict.metrics:
        assert back.word == worst(flipped(change.word) for change in verdict.metrics if change.gated)
    else:
        assert back.word == flipped(verdict.word)


@settings(max_examples=80, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=3), specs)
def test_swapping_the_arms_flips_words_and_signs_and_nothing_else(found: list[Pair], spec: GateSpec) -> None:
    there = judge(found, spec)
    back = judge([Pair(cell=pair.cell, name=pair.name, base=pair.head, head=pair.base) for pair in found], spec)
    assert there.family == back.family
    for verdict, swapped in zip(there.cells, back.cells, strict=True):
        assert_words_flip(verdict, swapped)
        for change, mirrored in zip(verdict.metrics, swapped.metrics, strict=True):
            assert_mirrored(change, mirrored)
