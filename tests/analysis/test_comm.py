"""What a sweep says, by numbers worked out on paper: the model, the isolated time, the ceiling, the slow group."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epbench.analysis.comm import (
    above_ceiling,
    beside_isolated,
    ceiling_busbw,
    fit,
    fits_of,
    isolated_s,
    slow_groups,
)
from epbench.comm_records import CommPoint, Op, Partition, Swept, Way
from epbench.layout import Layout
from epbench.records import CollectiveRow, Spread

PAIR = Partition(world_size=2, groups=((0, 1),), used_by={"ep": ("dp2-ep2",)})
EP2 = Layout(dp_shard=2, ep=2)
US = 1e-6
KIB = 1024
SIZES = [4 * KIB * 4**k for k in range(6)]


def point(
    size: int, median_s: float, *, low_s: float | None = None, op: Op = "all_to_all", way: Way = "traced"
) -> CommPoint:
    """Of a group of two, so half of the buffer crosses the bus."""
    spread = Spread(median=median_s, low=median_s if low_s is None else low_s, high=median_s)
    return CommPoint(op=op, way=way, bytes=size, bus_bytes=size / 2, seconds=spread, repetitions=5)


def row(size: int, busbw: float, *, op: str = "all_to_all", axis: str = "ep") -> CollectiveRow:
    return CollectiveRow(
        op=op,
        purpose="dispatch",
        phase="forward",
        axis=axis,
        calls_per_step=1.0,
        bytes=size,
        bytes_mean=size,
        bus_bytes=size / 2,
        transfer_s=size / 2 / busbw,
        wait_s=0.0,
        p50_s=size / 2 / busbw,
        p95_s=size / 2 / busbw,
        algbw_bytes_per_s=2 * busbw,
        busbw_bytes_per_s=busbw,
    )


# ---------------------------------------------------------------- the model


@given(latency_us=st.floats(0.1, 1e4), gb_per_s=st.floats(0.01, 1e3))
def test_the_model_is_found_again(latency_us: float, gb_per_s: float) -> None:
    points = [point(size, latency_us * US + size / (gb_per_s * 1e9)) for size in SIZES]
    found = fit(points, op="all_to_all", way="traced")
    assert found is not None
    assert found.bandwidth_bytes_per_s is not None
    for size in SIZES:
        modelled_s = found.latency_s + size / found.bandwidth_bytes_per_s
        assert modelled_s == pytest.approx(latency_us * US + size / (gb_per_s * 1e9), rel=1e-6)
    assert found.worst_error < 1e-6
    assert found.busbw_bytes_per_s == pytest.approx(found.bandwidth_bytes_per_s / 2)
    assert found.sizes == 6


def test_small_and_large_sizes_count_alike() -> None:
    """10 us and 100 GB/s but for one size of the six, which is 20 % off: the others pull the fit to themselves."""
    for odd in range(len(SIZES)):
        times = [(10 * US + size / 1e11) * (1.2 if place == odd else 1.0) for place, size in enumerate(SIZES)]
        found = fit([point(size, t) for size, t in zip(SIZES, times, strict=True)], op="all_to_all", way="traced")
        assert found is not None
        assert 0.05 < found.worst_error < 0.2
        assert found.median_error < 0.07


def test_neither_part_is_negative() -> None:
    proportional = fit([point(size, (size - 2000) / 1e9) for size in SIZES], op="all_to_all", way="traced")
    assert proportional is not None
    assert (proportional.latency_s, proportional.bandwidth_bytes_per_s is not None) == (0.0, True)
    shrinking = fit([point(size, 1e-3 / (1 + k)) for k, size in enumerate(SIZES)], op="all_to_all", way="traced")
    assert shrinking is not None
    assert (shrinking.bandwidth_bytes_per_s, shrinking.busbw_bytes_per_s) == (None, None)
    inverse = [1e3 * (1 + k) for k in range(6)]
    assert shrinking.latency_s == pytest.approx(sum(inverse) / sum(x * x for x in inverse))  # the best constant


def test_three_sizes_are_too_few() -> None:
    points = [point(size, 1e-5 + size / 1e9) for size in SIZES[:4]]
    assert fit(points[:3], op="all_to_all", way="traced") is None
    assert fit([points[0]] * 4, op="all_to_all", way="traced") is None
    assert [(one.op, one.way) for one in fits_of(points)] == [("all_to_all", "traced")]


# ---------------------------------------------------------------- between the sizes

MEASURED = [point(4 * KIB, 10 * US), point(16 * KIB, 20 * US), point(64 * KIB, 40 * US), point(256 * KIB, 160 * US)]


@pytest.mark.parametrize(
    ("bus_kib", "expected_us"),
    [
        (2, 10),
        (8, 20),
        (4, 10 * math.sqrt(2)),  # half way on both logarithms
        (64, 80),
        (1, 10 / math.sqrt(2)),  # half a step outside, as the nearest step goes on
        (0.5, 5),  # a whole step
        (512, 640),
        (0.49, None),
        (513, None),
        (0, None),
    ],
)
def test_isolated_time_between_sizes_is_log_log(bus_kib: float, expected_us: float | None) -> None:
    found = isolated_s(MEASURED, "all_to_all", bus_kib * KIB)
    assert found == (None if expected_us is None else pytest.approx(expected_us * US))


def test_other_ops_and_ways_tell_nothing() -> None:
    others = [point(size, US, op="all_gather") for size in SIZES] + [point(size, US, way="chained") for size in SIZES]
    for of in (isolated_s, ceiling_busbw):
        assert of(others, "all_to_all", 8.0 * KIB) is None
        assert of(MEASURED[:1], "all_to_all", 2.0 * KIB) is None
        assert of(MEASURED, "broadcast", 8.0 * KIB) is None


# ---------------------------------------------------------------- the ceiling


def test_ceiling_is_the_fast_quartile() -> None:
    points = [point(size, 5 * t, low_s=t) for size, t in ((4 * KIB, 10 * US), (16 * KIB, 20 * US), (64 * KIB, 40 * US))]
    assert ceiling_busbw(points, "all_to_all", 8 * KIB) == pytest.approx(8 * KIB / (20 * US))
    assert ceiling_busbw(points, "all_to_all", 5 * KIB) == pytest.approx(8 * KIB / (20 * US))  # the next size's


def test_ceiling_is_that_of_the_fastest_group() -> None:
    """A slow link among several groups makes no doubt of the others' calls."""
    fast, slow = (Spread(median=t, low=t, high=t) for t in (10 * US, 40 * US))
    points = [point(size, 40 * US).model_copy(update={"group_s": {0: fast, 1: slow}}) for size in (4 * KIB, 8 * KIB)]
    assert ceiling_busbw(points, "all_to_all", 4 * KIB) == pytest.approx(4 * KIB / (10 * US))
    assert isolated_s(points, "all_to_all", 4 * KIB) == pytest.approx(40 * US)


def test_one_direction_alone_may_be_faster() -> None:
    uneven = [point(size, 6 * US, op="all_to_all_v") for size in (4000, 16320)]
    both = [*MEASURED, *uneven]
    assert ceiling_busbw(both, "all_to_all", 8160, uneven=True) == pytest.approx(8160 / (6 * US))
    assert ceiling_busbw(both, "all_to_all", 8160) == pytest.approx(8192 / (20 * US)), (
        "an even exchange is not held to it"
    )
    assert isolated_s([*MEASURED, *uneven], "all_to_all", 8192) == pytest.approx(20 * US)


@pytest.mark.parametrize(
    ("times_us", "bus_kib", "best"),
    [
        ((10, 20, 100, 160), 32, (8, 20)),  # 8 KiB over the bus reached 410 MB/s, so 32 KiB can
        ((10, 20, 40, 160), 33, (32, 40)),  # the next size may be a leap in bandwidth; here it is none
        ((10, 20, 40, 80), 33, (128, 80)),  # here it is
        ((10, 20, 40, 160), 1, (2, 10)),  # below all sizes
        ((10, 20, 40, 160), 256, (32, 40)),  # above them
    ],
)
def test_the_ceiling_is_the_best_up_to_the_next_size(
    times_us: Sequence[float], bus_kib: float, best: tuple[float, float]
) -> None:
    points = [point(size, t * US) for size, t in zip((4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB), times_us, strict=True)]
    assert ceiling_busbw(points, "all_to_all", bus_kib * KIB) == pytest.approx(best[0] * KIB / (best[1] * US))


times = st.lists(st.floats(1e-6, 1e-1), min_size=2, max_size=8)


@given(even=times, uneven=times, at=st.floats(0, 1))
def test_ceiling_never_falls_with_size_and_is_never_below_a_measurement(
    even: list[float], uneven: list[float], at: float
) -> None:
    points = [point(4 * KIB * 4**k, t) for k, t in enumerate(even)]
    points += [point(4 * KIB * 4**k, t, op="all_to_all_v") for k, t in enumerate(uneven)]
    for one in points:
        found = ceiling_busbw(points, "all_to_all", one.bus_bytes, uneven=True)
        assert found is not None
        assert found >= one.busbw_bytes_per_s * (1 - 1e-9)
    last = min(len(even), len(uneven)) - 1
    size = 2 * KIB * 4 ** (at * last)
    sizes = (size, min(size * 1.5, 2 * KIB * 4**last))
    smaller, larger = (ceiling_busbw(points, "all_to_all", bus, uneven=True) for bus in sizes)
    assert smaller is not None
    assert larger is not None
    assert larger >= smaller * (1 - 1e-9)


# ---------------------------------------------------------------- beside a step


def test_rows_stand_beside_their_own_groups_only() -> None:
    swept = [Swept(partition=PAIR, points=tuple(MEASURED))]
    rows = [row(16 * KIB, 1e8), row(16 * KIB, 1e8, op="broadcast"), row(16 * KIB, 1e8, axis="tp")]
    known, *unknown = beside_isolated(rows, EP2, swept)
    assert known.isolated_s == pytest.approx(20 * US)
    assert known.ceiling_busbw_bytes_per_s == pytest.approx(8 * KIB / (20 * US))
    assert known.model_copy(update={"isolated_s": None, "ceiling_busbw_bytes_per_s": None}) == rows[0]
    assert unknown == rows[1:]
    assert beside_isolated(rows, Layout(dp_shard=4, ep=2), swept) == rows  # other groups
    nothing = [rows[0].model_copy(update={"bus_bytes": None})]
    assert beside_isolated(nothing, EP2, swept) == nothing


@pytest.mark.parametrize(("times_too_fast", "warned"), [(0.5, False), (1.0, False), (1.05, False), (1.2, True)])
def test_faster_than_the_wires_is_doubted(times_too_fast: float, warned: bool) -> None:
    (found,) = beside_isolated(
        [row(16 * KIB, times_too_fast * 8 * KIB / (20 * US))], EP2, [Swept(partition=PAIR, points=tuple(MEASURED))]
    )
    said = above_ceiling([found, row(16 * KIB, 1e12)])
    assert said == (
        ["all_to_all dispatch forward on ep: 1.20 times the isolated ceiling; its bytes or times are doubtful"]
        if warned
        else []
    )


def test_a_slow_group_is_named() -> None:
    pairs = Partition(world_size=4, groups=((0, 1), (2, 3)), used_by={"tp": ("dp2-tp2",)})
    fast, slow, wide = (Spread(median=m, low=a, high=b) for m, a, b in ((1.0, 0.9, 1.1), (1.5, 1.4, 1.6), (1.5, 1, 9)))
    even = {0: fast, 2: fast}
    for large, small, said in (
        ({0: fast, 2: slow}, even, ["all_to_all among ranks 2, 3 takes 1.50 times as long as in the fastest group"]),
        (even, {0: fast, 2: slow}, []),  # of small sizes the wires do not decide
        ({0: fast, 2: wide}, even, []),  # too noisy to tell
        ({}, {}, []),
    ):
        points = (
            point(4096, 1.0).model_copy(update={"group_s": small}),
            point(8192, 1.0).model_copy(update={"group_s": large}),
        )
        assert slow_groups(Swept(partition=pairs, points=points)) == said
