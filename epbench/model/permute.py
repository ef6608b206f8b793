"""Moving token rows by a bijection, with a backward that is a gather: deterministic, and without atomic adds.

``index_select``'s own backward is an ``index_add``: atomics on CUDA, and slower than the GEMMs around it when
top-k is 8. Both moves here are permutations (of tokens repeated K times), so their inverse is known.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["expand", "inverse_of", "permute"]


def inverse_of(order_R: Tensor) -> Tensor:
    """The inverse permutation: ``inverse[order[i]] == i``."""
    inverse = torch.empty_like(order_R)
    return inverse.scatter_(0, order_R, torch.arange(order_R.shape[0], device=order_R.device))


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.copies = order_R.shape[0] // x_TD.shape[0]
        return x_TD.index_select(0, order_R // ctx.copies)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse).unflatten(0, (-1, ctx.copies)).sum(1), None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_R)
        return x_RD.index_select(0, order_R)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def expand(x_TD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """Rows [T, D] repeated R / T times each (copies adjacent), then permuted: row i is copy ``order[i]``."""
    result: Tensor = _Expand.apply(x_TD, order_R, inverse_R)  # type: ignore[no-untyped-call]
    return result


def permute(x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """``x[order]``."""
    result: Tensor = _Permute.apply(x_RD, order_R, inverse_R)  # type: ignore[no-untyped-call]
    return result
