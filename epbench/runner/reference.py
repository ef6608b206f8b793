"""The same model on one rank, written as plainly as torch allows: what every layout is compared with.

Shares the decoder's modules and initial weights with the stack, and nothing else: experts are a loop over a
dense mask (no sorting, no grouped product, no dispatch), the loss is ``F.cross_entropy`` over all logits,
clipping and AdamW are torch's own, and there is no FSDP, no DTensor and no compiler.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epbench.cells import Cell, ModelSpec
from epbench.model.attention import Sequences, packed
from epbench.model.decoder import Block, Decoder
from epbench.model.init import init_weights
from epbench.model.moe import MoE
from epbench.parallel.routing import FORCED
from epbench.stacks.protocol import Batch

__all__ = ["LoopMoE", "ReferenceStep", "reference_step"]


class LoopMoE(nn.Module):
    """A MoE layer as the definition says it: every expert on the tokens that chose it, one after the other."""

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.router, self.experts = moe.router, moe.experts

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x_TD = x_BSD.flatten(0, 1)
        ids, scores = self.router(x_TD)
        out = torch.zeros_like(x_TD)
        for expert, (w1, w2, w3) in enumerate(zip(self.experts.w1, self.experts.w2, self.experts.w3, strict=True)):
            token, slot = (ids == expert).nonzero(as_tuple=True)
            hidden = F.silu(x_TD[token] @ w1.T) * (x_TD[token] @ w3.T)
            out = out.index_add(0, token, (hidden @ w2.T) * scores[token, slot].unsqueeze(1).to(out.dtype))
        return out.view_as(x_BSD)


@dataclass(frozen=True)
class ReferenceStep:
    """What one rank computes: loss, norm before clipping, clipped gradients, loss after one optimizer step."""

    loss: float
    norm: float
    gradients: dict[str, Tensor]
    next_loss: float


def _with_loop_experts(model: Decoder) -> None:
    for block in model.layers:
        if isinstance(block, Block) and block.moe is not None:
            loop = LoopMoE(block.moe)
            setattr(block, "forward", _block_forward(block, loop))  # noqa: B010  (a method may not be assigned to)


def _block_forward(block: Block, loop: LoopMoE) -> Callable[[Tensor, Sequences], Tensor]:
    def forward(x_BSD: Tensor, sequences: Sequences) -> Tensor:
        h = block.attend(x_BSD, sequences)
        out: Tensor = loop(block.mlp_norm(h))
        return h + out

    return forward


def _build(cell: Cell, device: torch.device) -> Decoder:
    spec: ModelSpec = cell.model
    with torch.device(device):
        model = Decoder(spec)
    init_weights(model, seed=cell.train.seed, std=spec.initializer_range, expert_scale=spec.expert_initializer_scale)
    if cell.routing in FORCED:
        positions = torch.arange(cell.train.seq_len, device=device).repeat(cell.train.global_batch_size)
        for block in model.layers:
            if isinstance(block, Block) and block.moe is not None:
                forced = FORCED[cell.routing](positions, spec.num_experts, spec.num_experts_per_tok)
                block.moe.router.forced_ids = forced
    _with_loop_experts(model)
    return model


def reference_step(cell: Cell, batch: Batch, device: torch.device) -> ReferenceStep:
    """One optimizer step of ``cell``'s model and training settings on one rank, in fp32, on the whole batch."""
    model, train = _build(cell, device), cell.train
    sequences = model.rope(train.seq_len, device)
    if batch.cu_seqlens is not None:
        sequences = packed(sequences, batch.cu_seqlens)
    scale = (batch.labels != -100).sum().float().reciprocal()
    params = list(model.parameters())
    loss = model(batch.tokens, batch.labels, scale, sequences)
    loss.backward()
    limit = train.max_grad_norm or float("inf")
    norm = nn.utils.clip_grad_norm_(params, limit, foreach=False)
    torch.optim.AdamW(params, lr=train.lr, betas=(0.9, 0.95), weight_decay=0.1, foreach=False).step()
    with torch.no_grad():
        next_loss = model(batch.tokens, batch.labels, scale, sequences)
    gradients = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    return ReferenceStep(loss.item(), norm.item(), gradients, next_loss.item())
