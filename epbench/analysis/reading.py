"""All ranks' traces of a launch, on one clock; large ones are read by two processes.

Reading is what takes time (a hundred megabytes a rank), and ranks are independent, so processes share it. Two,
not one a rank: each holds a whole trace while it reads, and the machine that measures must not run out of memory
afterwards. Workers are spawned, never forked: the parent has threads, and may have torch.
"""

import multiprocessing
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from epbench.analysis.trace import RankTrace, read_rank
from epbench.errors import RunError

__all__ = ["read_traces"]

NUM_PROCESSES = 2
WORTH_PROCESSES_BYTES = 4_000_000  # gzipped; to spawn two interpreters takes as long as to read about this

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
    with ProcessPoolExecutor(
        NUM_PROCESSES, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_the_parent
    ) as pool:
        try:
            return list(pool.map(_read, paths, ranks))
        except BrokenProcessPool as error:
            where = paths[0].parent
            raise RunError(f"{where}: a process that read the traces was killed, perhaps for memory") from error


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
