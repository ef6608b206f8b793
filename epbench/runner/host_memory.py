"""Whether the kernel has ended processes of this machine, or of this container, for want of memory.

A rank that the kernel ends so has no chance to say anything: it is gone by signal 9. The kernel counts such ends
per control group (``memory.events`` in version 2, ``memory.oom_control`` in version 1; both count the ends for want
of the group's and of the whole machine's memory) and per machine (``/proc/vmstat``).
"""

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["oom_kills"]

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(root: Path = Path("/")) -> int | None:
    """How often until now, in this process's control group if it can be read; None: the kernel does not tell."""
    for path in (*_of_groups(root), root / "proc/vmstat"):
        try:
            found = _COUNT.search(path.read_text(encoding="utf-8"))
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def _of_groups(root: Path) -> Iterator[Path]:
    """Files that may hold the count of this process's group; within a container its path may be another one."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for place in dict.fromkeys((path.strip("/"), "")):
            if not controllers:
                yield mounted / place / "memory.events"
            elif "memory" in controllers.split(","):
                yield mounted / "memory" / place / "memory.oom_control"
