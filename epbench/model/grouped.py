"""Grouped matrix product over experts, as one op that eager and compiled code share.

``F.grouped_mm`` alone cannot be compiled in fp32 (its fake kernel wants bf16, torch 2.11 and 2.13) and refuses
an expanded gradient; this op has its own fake and its own backward. Rows must be exactly those that the
offsets cover: rows past the last offset would be uninitialised memory, forward and backward.

Weights may be wider than the rows (fp32 masters under bf16 compute). They are then cast inside the op, again in
backward, so that no narrow copy outlives the product.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["grouped_linear"]


@torch.library.custom_op("epbench::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return F.grouped_mm(x, weight.to(x.dtype).transpose(-2, -1), offs=offsets)


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


@torch.library.custom_op("epbench::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    # an empty expanded tensor counts as contiguous and keeps a stride of 0, which grouped_mm refuses
    grad = grad.contiguous() if grad.numel() else grad.new_empty(grad.shape)
    dx = F.grouped_mm(grad, weight.to(grad.dtype), offs=offsets)
    dw = F.grouped_mm(grad.transpose(0, 1), x, offs=offsets)
    return dx, dw.to(weight.dtype)


@_grouped_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    dx, dw = _grouped_linear_backward(grad, *ctx.saved_tensors)
    return dx, dw, None


_grouped_linear.register_autograd(_backward, setup_context=_save)


def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """Row r of expert e times ``weight[e]`` transposed: [R, I] -> [R, O].

    ``offsets`` [E] int32: end of each expert's rows, the last equal to R; an expert may have none.
    Products are in the dtype of ``x``; the weight's gradient has that of ``weight``.
    """
    result: Tensor = _grouped_linear(x_RI, weight_EOI, offsets_E)
    return result
