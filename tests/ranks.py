"""Worlds of gloo ranks for tests, forked from a clean server that has imported torch: half a second a world.

A fresh world per call: process groups that a layout makes are never cleaned up piecemeal (each would leak
threads and descriptors into the next case), and a world that failed is thrown away with whatever it hung in.
"""

import faulthandler
import multiprocessing
import os
import select
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

__all__ = ["beside_rank_1", "run_on_ranks"]

_TIMEOUT_S = 240.0
_STACKS_AFTER_S = 200.0  # a rank that is still at work writes down where it is


Work = tuple[Callable[..., Any], Any, str]  # function, arguments, backend


def _rank(rank: int, world_size: int, store: str, pipe: Connection, work: Work) -> None:
    import torch

    faulthandler.dump_traceback_later(_STACKS_AFTER_S, file=os.open(_stacks(store, rank), os.O_CREAT | os.O_WRONLY))
    warnings.simplefilter("error")
    for dynamo_looks_at in ("The .grad attribute", "<class 'torch.autograd.function.Function'> should not be"):
        warnings.filterwarnings("ignore", message=dynamo_looks_at)
    torch.set_num_threads(1)
    function, arguments, backend = work
    try:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        _join(backend, store, rank, world_size)
        pipe.send((True, function(*arguments)))
        _linger(pipe)
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    os._exit(0)


def _join(backend: str, store: str, rank: int, world_size: int) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=_TIMEOUT_S),
    )


def _stacks(store: str, rank: int) -> str:
    return f"{store}-stacks-{rank}"


def _linger(pipe: Connection) -> None:
    """Until nobody reads the pipe: a rank that left at once could not answer one that still connects a new group."""
    reader = select.poll()
    reader.register(pipe.fileno(), 0)  # an error is always reported: the other end is closed
    reader.poll(_TIMEOUT_S * 1000)


def _context(backend: str) -> ForkServerContext | SpawnContext:
    """A CUDA rank starts afresh: the preloaded compiler may have looked at a GPU, and what did cannot be forked."""
    if backend == "nccl":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    return context


@contextmanager
def _world(size: int, work: Work, *, first: int = 0) -> Iterator[tuple[list[Connection], str]]:
    """Ranks from ``first`` on at work: the pipes that they answer in, and the file in which they meet."""
    context = _context(work[2])
    pipes = [context.Pipe(duplex=False) for _ in range(first, size)]
    processes: list[ForkServerProcess | SpawnProcess] = []
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        try:
            for rank, (_, theirs) in enumerate(pipes, start=first):
                process = context.Process(target=_rank, args=(rank, size, store, theirs, work), daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
            yield [ours for ours, _ in pipes], store
        finally:
            for process in processes:
                process.kill()
                process.join()


def _receive(pipe: Connection, rank: int, store: str) -> tuple[bool, Any]:
    if not pipe.poll(_TIMEOUT_S):
        where = Path(_stacks(store, rank))
        stacks = where.read_text(encoding="utf-8") if where.exists() else "it never began"
        return False, f"rank {rank} did not answer within {_TIMEOUT_S:.0f} s; it was at\n{stacks}"
    try:
        answer: tuple[bool, Any] = pipe.recv()
    except EOFError:
        return False, f"rank {rank} died"
    return answer


def run_on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> list[Any]:
    """Calls ``function(*arguments)`` on every rank of a new world; returns the results in order of rank.

    With ``backend="nccl"`` rank r has GPU r. AssertionError with the traceback of the first rank that failed on its
    own account.
    """
    with _world(world_size, (function, arguments, backend)) as (pipes, store):
        results = [_receive(pipe, rank, store) for rank, pipe in enumerate(pipes)]
    failures = [f"rank {rank} failed:\n{value}" for rank, (ok, value) in enumerate(results) if not ok]
    peers = ("Connection closed by peer", "Connection reset by peer", "Timed out")
    failures.sort(key=lambda text: any(secondary in text for secondary in peers))
    assert not failures, failures[0]
    return [value for _, value in results]


@contextmanager
def beside_rank_1(function: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> Iterator[None]:
    """Makes this process rank 0 of a world of two while the block runs; rank 1 calls ``function(*arguments)``.

    AssertionError with the traceback of rank 1 if it fails, also where rank 0 fails because of that.
    """
    import torch.distributed as dist

    with _world(2, (function, arguments, backend), first=1) as ((pipe,), store):
        _join(backend, store, 0, 2)
        try:
            yield
            failed = not (answer := _receive(pipe, 1, store))[0]
        except RuntimeError:
            failed = pipe.poll(1) and not (answer := _receive(pipe, 1, store))[0]
            if not failed:
                raise
        finally:
            dist.destroy_process_group()
        assert not failed, f"rank 1 failed:\n{answer[1]}"
