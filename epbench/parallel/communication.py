"""Every collective that the stack issues itself: differentiable, labelled, and opaque to the compiler.

Each is a custom op whose Python body runs at run time in eager and in compiled code alike, so that one
``record_function`` label (epbench.labels) marks the call in both, on gloo and on NCCL. Row counts that only
the data decides enter as a CPU tensor of splits: the graph sees one unknown size and no list of Python
integers, hence neither a graph break nor a recompile when the counts change.

The backward of an all-to-all is the all-to-all with swapped splits; gathering and scattering the sequence are
each other's.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.profiler import record_function

from epbench.labels import CommLabel
from epbench.parallel import compat

__all__ = [
    "Axis",
    "all_gather_into",
    "all_reduce_",
    "all_to_all",
    "all_to_all_even",
    "all_to_all_into",
    "await_splits",
    "exchange_counts",
    "gather_sequence",
    "reduce_scatter_into",
    "scatter_sequence",
]


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh as collectives need it: plain strings and integers, so that a graph can hold it."""

    name: str
    group: str  # name of the process group
    size: int
    rank: int  # of this process in the group

    @classmethod
    def of(cls, mesh: DeviceMesh, name: str) -> "Axis":
        """The axis that the 1-D ``mesh`` spans."""
        return cls.from_group(mesh.get_group(), name)

    @classmethod
    def from_group(cls, group: dist.ProcessGroup, name: str) -> "Axis":
        """The axis that a process group spans, in order of its ranks; ``name`` is what traces call it."""
        return cls(name, group.group_name, group.size(), group.rank())


def _group(name: str) -> dist.ProcessGroup:
    module: Any = dist.distributed_c10d
    group: dist.ProcessGroup = module._resolve_process_group(name)
    return group


def _label(
    op: str,
    purpose: str,
    axis: str,
    phase: str,
    group: dist.ProcessGroup,
    sent: Tensor,
    received: Tensor,
    kept_bytes: int | None = None,
) -> AbstractContextManager[Any]:
    if not torch._C._autograd._profiler_enabled():
        return nullcontext()  # a label that nobody reads costs the host some 20 us a call
    if phase == "forward" and torch._C._current_graph_task_id() != -1:
        phase = "recompute"  # a forward that runs inside backward is activation checkpointing's
    ranks = dist.get_process_group_ranks(group)
    return record_function(
        CommLabel(op, purpose, phase, axis, min(ranks), len(ranks), sent.nbytes, received.nbytes, kept_bytes).text
    )


# ---------------------------------------------------------------- all-to-all


@torch.library.custom_op("epbench::all_to_all", mutates_args=())
def _all_to_all(
    x: Tensor, splits: Tensor, rows: int | None, reverse: bool, group: str, axis: str, purpose: str, phase: str
) -> Tensor:
    process_group = _group(group)
    sent, received = splits.tolist() if not reverse else splits.flip(0).tolist()
    x = x.contiguous()
    output = x.new_empty((sum(received), *x.shape[1:]))
    kept_bytes = sent[process_group.rank()] * x[:1].nbytes if len(x) else 0
    with _label("all_to_all", purpose, axis, phase, process_group, x, output, kept_bytes):
        dist.all_to_all_single(output, x, received, sent, group=process_group)
    return output


@_all_to_all.register_fake
def _(
    x: Tensor, splits: Tensor, rows: int | None, reverse: bool, group: str, axis: str, purpose: str, phase: str
) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size() if rows is None else rows
    return x.new_empty((size, *x.shape[1:]))


def _save_all_to_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, splits, _rows, *ctx.how = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(splits)


def _all_to_all_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (splits,) = ctx.saved_tensors
    reverse, group, axis, purpose, _phase = ctx.how
    dx = _all_to_all(grad, splits, ctx.rows, not reverse, group, axis, purpose, "backward")
    return dx, *[None] * 7


_all_to_all.register_autograd(_all_to_all_backward, setup_context=_save_all_to_all)


def all_to_all(
    x: Tensor, splits: Tensor, *, axis: Axis, purpose: str, reverse: bool = False, rows: int | None = None
) -> Tensor:
    """Exchanges rows of ``x`` [rows sent, ...]; returns [rows received, ...], in order of source rank.

    ``splits`` [2, axis.size] int64 on the CPU: rows sent to and received from each rank; ``reverse`` swaps the
    two. ``rows`` states the number received where it is known beforehand, which spares the graph an unknown.
    """
    result: Tensor = _all_to_all(x, splits, rows, reverse, axis.group, axis.name, purpose, "forward")
    return result


@torch.library.custom_op("epbench::all_to_all_even", mutates_args=())
def _all_to_all_even(x: Tensor, group: str, axis: str, purpose: str, phase: str) -> Tensor:
    process_group, x = _group(group), x.contiguous()
    output = torch.empty_like(x)
    with _label("all_to_all", purpose, axis, phase, process_group, x, output):
        dist.all_to_all_single(output, x, group=process_group)
    return output


@_all_to_all_even.register_fake
def _(x: Tensor, group: str, axis: str, purpose: str, phase: str) -> Tensor:
    return x.new_empty(x.shape)


def _all_to_all_even_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _all_to_all_even(grad, *ctx.how, "backward"), *[None] * 4


def _save_how(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _x, *ctx.how, _phase = inputs


_all_to_all_even.register_autograd(_all_to_all_even_backward, setup_context=_save_how)


def all_to_all_even(x: Tensor, *, axis: Axis, purpose: str) -> Tensor:
    """Exchanges equal chunks: ``x`` [axis.size, ...], chunk i goes to rank i; returns the same shape."""
    result: Tensor = _all_to_all_even(x, axis.group, axis.name, purpose, "forward")
    return result


@torch.library.custom_op("epbench::exchange_counts", mutates_args=())
def _exchange_counts(counts: Tensor, group: str, size: int, axis: str, phase: str) -> tuple[Tensor, Tensor]:
    process_group = _group(group)
    both = torch.stack([counts, counts])
    with _label("all_to_all", "count_exchange", axis, phase, process_group, counts, counts):
        dist.all_to_all_single(both[1], counts, group=process_group)
    return both, _on_its_way_to_the_host(both)


@_exchange_counts.register_fake
def _(counts: Tensor, group: str, size: int, axis: str, phase: str) -> tuple[Tensor, Tensor]:
    both = counts.new_empty((2, counts.shape[0]))
    return both, torch.empty(both.shape, dtype=both.dtype, device="cpu")


def _on_its_way_to_the_host(x: Tensor) -> Tensor:
    """A copy of ``x`` in pinned memory, which is there once the copy stream is done."""
    if x.device.type != "cuda":
        return x.clone()
    stream = _copy_stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):
        host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
        host.copy_(x, non_blocking=True)
    x.record_stream(stream)
    return host


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Carries nothing but these copies, so that waiting for it waits for no kernel that was queued meanwhile."""
    return torch.cuda.Stream(device)


@torch.library.custom_op("epbench::await_splits", mutates_args=())
def _await_splits(on_its_way: Tensor, device_of: Tensor, size: int) -> Tensor:
    if device_of.device.type == "cuda":
        _copy_stream(device_of.device).synchronize()
    return on_its_way.view(2, size, -1).sum(2)


@_await_splits.register_fake
def _(on_its_way: Tensor, device_of: Tensor, size: int) -> Tensor:
    return on_its_way.new_empty((2, size))


def exchange_counts(counts: Tensor, *, axis: Axis) -> tuple[Tensor, Tensor]:
    """Tells every rank how many rows it will get, and starts to tell this host.

    ``counts`` [num_experts] int64: rows for each expert, experts in order of the rank that holds them. Returns
    (both [2, num_experts] on the device: rows sent for each expert, and received from each rank for each local
    expert; the same on its way to the host), which :func:`await_splits` waits for.
    """
    both, on_its_way = _exchange_counts(counts, axis.group, axis.size, axis.name, "forward")
    return both, on_its_way


def await_splits(both: Tensor, on_its_way: Tensor, *, axis: Axis) -> Tensor:
    """Splits [2, axis.size] int64 on the CPU: rows sent to and received from each rank.

    The one place of a layer where the host waits for the device. It waits for the counts only: what is queued
    between :func:`exchange_counts` and this keeps the device busy while the host wakes up.
    """
    splits: Tensor = _await_splits(on_its_way, both, axis.size)
    return splits


# ---------------------------------------------------------------- the sequence, gathered and reduce-scattered


@torch.library.custom_op("epbench::gather_sequence", mutates_args=())
def _gather_sequence(x: Tensor, group: str, size: int, axis: str, phase: str) -> Tensor:
    process_group, x = _group(group), x.contiguous()
    output = x.new_empty((size, *x.shape))
    with _label("all_gather", "tp", axis, phase, process_group, x, output):
        compat.all_gather(output.flatten(0, 1), x, process_group)
    return output.transpose(0, 1).reshape(x.shape[0], size * x.shape[1], *x.shape[2:])


@_gather_sequence.register_fake
def _(x: Tensor, group: str, size: int, axis: str, phase: str) -> Tensor:
    return x.new_empty((x.shape[0], size * x.shape[1], *x.shape[2:]))


@torch.library.custom_op("epbench::scatter_sequence", mutates_args=())
def _scatter_sequence(x: Tensor, group: str, size: int, axis: str, phase: str) -> Tensor:
    process_group = _group(group)
    chunks = x.unflatten(1, (size, -1)).transpose(0, 1).contiguous()
    output = torch.empty_like(chunks[0])
    with _label("reduce_scatter", "tp", axis, phase, process_group, chunks, output):
        compat.reduce_scatter(output, chunks.flatten(0, 1), process_group)
    return output


@_scatter_sequence.register_fake
def _(x: Tensor, group: str, size: int, axis: str, phase: str) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] // size, *x.shape[2:]))


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _scatter_sequence(grad, *ctx.how, "backward"), *[None] * 4


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gather_sequence(grad, *ctx.how, "backward"), *[None] * 4


_gather_sequence.register_autograd(_gather_backward, setup_context=_save_how)
_scatter_sequence.register_autograd(_scatter_backward, setup_context=_save_how)


def gather_sequence(x: Tensor, *, axis: Axis) -> Tensor:
    """[B, S / n, ...] -> [B, S, ...]; the gradient is summed over the ranks and scattered."""
    result: Tensor = _gather_sequence(x, axis.group, axis.size, axis.name, "forward")
    return result


def scatter_sequence(x: Tensor, *, axis: Axis) -> Tensor:
    """Sums [B, S, ...] over the ranks and keeps this rank's [B, S / n, ...]; the gradient is gathered."""
    result: Tensor = _scatter_sequence(x, axis.group, axis.size, axis.name, "forward")
    return result


def all_reduce_(x: Tensor, *, axis: Axis, purpose: str, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduces ``x`` over the ranks in place and returns it. Has no gradient."""
    process_group = _group(axis.group)
    with _label("all_reduce", purpose, axis.name, "forward", process_group, x, x):
        dist.all_reduce(x, op=op, group=process_group)
    return x


# ---------------------------------------------------------------- into buffers that the caller keeps; no gradient


def all_to_all_into(
    output: Tensor, x: Tensor, *, axis: Axis, purpose: str, splits: tuple[list[int], list[int]] | None = None
) -> None:
    """Exchanges rows of ``x`` into ``output``: equal chunks, or ``splits`` = (rows sent to, and from, each rank)."""
    process_group = _group(axis.group)
    sent, received = splits or (None, None)
    kept_bytes = None if sent is None else sent[axis.rank] * x[:1].nbytes
    with _label("all_to_all", purpose, axis.name, "forward", process_group, x, output, kept_bytes):
        dist.all_to_all_single(output, x, received, sent, group=process_group)


def all_gather_into(output: Tensor, x: Tensor, *, axis: Axis, purpose: str) -> None:
    """``output`` [n * rows, ...] becomes every rank's ``x`` [rows, ...] in order of rank."""
    process_group = _group(axis.group)
    with _label("all_gather", purpose, axis.name, "forward", process_group, x, output):
        compat.all_gather(output, x, process_group)


def reduce_scatter_into(output: Tensor, x: Tensor, *, axis: Axis, purpose: str) -> None:
    """``output`` [rows, ...] becomes this rank's chunk of the sum over the ranks of ``x`` [n * rows, ...]."""
    process_group = _group(axis.group)
    with _label("reduce_scatter", purpose, axis.name, "forward", process_group, x, output):
        compat.reduce_scatter(output, x, process_group)
