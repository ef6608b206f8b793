"""Tables of where the step goes: parts per cell and per rank, kernels by kind, device work beside wall time."""

from collections.abc import Iterable, Sequence

from epbench.analysis.statistics import Interval
from epbench.records import Breakdown, CellResult
from epbench.report.comparison import Compared
from epbench.report.step_parts import PARTS, traced_s
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, interval, ms, percent

__all__ = ["device_work", "device_work_table", "kernels_table", "parts_table", "rank_parts_table"]

_PART_TITLES = tuple(f"{name}, ms" for name in PARTS)


def parts_table(compared: Compared, cells: Iterable[CellResult]) -> Table:
    """Both steps of each cell, timed and traced, and the parts of the traced one."""
    titles = (
        "cell",
        "timed step, ms",
        "traced step, ms",
        "traced is longer by",
        "rank",
        *_PART_TITLES,
        "exposed share",
    )
    return Table.of(titles, [_parts_row(compared, cell) for cell in cells], texts=1)


def _parts_row(compared: Compared, cell: CellResult) -> tuple[Value, ...]:
    parts = cell.breakdown_s
    traced = traced_s(parts)
    return (
        Value(compared.naming.arm(cell)),
        Value(interval(cell.step_s, cell.step_s_low, cell.step_s_high, scale=1e3), cell.step_s),
        _ms(traced),
        _share(traced - cell.step_s if traced is not None and cell.step_s else None, cell.step_s),
        _rank(parts.rank),
        *_parts(parts),
    )


def rank_parts_table(ranks: Iterable[Breakdown], critical: int | None) -> Table:
    """The parts of each rank of one cell."""
    titles = ("rank", "critical", "traced step, ms", *_PART_TITLES, "exposed share")
    rows = [
        (_rank(parts.rank), Value("yes" if parts.rank == critical else "no"), _ms(traced_s(parts)), *_parts(parts))
        for parts in ranks
    ]
    return Table(titles, tuple(rows), tuple(title != "critical" for title in titles))


def _parts(parts: Breakdown) -> tuple[Value, ...]:
    return (*(_ms(part_of(parts)) for part_of in PARTS.values()), _share(parts.exposed, traced_s(parts)))


def kernels_table(compared: Compared, cells: Sequence[CellResult]) -> Table:
    """Milliseconds a step by kind, the kind that takes most first, and the share of what has no known kind."""
    totals: dict[str, float] = {}
    for cell in cells:
        for kind, seconds in cell.kernels_s.items():
            totals[kind] = totals.get(kind, 0.0) + seconds
    kinds = sorted(totals, key=lambda kind: -totals[kind])
    rows = [
        (
            Value(compared.naming.arm(cell)),
            *(_ms(cell.kernels_s.get(kind)) for kind in kinds),
            _ms(sum(cell.kernels_s.values())),
            Value(percent(cell.unclassified_share), cell.unclassified_share),
        )
        for cell in cells
    ]
    titles = ("cell", *(f"{kind.replace('_', ' ')}, ms" for kind in kinds), "sum, ms", "of no known kind")
    return Table.of(titles, rows, texts=1)


def device_work_table(compared: Compared, cells: Iterable[CellResult]) -> Table:
    """Wall time, device work, and the plain union of kernels, which contains the waits and is only looked at."""
    titles = ("cell", "step, ms", "device work, ms", "of the step", "kernel union, ms")
    return Table.of(titles, [_device_work_row(compared, cell) for cell in cells], texts=1)


def _device_work_row(compared: Compared, cell: CellResult) -> tuple[Value, ...]:
    work = device_work(cell)
    return (
        Value(compared.naming.arm(cell)),
        Value(interval(cell.step_s, cell.step_s_low, cell.step_s_high, scale=1e3), cell.step_s),
        Value(interval(work.value, work.low, work.high, scale=1e3), work.value) if work else Value(UNKNOWN),
        _share(cell.device_work_s, cell.step_s),
        _ms(cell.kernel_union_s),
    )


def device_work(cell: CellResult) -> Interval | None:
    """Device work in seconds with its interval; None where there is none, as on a CPU."""
    if cell.device_work_s is None:
        return None
    return Interval(cell.device_work_s, cell.device_work_s_low, cell.device_work_s_high)


def _rank(rank: int | None) -> Value:
    return Value(UNKNOWN if rank is None else str(rank), rank)


def _ms(seconds: float | None) -> Value:
    return Value(ms(seconds), seconds)


def _share(part_s: float | None, whole_s: float | None) -> Value:
    share = None if part_s is None or not whole_s else part_s / whole_s
    return Value(percent(share), share)
