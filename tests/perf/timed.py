"""How the parts of a layer are timed: on one rank, or on two of which this process is the first.

The clock waits for the GPU. Times are of one call where calls are long, and of a loop of them, divided by its length,
where they are short; between the calls of a loop the GPU is not waited for, as in a step. Two ranks meet at a barrier
before every call that is timed, and make as many calls each, which is settled beforehand: a rank that made one more
would wait for ever.
"""

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from epbench.provenance import describe_environment
from tests.ranks import beside_rank_1

__all__ = [
    "DIRECTIONS",
    "Call",
    "Direction",
    "Make",
    "clock",
    "describe",
    "device_of",
    "dtype_of",
    "time_call",
    "time_on_two_ranks",
    "with_backward",
]

Direction = Literal["forward", "forward+backward"]
Call = Callable[[], Any]
Make = Callable[..., Call]  # of (size, direction); a function of a module, for rank 1 must find it
DIRECTIONS: tuple[Direction, ...] = ("forward", "forward+backward")
WARMUP_ROUNDS, ROUNDS = 5, 30


def clock() -> float:
    """Seconds, read when everything that a GPU was given is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def device_of(rank: int = 0) -> torch.device:
    """The GPU of a rank where there are GPUs, else the CPU."""
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")


def dtype_of(device: torch.device) -> torch.dtype:
    """What a step computes in: bf16 on a GPU, fp32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def describe(benchmark: BenchmarkFixture, part: str, size: object, *more: str, **shapes: Any) -> None:
    """Gives a benchmark the name of its series, ``part[size,more]``, and what its numbers depend on."""
    device = device_of()
    if device.type == "cuda":
        named = torch.cuda.get_device_name(device)
    else:
        named = f"cpu, {describe_environment('cpu', world_size=1).device_name}"
    benchmark.name, benchmark.group = f"{part}[{','.join((str(size), *more))}]", part
    benchmark.extra_info |= {
        "device": named,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype_of(device)).removeprefix("torch."),
        "shapes": {name: str(value) for name, value in shapes.items()},
    }


def with_backward(direction: Direction, call: Callable[[], Tensor | tuple[Tensor, ...]], wrt: Sequence[Tensor]) -> Call:
    """``call``, and for forward+backward the gradients of its results with respect to ``wrt``; nothing accumulates."""
    if direction == "forward":
        return call
    first = call()
    gradients = [torch.ones_like(one) for one in (first if isinstance(first, tuple) else (first,))]
    return lambda: torch.autograd.grad(call(), wrt, gradients)


def time_call(benchmark: BenchmarkFixture, call: Call) -> None:
    """Times ``call`` on this process alone; once to warm up, since the first one allocates and looks kernels up."""
    call()
    benchmark(call)


def time_on_two_ranks(benchmark: BenchmarkFixture, make: Make, *arguments: Any) -> None:
    """Times ``make(*arguments)()`` on rank 0, which is this process, while rank 1 does the same.

    Over gloo where there are no GPUs, else over NCCL; skips the test where there is one GPU.
    """
    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, or none")
    if benchmark.cprofile:
        pytest.skip("a profile would make calls that rank 1 knows nothing of")
    calls = WARMUP_ROUNDS + ROUNDS if benchmark.enabled else 1
    with beside_rank_1(_serve, make, arguments, calls, backend="nccl" if cuda else "gloo"):
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            _made(make, arguments), setup=_meet, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS
        )


def _serve(make: Make, arguments: tuple[Any, ...], calls: int) -> None:
    call = _made(make, arguments)
    for _ in range(calls):
        _meet()
        call()
    clock()


def _made(make: Make, arguments: tuple[Any, ...]) -> Call:
    """The call, made once before any is counted."""
    call = make(*arguments)
    call()
    return call


def _meet() -> None:
    rank = dist.get_rank()
    dist.barrier(device_ids=[rank] if torch.cuda.is_available() else None)
    clock()
