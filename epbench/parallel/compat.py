"""The few places where torch 2.11 (CUDA machines) and 2.13 (CPU set-up) have different names for one thing."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = ["all_gather", "reduce_scatter"]


def all_gather(output: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    """``output`` [n * rows, ...] becomes the concatenation of every rank's ``x`` [rows, ...] on dim 0."""
    module: Any = dist
    gather = getattr(module, "all_gather_single", None) or module.all_gather_into_tensor
    gather(output, x, group=group)


def reduce_scatter(output: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    """``output`` [rows, ...] becomes this rank's chunk of the sum over ranks of ``x`` [n * rows, ...]."""
    module: Any = dist
    scatter = getattr(module, "reduce_scatter_single", None) or module.reduce_scatter_tensor
    scatter(output, x, group=group)
