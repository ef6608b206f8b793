"""Ulysses context parallelism: sequence-sharded outside attention, head-sharded inside it.

Each rank holds a contiguous chunk of the sequence; one all-to-all turns (all heads, own chunk) into (own
heads, whole sequence), another turns it back. Exact, unlike ring variants with their own kernels, and blind to
what attention does in between: documents packed into a row need nothing more. (Jacobs et al., DeepSpeed
Ulysses, arXiv 2309.14509.)

The functions take their group as an explicit ``axis``, or use the one that :func:`context_parallel` binds, so
that the attention of a model that knows nothing of us can call them. An op holds its group from the moment it
runs forward, so backward needs no binding; activation checkpointing runs forward again and does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from epbench.model.attention import Core, Sequences, causal_attention
from epbench.model.decoder import Block, Decoder
from epbench.parallel.communication import Axis, all_to_all_even

__all__ = [
    "Ulysses",
    "apply_context_parallel",
    "context_parallel",
    "gather_sequence_outputs",
    "heads_to_sequence",
    "sequence_to_heads",
    "slice_sequence",
]


class _Binding:
    """The bound axis. One for the process: a ContextVar would fail twice, see :func:`context_parallel`."""

    axis: Axis | None = None


_binding = _Binding()


@contextmanager
def context_parallel(axis: Axis) -> Iterator[None]:
    """Binds ``axis`` for all calls that name none, in every thread of the process; may be nested.

    Backward belongs inside too if activations are checkpointed: what is run again there asks for the axis
    again, on CUDA in autograd's own threads, which would not see a ContextVar of the caller. torch.compile
    cannot trace a ContextVar (2.11 to 2.13); an attribute it can, with a guard: another axis is another graph.
    """
    before, _binding.axis = _binding.axis, axis
    try:
        yield
    finally:
        _binding.axis = before


def _resolved(axis: Axis | None) -> Axis:
    found = axis or _binding.axis
    if found is None:
        raise ValueError("no context-parallel axis: give axis=..., or call this inside `with context_parallel(axis):`")
    return found


def slice_sequence(x: Tensor, *, dim: int = 1, axis: Axis | None = None) -> Tensor:
    """This rank's contiguous chunk of ``x`` along ``dim``, a view; the gradient of the rest is zero.

    ValueError if the ranks cannot have equal chunks.
    """
    axis = _resolved(axis)
    length = x.shape[dim]
    if length % axis.size:
        raise ValueError(f"a sequence of {length} cannot be cut evenly for {axis.size} ranks; pad it to a multiple")
    chunk = length // axis.size
    return x.narrow(dim, axis.rank * chunk, chunk)


def gather_sequence_outputs(x: Tensor, *, dim: int = 1, axis: Axis | None = None) -> Tensor:
    """All ranks' chunks ``x`` [..., S / n, ...] put together along ``dim``: [..., S, ...] on every rank.

    The gradient of a chunk is summed over what all ranks do with it, so it is that of the sum of their losses.
    Where every rank goes on to compute one and the same loss, divide that by ``axis.size``.
    """
    axis = _resolved(axis)
    copies = x.unsqueeze(0).expand(axis.size, *x.shape)
    chunks = all_to_all_even(copies, axis=axis, purpose="cp_gather")
    return torch.cat(chunks.unbind(0), dim=dim)


def _repeated(kv_BSGd: Tensor, ranks: int) -> Tensor:
    """kv heads, each repeated until every rank has one; the backward of the repetition sums the replicas."""
    heads = kv_BSGd.shape[2]
    if heads % ranks == 0:
        return kv_BSGd
    if ranks % heads:
        raise ValueError(f"{heads} kv heads cannot be shared by {ranks} ranks: neither number divides the other")
    return kv_BSGd.repeat_interleave(ranks // heads, dim=2)


def sequence_to_heads(q_BSHd: Tensor, *kv_BSGd: Tensor, axis: Axis | None = None) -> tuple[Tensor, ...]:
    """Own chunk of all heads to the whole sequence of own heads, in one all-to-all for all tensors.

    Takes [B, S / n, H, d] and any number of [B, S / n, G, d] of the same dtype, returns [B, S, H / n, d] and as
    many [B, S, max(G, n) / n, d]: kv heads fewer than ranks are repeated first. The heads of a rank are
    contiguous, so query heads keep the kv heads that they share. ValueError if heads cannot be shared out.
    """
    axis = _resolved(axis)
    if q_BSHd.shape[2] % axis.size:
        raise ValueError(f"{q_BSHd.shape[2]} query heads cannot be cut evenly for {axis.size} ranks")
    heads = [q_BSHd, *(_repeated(x, axis.size) for x in kv_BSGd)]
    by_rank = [x.unflatten(2, (axis.size, -1)) for x in heads]  # [B, S / n, n, own heads, d]
    joined = torch.cat(by_rank, dim=3).permute(2, 0, 1, 3, 4)
    whole = all_to_all_even(joined, axis=axis, purpose="ulysses_in").transpose(0, 1).flatten(1, 2)
    own: tuple[Tensor, ...] = whole.split([x.shape[3] for x in by_rank], dim=2)
    return own


def heads_to_sequence(x_BSHd: Tensor, *, axis: Axis | None = None) -> Tensor:
    """The way back: [B, S, H / n, d], the whole sequence of own heads, to [B, S / n, H, d]."""
    axis = _resolved(axis)
    by_rank = x_BSHd.unflatten(1, (axis.size, -1)).transpose(0, 1)
    chunks = all_to_all_even(by_rank, axis=axis, purpose="ulysses_out")
    return chunks.permute(1, 2, 0, 3, 4).flatten(2, 3)


class Ulysses:
    """Attention core over a context-parallel group around ``inner``, which sees whole sequences."""

    def __init__(self, axis: Axis, inner: Core) -> None:
        self.axis, self.inner = axis, inner

    def __call__(self, q_BSHd: Tensor, k_BSGd: Tensor, v_BSGd: Tensor, sequences: Sequences) -> Tensor:
        """S is this rank's chunk, ``sequences`` are whole; returns [B, S, H, d]."""
        q, k, v = sequence_to_heads(q_BSHd, k_BSGd, v_BSGd, axis=self.axis)
        return heads_to_sequence(self.inner(q, k, v, sequences), axis=self.axis)


def apply_context_parallel(model: Decoder, axis: Axis) -> None:
    """Wraps the attention core, which all blocks share."""
    core = Ulysses(axis, causal_attention)
    for block in model.layers:
        assert isinstance(block, Block)
        block.attention.core = core
