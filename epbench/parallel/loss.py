"""Cross-entropy fused with the lm_head product: chunked over tokens, and parallel over the vocabulary under tp.

fp32 logits of 16k tokens are 10 GB at Qwen3's vocabulary, so they exist for one chunk at a time. The loss is
the last thing that a step computes, so its gradient with respect to the inputs is made right there in forward
(the idea of Hsu et al., Liger Kernel, arXiv 2410.10989): no logits are kept and none are computed twice.
Over a vocabulary split by tp only three numbers per token are reduced.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.parallel.communication import Axis, all_reduce_

__all__ = ["FusedLoss"]


def _reduce(x: Tensor, axis: Axis | None, op: Any = dist.ReduceOp.SUM) -> Tensor:
    return x if axis is None else all_reduce_(x, axis=axis, purpose="tp", op=op)


def _chunk(logits_CV: Tensor, labels_C: Tensor, scale: Tensor, axis: Axis | None) -> tuple[Tensor, Tensor]:
    """Scaled loss sum of a chunk, and the gradient of its logits written over ``logits``."""
    first = 0 if axis is None else axis.rank * logits_CV.shape[1]
    target = labels_C - first
    elsewhere = (target < 0) | (target >= logits_CV.shape[1])
    target = target.masked_fill(elsewhere, 0).unsqueeze(1)
    counted = labels_C != -100

    highest = _reduce(logits_CV.amax(dim=1), axis, dist.ReduceOp.MAX)
    logits_CV -= highest.unsqueeze(1)
    target_logit = logits_CV.gather(1, target).squeeze(1).masked_fill(elsewhere, 0)
    exponent = logits_CV.exp_()
    total, target_logit = _reduce(torch.stack([exponent.sum(dim=1), target_logit]), axis)
    loss = ((total.log() - target_logit) * counted).sum() * scale

    weight = (counted * scale).unsqueeze(1)
    gradient = exponent.mul_(weight / total.unsqueeze(1))
    gradient.scatter_add_(1, target, -(weight * ~elsewhere.unsqueeze(1)))
    return loss, gradient


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, scale: Tensor, axis: Axis | None, chunk: int
    ) -> Tensor:
        loss = torch.zeros((), device=x_TD.device)
        dx, dw = torch.empty_like(x_TD), torch.zeros_like(weight_VD, dtype=torch.float32)
        for x, labels, dx_chunk in zip(x_TD.split(chunk), labels_T.split(chunk), dx.split(chunk), strict=True):
            chunk_loss, gradient = _chunk((x @ weight_VD.t()).float(), labels, scale, axis)
            loss += chunk_loss
            gradient = gradient.to(x.dtype)
            torch.mm(gradient, weight_VD, out=dx_chunk)
            dw += gradient.t() @ x
        ctx.save_for_backward(dx, dw)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        dx, dw = ctx.saved_tensors
        (grad,) = grads
        return dx.mul_(grad), dw.mul_(grad).to(ctx.weight_dtype), None, None, None, None


class FusedLoss:
    """Callable as ``Head.loss``; ``axis`` is tp when the vocabulary is split, else None.

    Under tp every rank sees the same tokens and returns the same loss; the gradient of ``x`` is partial over tp.
    """

    def __init__(self, axis: Axis | None = None, chunk: int = 2048) -> None:
        self.axis, self.chunk = axis, chunk

    def __call__(self, x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, scale: Tensor) -> Tensor:
        """``scale`` times the summed cross-entropy of tokens whose label is not -100: fp32 scalar."""
        loss: Tensor = _FusedLoss.apply(x_TD, weight_VD, labels_T, scale, self.axis, self.chunk)  # type: ignore[no-untyped-call]
        return loss
