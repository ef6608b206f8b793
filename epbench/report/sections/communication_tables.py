"""The tables under the charts of communication: every collective of every cell, call by call, and axis by axis."""

from collections.abc import Iterable, Mapping

from epbench.records import CellResult, CollectiveRow
from epbench.report.comparison import Compared
from epbench.report.quantities import lost_s
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, gb_per_s, gib, number, percent, us

__all__ = ["axis_bytes", "axis_table", "beside_alone_table", "collectives_table", "wire_bytes"]


def collectives_table(compared: Compared, cells: Iterable[CellResult]) -> Table:
    """Every kind of collective of every cell: how large, how long, how fast, and who came last."""
    titles = (
        "cell",
        "op",
        "purpose",
        "phase",
        "axis",
        "calls/step",
        "MiB/call (median)",
        "transfer, ms/step",
        "wait, ms/step",
        "exposed, ms/step",
        "p50, µs",
        "p95, µs",
        "alone, µs",
        "algbw, GB/s",
        "busbw, GB/s",
        "ceiling, GB/s",
        "most often last",
    )
    rows = [_collective(compared.naming.arm(cell), row) for cell in cells for row in cell.collectives]
    return Table.of(titles, rows, texts=5)


def _collective(name: str, row: CollectiveRow) -> tuple[Value, ...]:
    return (
        Value(name),
        *(Value(clean(text, 40)) for text in (row.op, row.purpose, row.phase, row.axis)),
        Value(number(row.calls_per_step), row.calls_per_step),
        Value(number(row.bytes / 2**20), row.bytes),
        *map(_ms, (row.transfer_s, row.wait_s, row.exposed_s)),
        *map(_us, (row.p50_s, row.p95_s, row.isolated_s)),
        *map(_bandwidth, (row.algbw_bytes_per_s, row.busbw_bytes_per_s, row.ceiling_busbw_bytes_per_s)),
        _last(row.last_rank_share),
    )


def _ms(seconds: float | None) -> Value:
    return Value(UNKNOWN) if seconds is None else Value(number(seconds * 1e3), seconds)


def _us(seconds: float | None) -> Value:
    return Value(us(seconds), seconds)


def _bandwidth(bytes_per_s: float | None) -> Value:
    return Value(gb_per_s(bytes_per_s), bytes_per_s)


def _last(shares: Mapping[int, float]) -> Value:
    """``rank 1, 63.3 %`` of the calls of which one can tell; sorted by the share."""
    if not shares:
        return Value(UNKNOWN)
    rank = max(shares, key=lambda found: shares[found])
    return Value(f"rank {rank}, {percent(shares[rank])}", shares[rank])


def beside_alone_table(rows: Iterable[CollectiveRow]) -> Table:
    """One call in the step beside the same bytes alone, and what the difference comes to in a step."""
    titles = (
        "op",
        "purpose",
        "phase",
        "axis",
        "calls/step",
        "MiB/call (median)",
        "p50, µs",
        "p95, µs",
        "alone, µs",
        "p50 / alone",
        "above alone, ms/step",
        "busbw, GB/s",
        "ceiling, GB/s",
    )
    return Table.of(titles, [_beside_alone(row) for row in rows], texts=4)


def _beside_alone(row: CollectiveRow) -> tuple[Value, ...]:
    times = row.p50_s / row.isolated_s if row.isolated_s else None
    return (
        *(Value(clean(text, 40)) for text in (row.op, row.purpose, row.phase, row.axis)),
        Value(number(row.calls_per_step), row.calls_per_step),
        Value(number(row.bytes / 2**20), row.bytes),
        *map(_us, (row.p50_s, row.p95_s, row.isolated_s)),
        Value(number(times), times),
        _ms(lost_s(row)),
        *map(_bandwidth, (row.busbw_bytes_per_s, row.ceiling_busbw_bytes_per_s)),
    )


def axis_bytes(cell: CellResult) -> dict[str, float]:
    """Bytes a step by mesh axis, of each kind of call on the rank with the largest sum, own part included.

    Empty for a record without sums over calls, which the median call cannot stand in for.
    """
    found: dict[str, float] = {}
    for row in cell.collectives:
        if row.bytes_per_step is None:
            return {}
        found[row.axis] = found.get(row.axis, 0.0) + row.bytes_per_step
    return found


def wire_bytes(cell: CellResult, axis: str) -> float | None:
    """The same of what crosses the wires; None if it is not known of every row."""
    sizes = [row.bus_bytes_per_step for row in cell.collectives if row.axis == axis]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def axis_table(rows: Iterable[tuple[str, CellResult]]) -> Table:
    """A row for each layout and axis."""
    titles = ("layout", "axis", "calls/step", "buffers, GiB/step", "over the wires, GiB/step", "transfer, ms/step")
    found = []
    for name, cell in rows:
        for axis, size in axis_bytes(cell).items():
            own = [row for row in cell.collectives if row.axis == axis]
            wires, calls = wire_bytes(cell, axis), sum(row.calls_per_step for row in own)
            numbers = (Value(number(calls), calls), Value(gib(size), size), Value(gib(wires), wires))
            found.append((Value(name), Value(clean(axis, 40)), *numbers, _ms(sum(row.transfer_s for row in own))))
    return Table.of(titles, found, texts=2)
