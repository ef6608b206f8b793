"""What a sweep of collectives says: its transfers, a model of its times, and the ceiling for a step's collectives.

**The model** is Hockney's (R. Hockney, *The communication challenge for MPP*, Parallel Computing 20, 1994): a message
takes ``t = a + bytes / bw``. Small sizes tell ``a`` and large ones ``bw``, so what is squared and summed is the error
*relative* to what was measured; an absolute one would fit the largest size and nothing else. Neither may be negative.

**The ceiling** for some bytes is the best bus bandwidth that isolation reaches with them or with fewer, or at the next
size that was measured: bandwidth grows with size, in leaps where the library changes its protocol, and a ceiling that
guessed where between two sizes the leap is would be too low for some. It is that of the fast quartile of traced
transfers, in the fastest of several groups; for an exchange in which some rank moves much more than the mean also that
of uneven ones, for one direction alone can be faster than both.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import quantiles

import numpy as np

from epbench.analysis.collectives import Matched
from epbench.comm_records import OPS, WAYS, CommFit, CommPoint, Op, Partition, Swept, Way, axis_name
from epbench.layout import Layout
from epbench.rank_groups import groups_of
from epbench.records import CollectiveRow, Spread

__all__ = [
    "FEWEST_SIZES",
    "above_ceiling",
    "beside_isolated",
    "ceiling_busbw",
    "fit",
    "fits_of",
    "isolated_s",
    "slow_groups",
    "traced_points",
]

FEWEST_SIZES = 4  # two of them are used up by the two unknowns
TOLERATED = 0.10  # by which a step may seem faster than isolation before its bytes or times are doubted
UNEVEN = 1.1  # bytes of the heaviest rank over the mean
SLOW_GROUP = 1.25  # times the fastest group of a partition


# ---------------------------------------------------------------- from traces


def traced_points(found: Iterable[Matched], partitions: Sequence[Partition]) -> list[list[CommPoint]]:
    """The traced points of each partition; a repetition is one traced step, and takes as long as its slowest group."""
    calls: dict[tuple[str, Op, int], list[Matched]] = defaultdict(list)
    for matched in found:
        kind = matched.kind
        if kind.purpose in ("sweep", "sweep_uneven"):
            op = "all_to_all_v" if kind.purpose == "sweep_uneven" else kind.op
            calls[kind.axis, _op(op), matched.heaviest_bytes].append(matched)
    places = {axis_name(index): index for index in range(len(partitions))}
    points: list[list[CommPoint]] = [[] for _ in partitions]
    for (axis, op, size), alike in calls.items():
        points[places[axis]].append(_traced_point(op, size, alike))
    return points


def _op(name: str) -> Op:
    return next(op for op in OPS if op == name)


def _traced_point(op: Op, size: int, alike: Sequence[Matched]) -> CommPoint:
    """All calls of one op and size: of every group, in every step."""
    by_step: dict[int, list[float]] = defaultdict(list)
    by_group: dict[int, list[float]] = defaultdict(list)
    for matched in alike:
        by_step[matched.step].append(matched.transfer_s)
        if matched.root is not None:
            by_group[matched.root].append(matched.transfer_s)
    slowest_s = [max(times_s) for times_s in by_step.values()]
    return CommPoint(
        op=op,
        way="traced",
        bytes=size,
        bus_bytes=max(matched.heaviest_bus_bytes or 0.0 for matched in alike),
        seconds=_spread(slowest_s),
        repetitions=len(slowest_s),
        group_s={root: _spread(times_s) for root, times_s in by_group.items()} if len(by_group) > 1 else {},
    )


def _spread(seconds: Sequence[float]) -> Spread:
    low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return Spread(median=middle, low=low, high=high)


def slow_groups(swept: Swept) -> list[str]:
    """A sentence for each op of which one group is slower than the fastest, at the largest size.

    It is when the medians differ by more than ``SLOW_GROUP`` and the middle halves of the repetitions lie apart.
    """
    found: list[str] = []
    for op in OPS:
        points = [point for point in swept.points if point.op == op and point.group_s]
        if points:
            found += _slow_group(op, swept.partition, max(points, key=lambda point: point.bytes).group_s)
    return found


def _slow_group(op: Op, partition: Partition, group_s: Mapping[int, Spread]) -> Iterator[str]:
    slowest = max(group_s, key=lambda root: group_s[root].median)
    slow, fast = group_s[slowest], min(group_s.values(), key=lambda spread: spread.median)
    if slow.median > SLOW_GROUP * fast.median and slow.low > fast.high:
        ranks = next(ranks for ranks in partition.groups if slowest in ranks)
        names, times = ", ".join(map(str, ranks)), slow.median / fast.median
        yield f"{op} among ranks {names} takes {times:.2f} times as long as in the fastest group"


# ---------------------------------------------------------------- the model


def fits_of(points: Sequence[CommPoint]) -> tuple[CommFit, ...]:
    """The model of every op and way that has enough sizes."""
    found = (
        fit([point for point in points if (point.op, point.way) == (op, way)], op=op, way=way)
        for op in OPS
        for way in WAYS
    )
    return tuple(one for one in found if one is not None)


def fit(points: Sequence[CommPoint], *, op: Op, way: Way) -> CommFit | None:
    """The model over the medians of one op and way; None over fewer than ``FEWEST_SIZES`` sizes."""
    if len({point.bytes for point in points}) < FEWEST_SIZES:
        return None
    size = np.array([point.bytes for point in points], dtype=np.float64)
    time_s = np.array([point.seconds.median for point in points])
    latency_s, s_per_byte = _relative_least_squares(size, time_s)
    errors = np.abs((latency_s + s_per_byte * size) / time_s - 1)
    share = points[0].bus_bytes / points[0].bytes
    return CommFit(
        op=op,
        way=way,
        latency_s=latency_s,
        bandwidth_bytes_per_s=1 / s_per_byte if s_per_byte > 0 else None,
        busbw_bytes_per_s=share / s_per_byte if s_per_byte > 0 else None,
        sizes=len(points),
        median_error=float(np.median(errors)),
        worst_error=float(errors.max()),
    )


def _relative_least_squares(size: np.ndarray, time_s: np.ndarray) -> tuple[float, float]:
    """(a, b), neither negative, that minimise the sum of ((a + b x size) / time - 1)^2."""
    unit = size.max()  # or the two columns would differ by ten orders of magnitude
    constant, linear = 1 / time_s, size / unit / time_s
    both = np.array([[constant @ constant, constant @ linear], [constant @ linear, linear @ linear]])
    a, b = np.linalg.solve(both, np.array([constant.sum(), linear.sum()]))
    if a < 0:  # then the best that is allowed lies on the edge
        return 0.0, float(linear.sum() / (linear @ linear) / unit)
    if b < 0:
        return float(constant.sum() / (constant @ constant)), 0.0
    return float(a), float(b / unit)


# ---------------------------------------------------------------- for some bytes


def _curve(points: Iterable[CommPoint], op: str, time_of: Callable[[CommPoint], float]) -> list[tuple[float, float]]:
    """(bytes over the bus, seconds) of the traced points of an op, by bytes."""
    return sorted((p.bus_bytes, time_of(p)) for p in points if p.op == op and p.way == "traced" and time_of(p) > 0)


def _within_a_step(curve: Sequence[tuple[float, float]], size: float) -> bool:
    """Whether a curve of two sizes or more reaches a size, or the size is at most one step beyond its ends."""
    if len(curve) < 2 or size <= 0:
        return False
    (first, _), (second, _), (last_but_one, _), (last, _) = *curve[:2], *curve[-2:]
    return first * first / second <= size <= last * last / last_but_one


def isolated_s(points: Sequence[CommPoint], op: str, bus_bytes: float) -> float | None:
    """Seconds that one even call takes alone if as many bytes cross the bus; log-log between the sizes measured.

    None for an op that was not swept, and further than one step outside of the sizes.
    """
    curve = _curve(points, op, lambda point: point.seconds.median)
    if not _within_a_step(curve, bus_bytes):
        return None
    place = min(max(1, sum(size < bus_bytes for size, _ in curve)), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[place - 1], curve[place]
    share = math.log(bus_bytes / x0) / math.log(x1 / x0)
    return math.exp(math.log(y0) + share * (math.log(y1) - math.log(y0)))


def ceiling_busbw(points: Sequence[CommPoint], op: str, bus_bytes: float, *, uneven: bool = False) -> float | None:
    """Bytes a second over the bus that isolation reaches at its best for these bytes; None where nothing is known.

    ``uneven`` says that some rank moves more than ``UNEVEN`` times the mean: then both kinds of exchange count.
    """
    names = ("all_to_all", "all_to_all_v") if op == "all_to_all" and uneven else (op,)
    curves = (_curve(points, name, _fast_s) for name in names)
    return max((_best(curve, bus_bytes) for curve in curves if _within_a_step(curve, bus_bytes)), default=None)


def _fast_s(point: CommPoint) -> float:
    """The fast quartile of the fastest group: of a step's groups some may be faster than the slowest one here."""
    return min(spread.low for spread in (point.seconds, *point.group_s.values()))


def _best(curve: Sequence[tuple[float, float]], size: float) -> float:
    """The best bandwidth of all sizes up to and with the first that is no smaller."""
    smaller = sum(measured < size for measured, _ in curve)
    return max(measured / time_s for measured, time_s in curve[: smaller + 1])


# ---------------------------------------------------------------- beside the rows of a step


def beside_isolated(rows: Sequence[CollectiveRow], layout: Layout, swept: Sequence[Swept]) -> list[CollectiveRow]:
    """The rows with what the same bytes take alone on the same groups, where the sweep knows them."""
    points = {one.partition.groups: one.points for one in swept if one.partition.world_size == layout.world_size}
    return [_beside(row, points.get(groups_of(layout, row.axis) or (), ())) for row in rows]


def _beside(row: CollectiveRow, points: Sequence[CommPoint]) -> CollectiveRow:
    if row.bus_bytes is None:
        return row
    found = {
        "isolated_s": isolated_s(points, row.op, row.bus_bytes),
        "ceiling_busbw_bytes_per_s": ceiling_busbw(
            points, row.op, row.bus_bytes, uneven=row.bytes > UNEVEN * row.bytes_mean
        ),
    }
    return row.model_copy(update=found)


def above_ceiling(rows: Iterable[CollectiveRow]) -> list[str]:
    """A sentence for each row that seems faster than the wires: its bytes or its times must be wrong."""
    found = []
    for row in rows:
        speed, ceiling = row.busbw_bytes_per_s, row.ceiling_busbw_bytes_per_s
        if speed is not None and ceiling is not None and speed > ceiling * (1 + TOLERATED):
            name = f"{row.op} {row.purpose} {row.phase} on {row.axis}"
            found.append(f"{name}: {speed / ceiling:.2f} times the isolated ceiling; its bytes or times are doubtful")
    return found
