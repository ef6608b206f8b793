"""All ranks' traces of a launch, on one clock; large ones are read by two processes.

Reading is what takes time (a hundred megabytes a rank), and ranks are independent, so processes share it. Two,
not one a rank: each holds a whole trace while it reads, and the machine that measures must not run out of memory
afterwards. Workers are spawned, never forked: the parent has threads, and may have torch.

What a terminal or ``timeout`` sends to the whole process group is the parent's to answer: a worker that died of it
would cost a launch its traces. So workers are in sessions of their own, and end when the parent is gone.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path

from epbench.analysis.trace import RankTrace, read_rank
from epbench.errors import RunError

__all__ = ["read_traces"]

NUM_PROCESSES = 2
WORTH_PROCESSES_BYTES = 4_000_000  # gzipped; to spawn two interpreters takes as long as to read about this

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RANK = re.compile(r"rank-(\d{1,6})\.json\.gz")


def read_traces(directory: Path, *, steps: int) -> list[RankTrace]:
    """All ``rank-<n>.json.gz`` of a directory, by rank.

    Raises RunError if there is none, one cannot be read, a rank is missing, or a trace does not hold
    ``steps`` steps.
    """
    found = {int(m[1]): path for path in directory.glob("rank-*.json.gz") if (m := _RANK.fullmatch(path.name))}
    if not found:
        raise RunError(f"{directory}: no trace rank-<n>.json.gz in it; run the cell again")
    ranks, paths = zip(*sorted(found.items()), strict=True)
    large = len(paths) > 1 and sum(path.stat().st_size for path in paths) > WORTH_PROCESSES_BYTES
    traces = _read_by_processes(paths, ranks) if large else list(map(_read, paths, ranks))
    _check_complete(traces, directory, steps)
    base_ns = min(trace.base_ns for trace in traces)
    return [trace.counted_from(base_ns) for trace in traces]


def _read(path: Path, rank: int) -> RankTrace:
    return read_rank(path, rank=rank)


def _read_by_processes(paths: Sequence[Path], ranks: Sequence[int]) -> list[RankTrace]:
    context = multiprocessing.get_context("spawn")
    with _signals_held():  # of multiprocessing's own helper, which lets two of the three through again
        pool = ProcessPoolExecutor(NUM_PROCESSES, mp_context=context, initializer=_stand_alone)
    with pool:
        try:
            with _signals_held():
                traces = pool.map(_read, paths, ranks)
            return list(traces)
        except BrokenProcessPool as error:
            where = paths[0].parent
            raise RunError(f"{where}: a process that read the traces was killed, perhaps for memory") from error


@contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that are spawned meanwhile hold signals back until they stand alone; ours come when the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stand_alone() -> None:
    """In a worker: out of the parent's process group, deaf to what was sent to it before, and gone when it is."""
    os.setsid()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # forgets one that is held back
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker was spawned"
    connection.wait([parent.sentinel])
    os._exit(1)


def _check_complete(traces: Sequence[RankTrace], directory: Path, steps: int) -> None:
    world_size = max(trace.world_size or len(traces) for trace in traces)
    missing = sorted(set(range(world_size)) - {trace.rank for trace in traces})
    if missing:
        names = ", ".join(map(str, missing))
        raise RunError(f"{directory}: no trace of rank {names} (world of {world_size}); run the cell again")
    for trace in traces:
        if len(trace.steps) != steps:
            raise RunError(
                f"{directory}: the trace of rank {trace.rank} holds {len(trace.steps)} steps, not {steps};"
                " run the cell again"
            )
    silent = [trace.rank for trace in traces if not trace.on_cuda]
    if silent and len(silent) < len(traces):
        names = ", ".join(map(str, silent))
        raise RunError(f"{directory}: no kernel in the trace of rank {names}, but in others; run the cell again")
