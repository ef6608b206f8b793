"""Files that are written whole or not at all, and what is said when a disk refuses.

A full disk is the machine's fault and no bug: every write of a run goes through here, so that it ends in one
sentence (which file, why, how much room there is) and never in a traceback or in half a file.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from epbench.errors import StorageError

__all__ = [
    "IMPOSSIBLE_PATH",
    "NO_ROOM",
    "append_line",
    "replace_file",
    "room",
    "write_aside",
    "write_atomically",
    "writing",
]

IMPOSSIBLE_PATH = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOBODY_READS = frozenset({errno.EPIPE, errno.EIO})  # a pipe, a terminal
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@contextmanager
def writing(path: Path, *, num_bytes: int | None = None) -> Iterator[None]:
    """What the system refuses within the block is a StorageError about ``path``, to which ``num_bytes`` were to go."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        free = room(path, num_bytes) if error.errno in NO_ROOM else ""
        raise StorageError(f"cannot write '{path}': {reason}{free}") from error


def room(path: Path, num_bytes: int | None = None) -> str:
    """How much is free where ``path`` is to lie, as far as can be told, and how much was wanted."""
    wanted = "" if num_bytes is None else f", {_size(num_bytes)} wanted"
    for place in (path, *path.parents):
        with suppress(OSError):
            found = os.statvfs(place)
            return f" ({_size(found.f_bavail * found.f_frsize)} free{wanted})"
    return ""


def _size(num_bytes: float) -> str:
    for unit in _UNITS[:-1]:
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} {_UNITS[-1]}"


def write_atomically(path: Path, text: str) -> None:
    """Write lines of text so that a reader, or a power cut, sees the old file or the whole new one.

    Raises StorageError, and then leaves nothing behind.
    """
    replace_file(path, f"{text}\n".encode())


def replace_file(path: Path, content: bytes) -> None:
    """As :func:`write_atomically`, of exactly these bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, num_bytes=len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_whole(temporary, content)
            temporary.replace(path)
        except BaseException:  # Ctrl-C too
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def _write_whole(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append one line; a last line that a full disk, or a power cut, has torn stays a line of its own.

    Raises StorageError.
    """
    content = f"{line}\n".encode()
    with writing(path, num_bytes=len(content)), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            content = content if file.read(1) == b"\n" else b"\n" + content
        file.write(content)


def write_aside(line: str) -> None:
    """A line to standard error, or from now on nowhere: Ctrl-C ends a ``tee`` too, and no line is worth the run."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno not in _NOBODY_READS:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
