"""Grouped-query attention of Qwen3: per-head RMSNorm on q and k before the rotary embedding, causal.

A row may hold several documents, one after the other (packing). Then positions start anew in each, and a token
attends to earlier tokens of its own document only. :class:`Sequences` carries both facts to every block.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from epbench.cells import ModelSpec
from epbench.model.layers import Linear, Move, RMSNorm, apply_rope, identity

__all__ = ["Attention", "Core", "Sequences", "attend", "causal_attention", "packed", "positions_in_documents"]


class Sequences(NamedTuple):
    """Whole sequences of a micro-batch: the rotary angle of every position, and where documents end.

    ``cos`` and ``sin`` are fp32, [S, d] for all rows or [B, S, d]. ``cu_seqlens`` is int32 [B, N + 1], per row 0
    and the ends of its documents, filled up with S; None says that each row is one document.
    """

    cos: Tensor
    sin: Tensor
    cu_seqlens: Tensor | None = None


Core = Callable[[Tensor, Tensor, Tensor, Sequences], Tensor]


def _document_of(cu_seqlens: Tensor, seq_len: int) -> Tensor:
    """[B, S] int64: the number, in its row, of the document that a position belongs to."""
    position = torch.arange(seq_len, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    ends = cu_seqlens[:, 1:].contiguous()
    return torch.searchsorted(ends, position.expand(ends.shape[0], -1).contiguous(), right=True)


def positions_in_documents(cu_seqlens: Tensor, seq_len: int) -> Tensor:
    """[B, S] int64: every position of a row, counted from the start of its document."""
    start = cu_seqlens.gather(1, _document_of(cu_seqlens, seq_len))
    return torch.arange(seq_len, device=cu_seqlens.device) - start


def packed(whole: Sequences, cu_seqlens: Tensor) -> Sequences:
    """Sequences that consist of documents: the angles of ``whole`` [S, d], started anew in every document."""
    position = positions_in_documents(cu_seqlens, whole.cos.shape[0])
    return Sequences(whole.cos[position], whole.sin[position], cu_seqlens)


def causal_attention(q_BSHd: Tensor, k_BSGd: Tensor, v_BSGd: Tensor, sequences: Sequences) -> Tensor:
    """Rotary embedding, then :func:`attend`."""
    cos, sin, cu_seqlens = sequences
    return attend(apply_rope(q_BSHd, cos, sin), apply_rope(k_BSGd, cos, sin), v_BSGd, cu_seqlens)


def attend(q_BSHd: Tensor, k_BSGd: Tensor, v_BSGd: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Causal softmax attention over whole sequences whose positions are in q and k; H query heads share G kv heads.

    Returns [B, S, H, d]. Packed rows go through the varlen flash kernel where it exists (CUDA, half precision),
    else through a block-causal mask.
    """
    if cu_seqlens is None:
        return _sdpa(q_BSHd, k_BSGd, v_BSGd, mask=None)
    if q_BSHd.is_cuda and q_BSHd.dtype in (torch.bfloat16, torch.float16):
        return _varlen(q_BSHd, k_BSGd, v_BSGd, cu_seqlens)
    return _sdpa(q_BSHd, k_BSGd, v_BSGd, mask=_block_causal(cu_seqlens, q_BSHd.shape[1]))


def _sdpa(q_BSHd: Tensor, k_BSGd: Tensor, v_BSGd: Tensor, *, mask: Tensor | None) -> Tensor:
    out_BHSd = F.scaled_dot_product_attention(
        q_BSHd.transpose(1, 2),
        k_BSGd.transpose(1, 2),
        v_BSGd.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_BSHd.shape[2] != k_BSGd.shape[2],
    )
    return out_BHSd.transpose(1, 2)


def _block_causal(cu_seqlens: Tensor, seq_len: int) -> Tensor:
    """[B, 1, S, S] bool: whether a query (dim 2) sees a key (dim 3)."""
    document = _document_of(cu_seqlens, seq_len)
    return (document.unsqueeze(2) == document.unsqueeze(1)).tril().unsqueeze(1)


def _varlen(q_BSHd: Tensor, k_BSGd: Tensor, v_BSGd: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Rows laid end to end, T = B x S; documents without tokens, which fill a row's list up, cost nothing."""
    num_rows, seq_len, heads, _ = q_BSHd.shape
    row_start = torch.arange(num_rows, dtype=cu_seqlens.dtype, device=cu_seqlens.device) * seq_len
    ends = (cu_seqlens + row_start.unsqueeze(1)).flatten()
    q, k, v = (x.flatten(0, 1) for x in (q_BSHd, k_BSGd, v_BSGd))
    grouped: dict[str, Any] = {"enable_gqa": True} if heads != k.shape[1] and _must_ask_for_gqa() else {}
    out_THd = varlen_attn(q, k, v, ends, ends, seq_len, seq_len, window_size=(-1, 0), **grouped)
    assert isinstance(out_THd, Tensor), "nothing but the output was asked for"
    out_BSHd: Tensor = out_THd.unflatten(0, (num_rows, seq_len))
    return out_BSHd


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _must_ask_for_gqa() -> bool:
    """torch 2.13 shares kv heads when it is told to; 2.11 has no such argument and hands any heads to the kernel."""
    return "enable_gqa" in signature(varlen_attn).parameters


class Attention(nn.Module):
    """Attention over [B, S, D]. Head counts are read from the local weights, so tensor parallelism is a shard.

    ``core`` is replaced under context parallelism, ``enter`` and ``leave`` under tensor parallelism.
    """

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        heads, kv_heads, self.head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
        self.q_proj = Linear(model.hidden_size, heads * self.head_dim)
        self.k_proj = Linear(model.hidden_size, kv_heads * self.head_dim)
        self.v_proj = Linear(model.hidden_size, kv_heads * self.head_dim)
        self.o_proj = Linear(heads * self.head_dim, model.hidden_size)
        self.q_norm = RMSNorm(self.head_dim, model.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, model.rms_norm_eps)
        self.core: Core = causal_attention
        self.enter: Move = identity
        self.leave: Move = identity

    def forward(self, x_BSD: Tensor, sequences: Sequences) -> Tensor:
        """[B, S, D] -> [B, S, D]; ``sequences`` are whole, also where S is this rank's chunk."""
        x = self.enter(x_BSD)
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        out_BSHd = self.core(self.q_norm(q), self.k_norm(k), v, sequences)
        return self.leave(self.o_proj(out_BSHd.flatten(2)))
