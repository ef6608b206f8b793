"""Ulysses context parallelism: sequence-sharded outside attention, head-sharded inside it.

Each rank holds a contiguous chunk of the sequence; one all-to-all turns (all heads, own chunk) into (own
heads, whole sequence), another turns it back. Exact, unlike ring variants with their own kernels. (Jacobs et
al., DeepSpeed Ulysses, 2023.)
"""

import torch
from torch import Tensor

from epbench.model.attention import Core, Rope, causal_attention
from epbench.model.decoder import Block, Decoder
from epbench.parallel.communication import Axis, all_to_all_even

__all__ = ["Ulysses", "apply_context_parallel"]


class Ulysses:
    """Attention core over a context-parallel group around ``inner``, which sees whole sequences."""

    def __init__(self, axis: Axis, inner: Core) -> None:
        self.axis, self.inner = axis, inner

    def __call__(self, q_BSHd: Tensor, k_BSGd: Tensor, v_BSGd: Tensor, rope: Rope) -> Tensor:
        """S is this rank's chunk; returns [B, S, H, d]. kv heads fewer than ranks are repeated first.

        The repeat's backward sums the replicas, so the kv gradient is whole.
        """
        cp = self.axis.size
        repeats = cp // k_BSGd.shape[2] if k_BSGd.shape[2] % cp else 1
        heads = [q_BSHd, *(x.repeat_interleave(repeats, dim=2) for x in (k_BSGd, v_BSGd))]
        by_rank = [x.unflatten(2, (cp, -1)) for x in heads]  # [B, S, cp, own heads, d]
        q, k, v = self._swap_in(torch.cat(by_rank, dim=3)).split([x.shape[3] for x in by_rank], dim=2)
        return self._swap_out(self.inner(q, k, v, rope))

    def _swap_in(self, x: Tensor) -> Tensor:
        x = all_to_all_even(x.permute(2, 0, 1, 3, 4), axis=self.axis, purpose="ulysses_in")
        return x.transpose(0, 1).flatten(1, 2)  # [B, whole S, own heads, d]

    def _swap_out(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.axis.size, -1)).transpose(0, 1)
        x = all_to_all_even(x, axis=self.axis, purpose="ulysses_out")
        return x.permute(1, 2, 0, 3, 4).flatten(2, 3)  # [B, own S, all heads, d]


def apply_context_parallel(model: Decoder, axis: Axis) -> None:
    """Wraps the attention core, which all blocks share."""
    core = Ulysses(axis, causal_attention)
    for block in model.layers:
        assert isinstance(block, Block)
        block.attention.core = core
