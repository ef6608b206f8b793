"""The dense SwiGLU layer: of blocks without experts, and, beside the experts, the one that every token visits."""

from torch import Tensor, nn
from torch.nn import functional as F

from epbench.model.layers import Linear, Move, identity

__all__ = ["DenseMLP"]


class DenseMLP(nn.Module):
    """SwiGLU of one width. ``enter`` and ``leave`` are replaced under tensor parallelism."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width)
        self.up_proj = Linear(hidden_size, width)
        self.down_proj = Linear(width, hidden_size)
        self.enter: Move = identity
        self.leave: Move = identity

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]; a partial sum over the ranks that split the width, unless ``leave`` sums it."""
        x = self.enter(x_BSD)
        return self.leave(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))
