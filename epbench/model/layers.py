"""The small parts of the decoder: linear, norm, embedding, rotary position embedding.

The model knows nothing of meshes but two narrow seams: a parameter may be a DTensor, of which :func:`local`
takes this rank's part, and a sub-layer may be entered and left through functions that the parallel layer sets
(``enter`` and ``leave``, identity on one rank).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from torch.nn import functional as F

__all__ = ["Embedding", "Linear", "Lookup", "Move", "RMSNorm", "apply_rope", "identity", "local", "rope_tables"]


def local(param: Tensor) -> Tensor:
    """This rank's part of a parameter, as a plain tensor that autograd follows.

    On a mesh axis that replicates the parameter, ranks work on different tokens or heads, so what each
    computes is one term of the gradient's sum: it is handed back as ``Partial`` and reduced by DTensor.
    Declaring it whole instead is trap 4.2 of the router gate (wrong by a factor of 0.5-0.7).
    """
    if not isinstance(param, DTensor):
        return param
    gradient = [Partial() if placement.is_replicate() else placement for placement in param.placements]
    return param.to_local(grad_placements=gradient)


def identity(x: Tensor) -> Tensor:
    """How a sub-layer is entered and left when nothing is to be communicated."""
    return x


class Linear(nn.Module):
    """Projection without bias; ``weight`` [out, in]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; on a tensor-parallel axis ``in`` or ``out`` is this rank's part."""
        return F.linear(x, local(self.weight))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim; ``weight`` [size]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x``."""
        weight = local(self.weight)
        return F.rms_norm(x, weight.shape, weight, self.eps)


Move = Callable[[Tensor], Tensor]
Lookup = Callable[[Tensor, Tensor], Tensor]


class Embedding(nn.Module):
    """Token embedding; ``weight`` [vocab, D]. ``lookup(ids, weight)`` is replaced under tensor parallelism."""

    def __init__(self, vocab_size: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, size))
        self.lookup: Lookup = F.embedding

    def forward(self, ids_BS: Tensor) -> Tensor:
        """[B, S] int64 -> [B, S, D]."""
        return self.lookup(ids_BS, local(self.weight))


def rope_tables(seq_len: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [seq_len, head_dim], fp32, of rotary embedding in the half-split form (as published for Qwen3)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64, device=device), theta**-exponent)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().float(), angle.sin().float()


def apply_rope(x_BSHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each head by its position's angle, of [S, d] or [B, S, d]; same shape and dtype as ``x``."""
    first, second = x_BSHd.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return (x_BSHd * cos.unsqueeze(-2) + rotated * sin.unsqueeze(-2)).to(x_BSHd.dtype)
