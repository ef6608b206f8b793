"""The JSON of a chrome trace, read fast: of each event only the fields that the analysis needs.

A trace of a GPU step is a hundred megabytes of JSON, most of it arguments that nobody asks for. msgspec reads it
straight into small typed objects and skips the rest, in a quarter of the time and a tenth of the memory that
dictionaries of everything take.
"""

import zlib
from pathlib import Path
from typing import Any

import msgspec

from epbench.errors import RunError

__all__ = ["NO_ARGUMENTS", "NO_CORRELATION", "Arguments", "Document", "Event", "load"]

NO_CORRELATION = 0  # the profiler counts from 1


class Arguments(msgspec.Struct, frozen=True, gc=False):
    """What is read of an event's arguments; what a trace has of them is for the reader to check."""

    correlation: int = NO_CORRELATION  # shared by a kernel and its launch
    collective: Any = msgspec.field(name="Collective name", default=None)  # this and the next six: NCCL's kernels
    sent_elements: Any = msgspec.field(name="In msg nelems", default=None)
    received_elements: Any = msgspec.field(name="Out msg nelems", default=None)
    group_size: Any = msgspec.field(name="Group size", default=None)
    dtype: Any = None
    group: Any = msgspec.field(name="Process Group Description", default=None)
    group_ranks: Any = msgspec.field(name="Process Group Ranks", default=None)
    dims: Any = msgspec.field(name="Input Dims", default=None)  # this and the next: operators, gloo's events
    types: Any = msgspec.field(name="Input type", default=None)


NO_ARGUMENTS = Arguments()


class Event(msgspec.Struct, gc=False):
    """One entry of ``traceEvents``; times in microseconds since the document's base."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    tid: int | str = 0
    ts: float = 0.0
    dur: float | None = None
    args: Arguments = NO_ARGUMENTS


class Document(msgspec.Struct):
    """A whole trace."""

    events: list[Event] = msgspec.field(name="traceEvents")
    base_ns: int = msgspec.field(default=0, name="baseTimeNanoseconds")
    host_name: str | None = None
    distributed: dict[str, Any] | None = msgspec.field(default=None, name="distributedInfo")


def load(path: Path) -> Document:
    """The trace in a gzipped file. Raises RunError, in a sentence, for a file that is torn or no trace."""
    try:
        return msgspec.json.decode(_unpacked(path.read_bytes()), type=Document)
    except msgspec.ValidationError as error:
        raise RunError(f"{path}: not a trace of the torch profiler ({error}); run the cell again") from error
    except (OSError, MemoryError, zlib.error, ValueError) as error:
        raise RunError(f"{path}: not a readable trace ({error}); run the cell again") from error


def _unpacked(packed: bytes) -> bytes:
    """The text of a gzip file of one member, unpacked into one buffer.

    Its size stands in the last four bytes, which in a torn file are any; deflate shrinks by 1032 at most.
    """
    size = int.from_bytes(packed[-4:], "little")
    return zlib.decompress(packed, wbits=31, bufsize=max(1, min(size, 1032 * len(packed))))
