"""Quantities of one cell that tables, charts and sentences share, so that all say the same number."""

from epbench.records import CellResult, CollectiveRow
from epbench.report.comparison import Compared
from epbench.report.text import UNKNOWN, gib

__all__ = [
    "exposed_share",
    "has_one_size",
    "lost_s",
    "peak_bytes",
    "peak_text",
    "peak_word",
    "reserved_at_peak",
    "reserved_bytes",
    "traced_share",
]

_ONE_SIZE = 0.05  # by how much calls x the median call may be off the sum over calls


def peak_word(compared: Compared) -> str:
    """Which peak this run reports: what the allocator reserved if it says so, else what was allocated."""
    return "reserved" if any(cell.peak_reserved_bytes is not None for cell in compared.view.cells) else "allocated"


def peak_bytes(cell: CellResult, compared: Compared) -> int | None:
    """The peak that ``peak_word`` names, of the worst rank."""
    return reserved_bytes(cell) if peak_word(compared) == "reserved" else cell.peak_allocated_bytes


def reserved_bytes(cell: CellResult) -> int | None:
    """The highest reserved peak of all ranks; older records name that of the rank that allocates most."""
    return max(cell.memory.peak_reserved_bytes_per_rank, default=cell.peak_reserved_bytes)


def reserved_at_peak(cell: CellResult) -> int | None:
    """The reserved peak of the rank that allocates most, whose parts the record has."""
    reserved, allocated = cell.memory.peak_reserved_bytes_per_rank, cell.memory.peak_allocated_bytes_per_rank
    if not reserved:
        return cell.peak_reserved_bytes
    return reserved[allocated.index(max(allocated))] if len(reserved) == len(allocated) else None


def peak_text(cell: CellResult, compared: Compared) -> str:
    """The peak in GiB against the device's memory, ``52.1 of 141``; without it where it is not known."""
    peak, total = peak_bytes(cell, compared), compared.view.environment.device_memory_bytes
    if peak is None:
        return UNKNOWN
    return f"{gib(peak)} of {gib(total)}" if total else gib(peak)


def exposed_share(cell: CellResult) -> float | None:
    """Exposed communication, waits in it included, as a share of the critical rank's traced step."""
    return traced_share(cell, cell.breakdown_s.exposed)


def traced_share(cell: CellResult, part_s: float | None) -> float | None:
    """Some seconds of the critical rank's traced step as a share of it."""
    whole_s = cell.breakdown_s.step_s
    return None if not whole_s or part_s is None else part_s / whole_s


def has_one_size(row: CollectiveRow) -> bool | None:
    """Whether the median call stands for all calls of a step, by their bytes; None of a record without the sum."""
    if row.bytes_per_step is None:
        return None
    product = row.calls_per_step * row.bytes
    return abs(product - row.bytes_per_step) <= _ONE_SIZE * row.bytes_per_step


def lost_s(row: CollectiveRow) -> float | None:
    """Seconds a step that the calls of a row take beyond the same calls alone; negative where they are faster.

    None unless the calls are of about one size: only the median call was looked up in the sweep.
    """
    if row.isolated_s is None or not has_one_size(row):
        return None
    return row.calls_per_step * (row.p50_s - row.isolated_s)
