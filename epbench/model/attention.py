"""Grouped-query attention of Qwen3: per-head RMSNorm on q and k before the rotary embedding, causal."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from epbench.cells import ModelSpec
from epbench.model.layers import Linear, Move, RMSNorm, apply_rope, identity

__all__ = ["Attention", "Core", "Rope", "causal_attention"]

Rope = tuple[Tensor, Tensor]
Core = Callable[[Tensor, Tensor, Tensor, Rope], Tensor]


def causal_attention(q_BSHd: Tensor, k_BSGd: Tensor, v_BSGd: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding and causal softmax attention over a whole sequence; H query heads share G kv heads.

    Returns [B, S, H, d].
    """
    q, k = apply_rope(q_BSHd, *rope), apply_rope(k_BSGd, *rope)
    out_BHSd = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v_BSGd.transpose(1, 2),
        is_causal=True,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out_BHSd.transpose(1, 2)


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

    def forward(self, x_BSD: Tensor, rope: Rope) -> Tensor:
        """[B, S, D] -> [B, S, D]; ``rope`` covers the whole sequence."""
        x = self.enter(x_BSD)
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        out_BSHd = self.core(self.q_norm(q), self.k_norm(k), v, rope)
        return self.leave(self.o_proj(out_BSHd.flatten(2)))
