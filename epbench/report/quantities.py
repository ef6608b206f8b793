"""Quantities of one cell that tables, charts and sentences share, so that all say the same number."""

from epbench.records import CellResult
from epbench.report.comparison import Compared
from epbench.report.text import UNKNOWN, gib

__all__ = ["exposed_share", "peak_bytes", "peak_text", "peak_word"]


def peak_word(compared: Compared) -> str:
    """Which peak this run reports: what the allocator reserved if it says so, else what was allocated."""
    return "reserved" if any(cell.peak_reserved_bytes is not None for cell in compared.view.cells) else "allocated"


def peak_bytes(cell: CellResult, compared: Compared) -> int | None:
    """The peak that ``peak_word`` names, of the worst rank."""
    return cell.peak_reserved_bytes if peak_word(compared) == "reserved" else cell.peak_allocated_bytes


def peak_text(cell: CellResult, compared: Compared) -> str:
    """The peak in GiB against the device's memory, ``52.1 of 141``; without it where it is not known."""
    peak, total = peak_bytes(cell, compared), compared.view.environment.device_memory_bytes
    if peak is None:
        return UNKNOWN
    return f"{gib(peak)} of {gib(total)}" if total else gib(peak)


def exposed_share(cell: CellResult) -> float | None:
    """Exposed communication, waits in it included, as a share of the critical rank's traced step."""
    parts = cell.breakdown_s
    return None if not parts.step_s or parts.exposed is None else parts.exposed / parts.step_s
