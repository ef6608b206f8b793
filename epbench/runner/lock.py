"""One parent at a time in a run directory, and none before the last process of the one before is gone.

The lock is the kernel's (flock) and belongs to an open file, which the parent hands down to its fork server and so
to every agent and rank: it is free when the last of them has ended, however that happened, and cannot be stale. The
file says who took it, for people and to tell a parent that works from one that was killed.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epbench.errors import RunError
from epbench.runner.processes import stat_of
from epbench.store import read_json
from epbench.writing import writing

__all__ = ["locked"]

FILE = ".lock"
_POLL_S = 0.1
_LEFTOVERS_S = 60.0
_GRACE_S = 0.5  # a process that was killed is still to be seen for a moment
_START = 19
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})  # a network file system without them


@contextmanager
def locked(run: Path, *, leftovers_s: float = _LEFTOVERS_S) -> Iterator[int]:
    """Holds the run directory; yields the descriptor that ranks inherit.

    Waits up to ``leftovers_s`` for the processes of a parent that was killed. Raises RunError while another parent
    works there, or if such processes do not end.
    """
    path = run / FILE
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, path, time.monotonic() + leftovers_s)
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, deadline: float) -> None:
    seen_off = time.monotonic() + _GRACE_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            if error.errno != errno.EWOULDBLOCK:
                raise
            holder = read_json(path) or {}
        if _works(holder) and time.monotonic() > seen_off:
            name = f"process {holder.get('process_id')} on {holder.get('host')}"
            raise RunError(f"'{path.parent}' is being run by {name}: wait for it, or start a new run without --resume")
        if time.monotonic() > deadline:
            raise RunError(f"'{path.parent}' is still held by processes of an earlier run; see: fuser -v '{path}'")
        time.sleep(_POLL_S)


def _me() -> dict[str, Any]:
    return {"process_id": os.getpid(), "started_ticks": _started(os.getpid()), "host": socket.gethostname()}


def _started(process_id: int) -> str | None:
    stat = stat_of(process_id)
    return stat[_START] if stat and stat[0] != "Z" else None


def _works(holder: dict[str, Any]) -> bool:
    """Whether the parent itself lives; of another host's nothing is known, so it may. Process ids are used again."""
    if holder.get("host") not in (None, socket.gethostname()):
        return True
    process_id = holder.get("process_id")
    return isinstance(process_id, int) and _started(process_id) == holder.get("started_ticks") is not None
