"""Which exceptions a rank raises only because another rank ended first.

When a rank dies, its peers say "Connection closed by peer" within 20 ms, and the elastic agent may blame
one of them (facts 10). When a rank hangs, its peers say that a collective timed out. Neither is a cause.
"""

import re

__all__ = ["is_out_of_memory", "is_secondary", "requested_memory"]

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
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|cudaErrorMemoryAllocation", re.IGNORECASE)
_REQUESTED = re.compile(r"tried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))", re.IGNORECASE)


def is_secondary(kind: str, message: str) -> bool:
    """Whether an exception of type ``kind`` tells of another rank's end rather than of its own cause."""
    return kind in _SECONDARY_TYPES or _SECONDARY.search(message) is not None


def is_out_of_memory(kind: str, message: str) -> bool:
    """Whether a rank ended for want of memory, on the device or on the host."""
    return kind in {"OutOfMemoryError", "MemoryError"} or _OUT_OF_MEMORY.search(message) is not None


def requested_memory(message: str) -> str | None:
    """The size that the allocator was asked for, as its message has it."""
    found = _REQUESTED.search(message)
    return found.group(1) if found else None
