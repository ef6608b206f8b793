"""Moving token rows by a bijection, with a backward that is a gather: deterministic, and without atomic adds.

``index_select``'s own backward is an ``index_add``: atomics on CUDA, and slower than the GEMMs around it when
top-k is 8. Both moves here are permutations (of tokens repeated K times), so their inverse is known. They are
custom ops and not autograd Functions because AOTAutograd caches a graph with the former only.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["expand", "inverse_of", "permute", "stable_order"]


def stable_order(keys_R: Tensor, num_keys: int) -> Tensor:
    """The stable order of keys in [0, num_keys): two passes of a radix sort over 16 bits instead of eight over 64."""
    return keys_R.to(torch.int16 if num_keys <= 2**15 else torch.int32).argsort(stable=True)


def inverse_of(order_R: Tensor) -> Tensor:
    """The inverse permutation: ``inverse[order[i]] == i``."""
    inverse = torch.empty_like(order_R)
    return inverse.scatter_(0, order_R, torch.arange(order_R.shape[0], device=order_R.device))


@torch.library.custom_op("epbench::expand", mutates_args=())
def _expand(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.index_select(0, order // (order.shape[0] // x.shape[0]))


@_expand.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty((order.shape[0], x.shape[1]))


@torch.library.custom_op("epbench::permute", mutates_args=())
def _permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.index_select(0, order)


@_permute.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save_inverse(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, _order, inverse = inputs
    ctx.save_for_backward(inverse)
    ctx.tokens = x.shape[0]


def _expand_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (inverse,) = ctx.saved_tensors
    return grad.index_select(0, inverse).view(ctx.tokens, -1, grad.shape[1]).sum(1), None, None


def _permute_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (inverse,) = ctx.saved_tensors
    return grad.index_select(0, inverse), None, None


_expand.register_autograd(_expand_backward, setup_context=_save_inverse)
_permute.register_autograd(_permute_backward, setup_context=_save_inverse)


def expand(x_TD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """Rows [T, D] repeated R / T times each (copies adjacent), then permuted: row i is copy ``order[i]``."""
    result: Tensor = _expand(x_TD, order_R, inverse_R)
    return result


def permute(x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """``x[order]``."""
    result: Tensor = _permute(x_RD, order_R, inverse_R)
    return result
