"""The sweep of collectives alone, on each set of groups, with the sizes that this run's own steps pass to them."""

from collections.abc import Callable, Iterable, Sequence

from epbench.comm_records import OPS, WAYS, CommFit, CommPoint, CommRecord, Op, Partition, Swept, Way
from epbench.errors import LayoutError
from epbench.layout import parse_slug
from epbench.rank_groups import Groups, groups_of
from epbench.records import CellResult
from epbench.report.comm import size_text
from epbench.report.comparison import Compared
from epbench.report.figures.communication import kind_of
from epbench.report.figures.sweep import BANDWIDTH, LATENCY, OwnSize, Quantity, sweep_figure
from epbench.report.quantities import has_one_size
from epbench.report.sections.model import Chart, TitledTable, Variant
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, gb_per_s, interval, join, percent, us

__all__ = ["fits_table", "groups_text", "own_sizes", "sweep_charts"]

_SHOWN_GROUPS = 4
_ALIKE = 1.05  # sizes of one kind of call that differ by less are one
_BEYOND = 2.0  # times the largest, or below the smallest size of the sweep: it says nothing of such a call


def sweep_charts(compared: Compared) -> tuple[Chart, ...]:
    """Latency and bus bandwidth on every set of groups; none without a sweep."""
    record = compared.data.comm
    found = [swept for swept in record.swept if swept.points] if record else []
    if record is None or not found:
        return ()
    own = [_within(swept, own_sizes(compared.measured, swept.partition)) for swept in found]
    mixed = [_mixed(compared.measured, swept.partition) for swept in found]
    known = list(zip(found, own, mixed, strict=True))
    latencies = [_variant(swept, sizes, LATENCY, _times_table(swept), note) for swept, sizes, note in known]
    bandwidths = [_variant(swept, sizes, BANDWIDTH, _bandwidths_table(swept), note) for swept, sizes, note in known]
    return (
        Chart("latency", "Latency alone", _caption(record, "Time"), tuple(latencies), picker="groups"),
        Chart("bandwidth", "Bus bandwidth alone", _caption(record, "Bandwidth"), tuple(bandwidths), picker="groups"),
    )


def _caption(record: CommRecord, what: str) -> str:
    return (
        f"{what} of collectives with nothing else running, {clean(record.dtype, 20)}, {clean(record.data)}: medians of "
        "the slowest group, bands between the quartiles. Drained: one call on an idle device, its launch included. "
        "Chained: back to back. Traced: the transfer, as rows of steps have it. Below and as dashed lines: the median "
        "size of each kind of call in the steps of this run on these groups."
    )


def _variant(
    swept: Swept, sizes: tuple[list[OwnSize], list[OwnSize]], quantity: Quantity, table: Table, mixed: str
) -> Variant:
    inside, outside = sizes
    names = [f"{clean(one.kind, 60)} ({size_text(one.bytes)})" for one in outside]
    beyond = f"Beyond the sizes of the sweep: {join(names)}." if names else ""
    note = " ".join(filter(None, (beyond, mixed)))
    return Variant(groups_text(swept.partition), sweep_figure(swept, inside, quantity), table, note)


def _mixed(cells: Iterable[CellResult], partition: Partition) -> str:
    """Kinds of call on these groups whose median stands for one of several sizes."""
    rows = [row for cell in cells for row in cell.collectives if _groups(cell, row.axis) == partition.groups]
    names = dict.fromkeys(clean(kind_of(row), 60) for row in rows if has_one_size(row) is False)
    return f"Calls of several sizes, of which the median is marked: {join(list(names))}." if names else ""


def groups_text(partition: Partition) -> str:
    """``{0, 2} {1, 3}: fsdp, dp_shard``."""
    shown = " ".join("{" + _ranks(ranks) + "}" for ranks in partition.groups[:_SHOWN_GROUPS])
    more = " ..." if len(partition.groups) > _SHOWN_GROUPS else ""
    return f"{shown}{more}: {clean(', '.join(partition.used_by), 80)}"


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"{ranks[0]}, {ranks[1]}, ..., {ranks[-1]}"


# ---------------------------------------------------------------- what the steps use


def own_sizes(cells: Iterable[CellResult], partition: Partition) -> list[OwnSize]:
    """Kinds and sizes of the calls that the cells' steps make on these groups; sizes almost alike are one."""
    found: dict[tuple[str, str], list[tuple[int, list[str]]]] = {}
    for cell in cells:
        for row in cell.collectives:
            if _groups(cell, row.axis) == partition.groups:
                _add(found.setdefault((row.op, kind_of(row)), []), row.bytes, clean(cell.layout, 60))
    return [
        OwnSize(op, kind, size, tuple(layouts))
        for (op, kind), sizes in found.items()
        for size, layouts in sorted(sizes)
    ]


def _add(sizes: list[tuple[int, list[str]]], size: int, layout: str) -> None:
    for known, layouts in sizes:
        if max(known, size) <= _ALIKE * min(known, size):
            if layout not in layouts:
                layouts.append(layout)
            return
    sizes.append((size, [layout]))


def _groups(cell: CellResult, axis: str) -> Groups | None:
    """None also for a layout of another stack that is no slug of ours."""
    try:
        layout = parse_slug(cell.layout, world_size=cell.world_size)
    except LayoutError:
        return None
    return groups_of(layout, axis) if layout.world_size == cell.world_size else None


def _within(swept: Swept, own: Sequence[OwnSize]) -> tuple[list[OwnSize], list[OwnSize]]:
    """The sizes that the sweep says something of, and the others."""
    sizes = [point.bytes for point in swept.points]
    low, high = min(sizes) / _BEYOND, max(sizes) * _BEYOND
    inside = [one for one in own if low <= one.bytes <= high]
    return inside, [one for one in own if one not in inside]


# ---------------------------------------------------------------- tables


def _times_table(swept: Swept) -> Table:
    """Microseconds with quartiles, a row for each op and size."""
    titles = ("op", "size", *(f"{way}, µs [quartiles]" for way in WAYS))
    return Table.of(titles, [_row(key, ways, _time) for key, ways in _by_size(swept)], texts=1)


def _bandwidths_table(swept: Swept) -> Table:
    """Bus bandwidths of the medians, a row for each op and size."""
    titles = ("op", "size", *(f"{way}, bus GB/s" for way in WAYS))
    return Table.of(titles, [_row(key, ways, _busbw) for key, ways in _by_size(swept)], texts=1)


def _by_size(swept: Swept) -> list[tuple[tuple[Op, int], dict[Way, CommPoint]]]:
    found: dict[tuple[Op, int], dict[Way, CommPoint]] = {}
    for point in swept.points:
        found.setdefault((point.op, point.bytes), {})[point.way] = point
    return sorted(found.items(), key=lambda item: (OPS.index(item[0][0]), item[0][1]))


def _row(key: tuple[Op, int], ways: dict[Way, CommPoint], value: Callable[[CommPoint], Value]) -> tuple[Value, ...]:
    op, size = key
    points = [ways.get(way) for way in WAYS]
    return Value(op), Value(size_text(size), size), *(value(point) if point else Value(UNKNOWN) for point in points)


def _time(point: CommPoint) -> Value:
    found = point.seconds
    return Value(interval(found.median, found.low, found.high, scale=1e6), found.median)


def _busbw(point: CommPoint) -> Value:
    return Value(gb_per_s(point.busbw_bytes_per_s), point.busbw_bytes_per_s)


def fits_table(compared: Compared) -> tuple[TitledTable, ...]:
    """``a + bytes / bw`` of every set of groups, op and way that has sizes enough; none without a fit."""
    swept = compared.data.comm.swept if compared.data.comm else ()
    titles = ("groups", "op", "timed", "a, µs", "bw, GB/s", "bus GB/s", "median error", "worst error", "sizes")
    rows = [_fit(groups_text(one.partition), fit) for one in swept for fit in one.fits]
    if not rows:
        return ()
    note = "Fitted to the medians so that relative errors are smallest; where they are large, believe the charts."
    return (TitledTable("Collectives alone: time = a + bytes / bw", Table.of(titles, rows, texts=3), note),)


def _fit(groups: str, fit: CommFit) -> tuple[Value, ...]:
    return (
        *map(Value, (groups, fit.op, fit.way)),
        Value(us(fit.latency_s), fit.latency_s),
        Value(gb_per_s(fit.bandwidth_bytes_per_s), fit.bandwidth_bytes_per_s),
        Value(gb_per_s(fit.busbw_bytes_per_s), fit.busbw_bytes_per_s),
        Value(percent(fit.median_error), fit.median_error),
        Value(percent(fit.worst_error), fit.worst_error),
        Value(str(fit.sizes), fit.sizes),
    )
