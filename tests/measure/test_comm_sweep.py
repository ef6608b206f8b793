"""Collectives alone on gloo ranks: what is timed, that its result is right, and that no step beats the ceiling."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.profiler import record_function

from epbench.analysis.collectives import match, rows_of
from epbench.analysis.comm import above_ceiling, beside_isolated, traced_points
from epbench.analysis.reading import read_traces
from epbench.comm_records import OPS, CommPoint, Partition, Swept
from epbench.labels import CommLabel
from epbench.layout import Layout
from epbench.measure import comm_sweep
from epbench.measure.capture import trace_runs
from epbench.measure.comm_sweep import SweepTimes, of_the_last, prepare, repetitions_of, sweep
from epbench.parallel.communication import Axis, all_gather_into, all_to_all, all_to_all_into, reduce_scatter_into
from epbench.records import CollectiveRow
from epbench.stacks.protocol import World
from tests.ranks import run_on_ranks

BOTH = Partition(world_size=2, groups=((0, 1),), used_by={"world": ("dp2",), "ep": ("dp2-ep2",)})
ALL = Partition(world_size=4, groups=((0, 1, 2, 3),), used_by={"world": ("dp2-tp2",)})
PAIRS = Partition(world_size=4, groups=((0, 2), (1, 3)), used_by={"fsdp": ("dp2-tp2",)})
EP2 = Layout(dp_shard=2, ep=2)
STEPS = 12
WIDTH = 256  # floats: rows of 1 KiB
ROWS = (12, 50)  # for any rank but the first, which gets ten times as many: 240 and 1000 KiB at the heaviest
MISCOUNTED = 800  # times the bytes that were moved, of one row: as if it were a batch of them
LARGEST_BYTES = 2**24
ROOT = Path(__file__).parents[2]


def uneven(axis: Axis, rows: int, *, miscount: int = 1) -> None:
    """Ten rows for rank 0 to each one for rank 1; labelled as more than it is if it is miscounted."""
    sent, received = [10 * rows, rows], [rows if axis.rank else 10 * rows] * 2
    x = torch.ones(sum(sent), WIDTH)
    if miscount == 1:
        all_to_all(x, torch.tensor([sent, received]), axis=axis, purpose="dispatch")
        return
    output = torch.empty(sum(received), WIDTH)
    kept = miscount * sent[axis.rank] * WIDTH * 4
    label = CommLabel(
        "all_to_all", "combine", "forward", "ep", 0, 2, miscount * x.nbytes, miscount * output.nbytes, kept
    )
    with record_function(label.text):
        dist.all_to_all_single(output, x, received, sent)


def this_world() -> tuple[World, Axis]:
    assert dist.group.WORLD is not None
    rank = dist.get_rank()
    world = World(rank, dist.get_world_size(), rank, torch.device("cpu"))
    return world, Axis.from_group(dist.group.WORLD, "ep")


def steps_among_sweeps(directory: Path) -> None:
    """In one trace, so that whatever disturbs the one disturbs the other."""
    world, axis = this_world()
    (cases,) = prepare([BOTH], world, largest_bytes=LARGEST_BYTES)
    exchanges = [case for case in cases if case.op in ("all_to_all", "all_to_all_v")]
    factor = torch.randn(200, 200)

    def step(_index: int) -> None:
        for case in exchanges:
            case.run()
        for rows in ROWS:
            torch.mm(factor, factor)
            uneven(axis, rows)
        torch.mm(factor, factor)
        uneven(axis, 1, miscount=MISCOUNTED)

    trace_runs(step, world, steps=STEPS, directory=directory)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CollectiveRow]:
    """A step's rows by purpose, beside the sweep that was made in the same process group at the same time.

    Of up to three traces the first in which the split is not faster than the wires: other work on the machine may
    hold up the sweep of one, but bytes that are counted wrong are wrong in all.
    """
    for attempt in range(3):
        rows = traced_beside(tmp_path_factory.mktemp(f"trace-{attempt}"))
        if _share_of_ceiling(rows["dispatch"]) <= 1:
            break
    return rows


def traced_beside(directory: Path) -> dict[str, CollectiveRow]:
    run_on_ranks(2, steps_among_sweeps, directory)
    traces = read_traces(directory, steps=STEPS)
    found = match(traces)
    (points,) = traced_points(found, [BOTH])
    rows = [row for row in rows_of(traces, steps=STEPS, found=found) if not row.purpose.startswith("sweep")]
    return {row.purpose: row for row in beside_isolated(rows, EP2, [Swept(partition=BOTH, points=tuple(points))])}


def _share_of_ceiling(row: CollectiveRow) -> float:
    assert row.busbw_bytes_per_s is not None
    assert row.ceiling_busbw_bytes_per_s is not None
    return row.busbw_bytes_per_s / row.ceiling_busbw_bytes_per_s


def test_a_ten_to_one_split_is_not_faster_than_the_wires(beside: dict[str, CollectiveRow]) -> None:
    row = beside["dispatch"]
    assert row.bus_bytes == sum(10 * rows * WIDTH * 4 for rows in ROWS) / 2  # the median of two sizes
    assert row.isolated_s is not None
    assert 0 < _share_of_ceiling(row) <= 1
    assert above_ceiling([row]) == []


def test_bytes_that_were_not_moved_are_noticed(beside: dict[str, CollectiveRow]) -> None:
    (said,) = above_ceiling(beside.values())
    assert said.startswith("all_to_all combine forward on ep: ")
    assert said.endswith(" times the isolated ceiling; its bytes or times are doubtful")


# ---------------------------------------------------------------- what is timed


def moved() -> dict[str, list[float]]:
    """What each call leaves on this rank of two; it sent 10 x rank + 0, 1, 2, ..."""
    _, axis = this_world()
    x = torch.arange(4.0) + 10 * axis.rank
    outputs = {name: torch.empty(size) for name, size in (("even", 4), ("uneven", 4), ("gather", 8), ("scatter", 2))}
    all_to_all_into(outputs["even"], x, axis=axis, purpose="sweep")
    splits = ([[3, 1], [3, 1]], [[1, 3], [1, 3]])[axis.rank]  # 3 rows stay, 1 leaves
    all_to_all_into(outputs["uneven"], x, axis=axis, purpose="sweep_uneven", splits=(splits[0], splits[1]))
    all_gather_into(outputs["gather"], x, axis=axis, purpose="sweep")
    reduce_scatter_into(outputs["scatter"], x, axis=axis, purpose="sweep")
    return {name: output.tolist() for name, output in outputs.items()}


def test_calls_into_given_buffers_move_what_they_say() -> None:
    assert run_on_ranks(2, moved) == [
        {"even": [0, 1, 10, 11], "uneven": [0, 1, 2, 10], "gather": [0, 1, 2, 3, 10, 11, 12, 13], "scatter": [10, 12]},
        {
            "even": [2, 3, 12, 13],
            "uneven": [3, 11, 12, 13],
            "gather": [0, 1, 2, 3, 10, 11, 12, 13],
            "scatter": [14, 16],
        },
    ]


def small_sweep(directory: Path) -> SweepTimes:
    """Two partitions of four ranks with three sizes; the patch dies with this rank."""
    effort = comm_sweep._Effort(4096, 4 * 4096, 2, 1, 3, 2, torch.float32, "fp32")
    comm_sweep._EFFORTS["cpu"] = effort
    beats: list[int] = []
    told = sweep([ALL, PAIRS], this_world()[0], directory=directory, on_progress=lambda _, index: beats.append(index))
    assert beats == list(range(2 * 3 * 5 + (1 + 2) * 2)), "one a case, and one a partition of each traced step"
    return told


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SweepTimes], list[list[CommPoint]]]:
    """What each of four ranks told, and the points that their traces gave."""
    directory = tmp_path_factory.mktemp("sweep")
    told = run_on_ranks(4, small_sweep, directory)
    return told, traced_points(match(read_traces(directory, steps=told[0].traced_steps)), [ALL, PAIRS])


def test_every_rank_tells_the_same(small: tuple[list[SweepTimes], list[list[CommPoint]]]) -> None:
    first, *others = small[0]
    assert all(other == first for other in others)
    assert (first.dtype, first.traced_steps, first.warnings) == ("fp32", 2, [])


def test_every_op_and_size_is_timed_in_every_way(small: tuple[list[SweepTimes], list[list[CommPoint]]]) -> None:
    """Bytes and bus bytes worked out by hand; an uneven exchange takes the whole rows that fit."""
    (first, *_), traced = small
    even, heavy = [4096, 8192, 16384], {4: [4000, 8160, 16320], 2: [4080, 8160, 16320]}
    bus = {"all_reduce": 2.0}
    for partition, points in zip((ALL, PAIRS), (a + b for a, b in zip(first.points, traced, strict=True)), strict=True):
        n = partition.group_size
        for op in OPS:
            sizes = heavy[n] if op == "all_to_all_v" else even
            expected = [(size, bus.get(op, 1.0) * size * (n - 1) / n) for size in sizes]
            for way in ("drained", "chained", "traced"):
                found = sorted((p.bytes, p.bus_bytes) for p in points if (p.op, p.way) == (op, way))
                assert found == expected, f"{op} {way} on groups of {n}"
        assert all(0 < p.seconds.low <= p.seconds.median <= p.seconds.high for p in points)


def test_groups_that_communicate_at_once_are_told_apart(small: tuple[list[SweepTimes], list[list[CommPoint]]]) -> None:
    everybody, pairs = small[1]
    assert {tuple(point.group_s) for point in everybody} == {()}
    assert {tuple(sorted(point.group_s)) for point in pairs} == {(0, 1)}
    for point in pairs:
        assert point.seconds.median >= max(spread.median for spread in point.group_s.values())


@pytest.mark.parametrize(("size", "repetitions"), [(1024, 30), (2**29, 30), (2**30, 5), (2**31, 5)])
def test_large_calls_are_repeated_less_often(size: int, repetitions: int) -> None:
    assert repetitions_of(size, 30) == repetitions
    assert repetitions_of(size, 3) == 3


def test_the_sweep_reaches_what_real_steps_move() -> None:
    """Every collective of the sample, which are on both of its GPUs, up to one step above the largest size."""
    shown = json.loads((ROOT / "reports/samples/qwen3-30b-2xh200/show.json").read_text())
    moved = [row["bytes"] for cell in shown["cells"] for row in cell["collectives"]]
    effort = comm_sweep._EFFORTS["cuda"]
    assert effort.smallest_bytes // effort.step <= sorted(set(moved))[1]  # the least is the norm's 8 bytes
    assert max(moved) <= effort.largest_bytes * effort.step


def test_a_drained_call_takes_as_long_as_in_the_slowest_group() -> None:
    """Three repetitions of two pairs: in each pair the rank that came first waited for the other."""
    by_rank = [[5.0, 2.0, 9.0], [3.0, 8.0, 1.0], [4.0, 6.0, 2.0], [7.0, 3.0, 1.5]]
    assert of_the_last(by_rank, PAIRS.groups) == [4.0, 3.0, 2.0]
    assert of_the_last(by_rank, ALL.groups) == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(("ranks", "ops"), [(256, 4), (25, 5), (257, 0)])
def test_a_size_that_is_not_enough_for_every_rank_is_left_out(ranks: int, ops: int) -> None:
    """1 KiB of fp32: one element for each of 256 ranks, ten for each of 25."""
    buffers = comm_sweep._Buffers.of(4096, torch.float32, torch.device("cpu"))
    cases = list(comm_sweep._cases(Axis("ep", "no group", size=ranks, rank=0), buffers, 1024))
    assert len(cases) == ops
    assert all(0 < case.bytes <= 1024 for case in cases)


@pytest.mark.parametrize(("free_mib", "largest_mib"), [(80 * 1024, 512), (4096, 512), (4095, 256), (1024, 128), (8, 1)])
def test_a_full_device_gets_smaller_buffers(free_mib: int, largest_mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rank with the least free memory an eighth, for three buffers of that size."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free_mib << 20, 141 << 30))
    monkeypatch.setattr(comm_sweep, "maximum_over_ranks", lambda values, _: values)
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cuda", 0))
    assert comm_sweep._affordable(512 << 20, world) == largest_mib << 20
