"""The JSON of a chrome trace, read fast: of each event only the fields that the analysis needs.

A trace of a GPU step is a hundred megabytes of JSON, most of it arguments that nobody asks for. msgspec reads it
straight into small typed objects and leaves an event's arguments as they stand in the text until they are asked
for, in a quarter of the time and a tenth of the memory that dictionaries of everything take.
"""

import zlib
from pathlib import Path
from typing import Any

import msgspec

from epbench.errors import RunError

__all__ = ["Document", "Event", "correlation_of", "load", "mapping_of"]


class Event(msgspec.Struct, gc=False):
    """One entry of ``traceEvents``; times in microseconds since the document's base."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    tid: int | str = 0
    ts: float = 0.0
    dur: float | None = None
    args: msgspec.Raw = msgspec.Raw()


class _Ids(msgspec.Struct, gc=False):
    correlation: int | None = None


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


def correlation_of(event: Event) -> int | None:
    """The number that a kernel shares with its launch; raises ValueError if it is none."""
    return msgspec.json.decode(event.args, type=_Ids).correlation if event.args else None


def mapping_of(event: Event) -> dict[str, Any]:
    """All arguments of an event; raises ValueError if they are no JSON object."""
    return msgspec.json.decode(event.args, type=dict[str, Any]) if event.args else {}
