"""Collectives in a terminal: those of the steps beside what the same bytes take alone, and the sweep itself."""

from collections.abc import Iterable, Sequence
from textwrap import fill

from epbench.analysis.comm import FEWEST_SIZES, above_ceiling
from epbench.comm_records import OPS, WAYS, CommFit, CommPoint, CommRecord, Op, Partition, Swept, Way
from epbench.records import CellResult, CollectiveRow, RunView
from epbench.report.comparison import Compared
from epbench.report.tables import Table, Value
from epbench.report.terminal import drawn
from epbench.report.text import UNKNOWN, clean, gb_per_s, number, percent, us

__all__ = ["render_collectives", "render_comm", "size_text"]

_SHOWN_GROUPS = 4
_SHOWN_LAYOUTS = 3


# ---------------------------------------------------------------- of the steps


def render_collectives(view: RunView) -> str:
    """Per measured cell a table of its collectives, the longest first, each beside the same bytes alone."""
    compared = Compared.of(view)
    parts = [_cell(compared, cell) for cell in view.cells if cell.collectives]
    if not parts:
        return "No cell of this run has a trace of its collectives.\n"
    return "\n\n".join([*parts, *_how_to_read(view)]) + "\n"


def _cell(compared: Compared, cell: CellResult) -> str:
    warnings = [f"warning: {clean(text, 300)}" for text in above_ceiling(cell.collectives)]
    return "\n".join([f"{compared.naming.full(cell)}:", drawn(_rows_table(cell.collectives)), *warnings])


def _rows_table(rows: Iterable[CollectiveRow]) -> Table:
    titles = (
        "op",
        "purpose",
        "phase",
        "axis",
        "calls",
        "size",
        "ms/step",
        "wait",
        "us/call",
        "alone",
        "bus GB/s",
        "ceiling",
    )
    return Table(titles, tuple(map(_row, rows)), tuple(index >= 4 for index in range(len(titles))))


def _row(row: CollectiveRow) -> tuple[Value, ...]:
    texts = tuple(clean(text, 20) for text in (row.op, row.purpose, row.phase, row.axis))
    numbers = (
        number(row.calls_per_step),
        size_text(row.bytes),
        number(row.transfer_s * 1e3),
        number(row.wait_s * 1e3),
        us(row.p50_s),
        us(row.isolated_s),
        gb_per_s(row.busbw_bytes_per_s),
        gb_per_s(row.ceiling_busbw_bytes_per_s),
    )
    return tuple(Value(text) for text in (*texts, *numbers))


def _how_to_read(view: RunView) -> list[str]:
    lines = [
        "Transfer and wait in ms a step; 'us/call' is the median call, 'alone' the same bytes with nothing else on."
    ]
    if all(row.isolated_s is None for cell in view.cells for row in cell.collectives):
        lines.append("Nothing was measured alone: set comm = true under [measure].")
    return ["\n".join(lines)]


# ---------------------------------------------------------------- alone


def render_comm(record: CommRecord, *, whole: bool = True) -> str:
    """Every partition with its table and fits, then the warnings; in short only the fits of what was traced."""
    dtype = clean(record.dtype, 20)
    head = f"Collectives alone on {record.device}: {dtype}, {clean(record.data)}. Medians of the slowest group."
    warnings = "\n".join(f"warning: {clean(text, 300)}" for text in record.warnings)
    partition = _partition if whole else _partition_in_short
    parts = [head, *map(partition, record.swept), warnings]
    return "\n\n".join(part for part in parts if part) + "\n"


def _partition(swept: Swept) -> str:
    fits = [_fit(swept, op, way) for op in OPS for way in WAYS if _points(swept, op, way)]
    return "\n".join([_title(swept.partition), drawn(_points_table(swept)), *fits])


def _partition_in_short(swept: Swept) -> str:
    fits = [_fit(swept, op, "traced") for op in OPS if _points(swept, op, "traced")]
    return "\n".join([_title(swept.partition), *fits])


def _title(partition: Partition) -> str:
    """``2 groups of 2 ranks, {0, 2} {1, 3}: fsdp of dp2-tp2-ep4``."""
    count, size = len(partition.groups), partition.group_size
    shown = " ".join("{" + _ranks(ranks) + "}" for ranks in partition.groups[:_SHOWN_GROUPS])
    more = " ..." if count > _SHOWN_GROUPS else ""
    used = "; ".join(
        axis if axis == "world" else f"{axis} of {_some(slugs)}" for axis, slugs in partition.used_by.items()
    )
    head = f"{count} group{'s' * (count > 1)} of {size} ranks, {shown}{more}"
    return fill(f"{head}: {clean(used, 2000)}", 120, subsequent_indent="  ")


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"{ranks[0]}, {ranks[1]}, ..., {ranks[-1]}"


def _some(slugs: Sequence[str]) -> str:
    more = f" and {len(slugs) - _SHOWN_LAYOUTS} more" if len(slugs) > _SHOWN_LAYOUTS else ""
    return ", ".join(slugs[:_SHOWN_LAYOUTS]) + more


def _points(swept: Swept, op: Op, way: Way) -> list[CommPoint]:
    return sorted((p for p in swept.points if (p.op, p.way) == (op, way)), key=lambda point: point.bytes)


def _points_table(swept: Swept) -> Table:
    """A row for each op and size: microseconds and bandwidths in each way."""
    titles = ("op", "size", *(title for way in WAYS for title in (f"{way} us", "alg GB/s", "bus GB/s")))
    rows = []
    for op in OPS:
        by_size: dict[int, dict[Way, CommPoint]] = {}
        for point in swept.points:
            if point.op == op:
                by_size.setdefault(point.bytes, {})[point.way] = point
        rows += [(Value(op), Value(size_text(size)), *_numbers(by_size[size])) for size in sorted(by_size)]
    return Table(titles, tuple(rows), tuple(index >= 1 for index in range(len(titles))))


def _numbers(ways: dict[Way, CommPoint]) -> list[Value]:
    found = []
    for way in WAYS:
        point = ways.get(way)
        known = (
            (us(point.seconds.median), gb_per_s(point.algbw_bytes_per_s), gb_per_s(point.busbw_bytes_per_s))
            if point
            else ()
        )
        found += [Value(text) for text in known or (UNKNOWN,) * 3]
    return found


def size_text(count: int) -> str:
    """``64 KiB``; uneven exchanges are of odd sizes, which are rounded."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= 0.95 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _fit(swept: Swept, op: Op, way: Way) -> str:
    found = next((fit for fit in swept.fits if (fit.op, fit.way) == (op, way)), None)
    if found is None:
        return f"{op} {way}: no fit over so few sizes ({FEWEST_SIZES} are needed)"
    return f"{op} {way}: {_model(found)}"


def _model(fit: CommFit) -> str:
    bandwidth = gb_per_s(fit.bandwidth_bytes_per_s)
    growth = f" + bytes / {bandwidth} GB/s (bus {gb_per_s(fit.busbw_bytes_per_s)})" if fit.bandwidth_bytes_per_s else ""
    errors = (
        f"off by {percent(fit.median_error)} in the median, {percent(fit.worst_error)} at worst, of {fit.sizes} sizes"
    )
    return f"{us(fit.latency_s)} us{growth}; {errors}"
