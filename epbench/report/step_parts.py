"""The exclusive parts of a traced step, by one name and in one order for charts and tables."""

from collections.abc import Callable, Mapping

from epbench.records import Breakdown, CellResult

__all__ = ["PARTS", "has_parts", "traced_s"]

PARTS: Mapping[str, Callable[[Breakdown], float | None]] = {
    "compute only": lambda parts: parts.compute,
    "overlapped": lambda parts: parts.overlapped,
    "exposed communication": lambda parts: parts.exposed,
    "idle, host": lambda parts: parts.idle.host,
    "idle, kernel": lambda parts: parts.idle.kernel,
}


def has_parts(cell: CellResult) -> bool:
    """Whether the cell has a number and its trace was split."""
    return cell.outcome == "ok" and traced_s(cell.breakdown_s) is not None


def traced_s(parts: Breakdown) -> float | None:
    """The traced step; of a record from before it was kept, the sum of its parts. None without a trace."""
    if parts.step_s is not None:
        return parts.step_s
    known = [seconds for of in PARTS.values() if (seconds := of(parts)) is not None]
    return sum(known) if known else None
