"""Leaving no process behind, whatever dies first (Linux).

Three nets, each for the failure of the one before: a launch ends all of its descendants by walking
``/proc`` from the fork server, which is *subreaper* and so inherits every orphan below it; an agent or rank
whose parent dies is killed by the kernel (``PR_SET_PDEATHSIG``); the fork server ends when the parent's end
of its socket closes.
"""

import ctypes
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["become_subreaper", "descendants", "die_with_parent", "end_descendants", "kill_all", "stat_of"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Be killed when the *thread* that forked this process ends; at once if ``parent`` is already gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _parents() -> dict[int, int]:
    """Parent of every process that can be seen; a process may vanish while it is read."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := stat_of(int(entry.name))):
            parents[int(entry.name)] = int(stat[1])
    return parents


def stat_of(process_id: int) -> list[str] | None:
    """Fields of ``/proc/<pid>/stat`` from the state on (see proc_pid_stat(5)); None: there is no such process.

    Field 0 is the state (``T`` stopped, ``D`` waits uninterruptibly, ``Z`` dead), 1 the parent, 19 the start in ticks.
    """
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def descendants(root: int) -> list[int]:
    """Processes below ``root``, zombies included."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill_all(process_ids: Iterable[int]) -> None:
    """Kill each that still is there."""
    for process_id in process_ids:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def end_descendants() -> None:
    """Kill and reap everything below this process, which must be a subreaper, until nothing is left."""
    while left := descendants(os.getpid()):
        kill_all(left)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
