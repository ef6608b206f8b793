"""The tables under the charts of memory: a worst rank's peak and all that was counted, a step's moments, errors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from epbench.memory_records import MemoryTimeline
from epbench.records import CellResult
from epbench.report.comparison import Compared
from epbench.report.figures.memory import PARTS, Envelope
from epbench.report.figures.units import Unit
from epbench.report.quantities import reserved_at_peak, reserved_bytes
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, number, percent

__all__ = ["moments_table", "parts_table", "predicted_table"]


@dataclass(frozen=True)
class _Counted:
    """One column over cells; a column that no cell fills is left out of the table."""

    title: str
    value: Callable[[CellResult], Value]
    is_number: bool = True


def parts_table(compared: Compared, cells: Sequence[CellResult], unit: Unit) -> Table:
    """Of every cell's worst rank the parts of its peak, the allocator's and the driver's view; and all ranks' peaks."""
    columns = [column for column in _columns(unit) if any(column.value(cell).text != UNKNOWN for cell in cells)]
    rows = [(Value(compared.naming.arm(cell)), *(column.value(cell) for column in columns)) for cell in cells]
    titles = ("cell", *(column.title for column in columns))
    return Table(titles, tuple(rows), (False, *(column.is_number for column in columns)))


def _columns(unit: Unit) -> list[_Counted]:
    name = unit.name
    return [
        *(_Counted(f"{part}, {name}", _part(part, unit)) for part in PARTS),
        _Counted(f"peak allocated, {name}", lambda cell: _bytes(cell.peak_allocated_bytes, unit)),
        _Counted(f"peak reserved, {name}", lambda cell: _bytes(reserved_bytes(cell), unit)),
        _Counted(f"reserved, not allocated, {name}", lambda cell: _bytes(_unused(cell), unit)),
        _Counted("fragmentation", lambda cell: Value(percent(cell.memory.fragmentation), cell.memory.fragmentation)),
        _Counted(f"inactive split, {name}", lambda cell: _bytes(cell.memory.inactive_split_bytes, unit)),
        _Counted("retries", lambda cell: _count(cell.memory.alloc_retries)),
        _Counted("caught OOMs", lambda cell: _count(cell.memory.ooms)),
        _Counted(f"process (driver), {name}", lambda cell: _bytes(cell.memory.driver_process_bytes, unit)),
        _Counted(f"device (driver), {name}", lambda cell: _bytes(cell.memory.driver_device_bytes, unit)),
        _Counted(f"outside torch, {name}", lambda cell: _bytes(cell.memory.outside_torch_bytes, unit)),
        _Counted("peak in", lambda cell: Value(cell.memory.peak_phase or UNKNOWN), is_number=False),
        _Counted("worst rank", lambda cell: _count(cell.memory.rank)),
        _Counted(
            f"allocated of each rank, {name}", lambda cell: _ranks(cell.memory.peak_allocated_bytes_per_rank, unit)
        ),
        _Counted(f"reserved of each rank, {name}", lambda cell: _ranks(cell.memory.peak_reserved_bytes_per_rank, unit)),
    ]


def _part(part: str, unit: Unit) -> Callable[[CellResult], Value]:
    return lambda cell: _bytes(getattr(cell.memory_bytes, part), unit)


def _bytes(count: int | None, unit: Unit) -> Value:
    return Value(UNKNOWN) if count is None else Value(number(count / unit.bytes), count)


def _count(count: int | None) -> Value:
    return Value(UNKNOWN) if count is None else Value(str(count), count)


def _unused(cell: CellResult) -> int | None:
    """Of the rank that allocates most; what another rank reserves is no part of its memory."""
    reserved = reserved_at_peak(cell)
    if reserved is None or cell.peak_allocated_bytes is None:
        return None
    return max(0, reserved - cell.peak_allocated_bytes)


def _ranks(counts: Sequence[int], unit: Unit) -> Value:
    """``45.9`` where all ranks agree in the digits shown, else from the least to the most: ``44.1 to 45.9``."""
    if not counts:
        return Value(UNKNOWN)
    ends = list(dict.fromkeys(number(count / unit.bytes) for count in (min(counts), max(counts))))
    return Value(" to ".join(ends), max(counts) - min(counts))


def moments_table(timeline: MemoryTimeline, found: Envelope, unit: Unit) -> Table:
    """The beginning and end of the step and of its backwards, the lowest and the highest point."""
    titles = ("moment", "ms", f"lowest, {unit.name}", f"highest, {unit.name}")
    moments = [("begin of the step", 0.0)]
    if timeline.backward_s:
        moments.append(("begin of the first backward", timeline.backward_s[0][0]))
        moments.append(("end of the last backward", timeline.backward_s[-1][1]))
    moments.append(("highest", found.time_s[found.high.index(max(found.high))]))
    moments.append(("lowest", found.time_s[found.low.index(min(found.low))]))
    moments.append(("end of the step", timeline.step_s))
    return Table.of(titles, [_moment(name, time_s, found, unit) for name, time_s in moments], texts=1)


def _moment(name: str, time_s: float, found: Envelope, unit: Unit) -> tuple[Value, ...]:
    at = max(0, sum(begin <= time_s for begin in found.time_s) - 1)
    ms = Value(number(1e3 * time_s), time_s)
    return Value(name), ms, _bytes(found.low[at], unit), _bytes(found.high[at], unit)


def predicted_table(rows: Iterable[tuple[str, int, int]], unit: Unit) -> Table:
    """(name, predicted, measured) with the error of the prediction, positive where it was too high."""
    titles = ("cell", f"predicted, {unit.name}", f"measured, {unit.name}", "error")
    found = [
        (Value(clean(name)), _bytes(predicted, unit), _bytes(measured, unit), _error(predicted / measured - 1))
        for name, predicted, measured in rows
    ]
    return Table.of(titles, found, texts=1)


def _error(share: float) -> Value:
    return Value(f"{100 * share:+.1f} %", share)
