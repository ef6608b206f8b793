"""What an exception of a rank tells: of another rank's end, of want of memory, or of a disk that refuses.

When a rank dies, its peers say "Connection closed by peer" within 20 ms, and the elastic agent may blame
one of them (facts 10). When a rank hangs, its peers say that a collective timed out. Neither is a cause.
"""

import re

__all__ = ["EXIT_UNWRITABLE", "is_out_of_memory", "is_secondary", "is_unwritable", "requested_memory"]

EXIT_UNWRITABLE = 74  # EX_IOERR of sysexits.h: all that a rank can say when its own log is what cannot be written

_SECONDARY = re.compile(
    r"connection (closed|reset|refused|was likely closed)"
    r"|broken pipe"
    r"|socket (closed|timeout)"
    r"|timed out (waiting|after)"
    r"|timed? ?out.*(recv|send|operation|collective)"
    r"|remote (process|peer).*(exit|error)"
    r"|remote error|ncclremoteerror"
    r"|watchdog caught collective operation timeout"
    r"|communicator was aborted"
    r"|process group.*(abort|shut)",
    re.IGNORECASE,
)
_SECONDARY_TYPES = {"DistNetworkError", "DistStoreError", "SignalException"}
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cudaErrorMemoryAllocation|unable to allocate \d", re.IGNORECASE
)
_REQUESTED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_UNWRITABLE = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|\[errno 5\]", re.IGNORECASE
)


def is_secondary(kind: str, message: str) -> bool:
    """Whether an exception of type ``kind`` tells of another rank's end rather than of its own cause."""
    return kind in _SECONDARY_TYPES or _SECONDARY.search(message) is not None


def is_out_of_memory(kind: str, message: str) -> bool:
    """Whether a rank ended for want of memory, on the device or on the host."""
    return kind in {"OutOfMemoryError", "MemoryError"} or _OUT_OF_MEMORY.search(message) is not None


def requested_memory(message: str) -> int | None:
    """Bytes that the allocator was asked for, to the digits of its message (CUDA's, the CPU's, numpy's)."""
    found = _REQUESTED.search(message)
    return round(float(found[1]) * _UNITS[found[2].lower()]) if found else None


def is_unwritable(kind: str, message: str) -> bool:
    """Whether a rank ended because a file could not be written, which no cell is to blame for."""
    return kind == "StorageError" or _UNWRITABLE.search(message) is not None
