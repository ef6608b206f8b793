"""The same model on one rank, written as plainly as torch allows: what every layout is compared with.

Shares the decoder's attention, norms and initial weights with the stack, and nothing else: the router is written
a second time, experts are a loop over a dense mask (no sorting by expert, no grouped product, no dispatch), the
loss is ``F.cross_entropy`` over all logits, clipping and AdamW are torch's own, and there is no FSDP, no DTensor and
no compiler.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from epbench.cells import Cell, ModelSpec
from epbench.model.attention import Sequences, packed
from epbench.model.decoder import Block, Decoder
from epbench.model.init import init_weights
from epbench.model.mlp import DenseMLP
from epbench.model.moe import MoE
from epbench.model.router import Router
from epbench.parallel.routing import forced_ids
from epbench.stacks.protocol import Batch

__all__ = ["LoopMoE", "PlainRouter", "Reference", "ReferenceStep", "reference_step", "shared_reference_step"]


class PlainRouter(nn.Module):
    """Choice and scores from their definitions, by sorting; has the gate's weight and the forced choice of ``router``.

    ``bias`` [E] is its own, and so is the count that moves it.
    """

    def __init__(self, router: Router, spec: ModelSpec) -> None:
        super().__init__()
        self.router, self.spec = router, spec
        self.bias = torch.zeros(spec.num_experts, device=router.gate.weight.device)
        self.dictated: Tensor | None = None
        self.last_ids: Tensor | None = None

    def _scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = (x_TD @ self.router.gate.weight.T).float()
        if self.spec.scoring_func == "sigmoid":
            return 1 / (1 + torch.exp(-logits_TE))
        exponent_TE = torch.exp(logits_TE - logits_TE.amax(dim=1, keepdim=True))
        return exponent_TE / exponent_TE.sum(dim=1, keepdim=True)

    def _choice(self, scores_TE: Tensor) -> Tensor:
        """The first K of the experts in kept groups, by falling score plus bias."""
        forced = self.router.forced_ids if self.dictated is None else self.dictated
        if forced is not None:
            return forced
        biased_TGE = (scores_TE.detach() + self.bias).unflatten(1, (self.spec.n_group, -1))
        best_two_TG = biased_TGE.sort(dim=2, descending=True)[0][:, :, :2].sum(dim=2)
        last_kept_T1 = best_two_TG.sort(dim=1, descending=True)[0][:, self.spec.topk_group - 1, None]
        kept_TG1 = (best_two_TG >= last_kept_T1).unsqueeze(2)
        allowed_TE = torch.where(kept_TG1, biased_TGE, -torch.inf).flatten(1)
        return allowed_TE.argsort(dim=1, descending=True)[:, : self.spec.num_experts_per_tok]

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids and scores [T, K]."""
        scores_TE = self._scores(x_TD)
        self.last_ids = ids = self._choice(scores_TE)
        scores = scores_TE.gather(1, ids)
        total = scores.sum(dim=1, keepdim=True) if self.spec.norm_topk_prob else 1.0
        return ids, scores / total * self.spec.routed_scaling_factor

    def update_bias(self) -> None:
        """Up for experts that the last batch chose less often than the mean, down for the others (2408.15664)."""
        assert self.last_ids is not None, "the bias follows a forward"
        load = torch.bincount(self.last_ids.flatten(), minlength=self.spec.num_experts).double()
        self.bias += self.spec.router_bias_update_rate * torch.sign(load.mean() - load).float()


class LoopMoE(nn.Module):
    """A MoE layer as the definition says it: every expert on the tokens that chose it, one after the other."""

    def __init__(self, moe: MoE, spec: ModelSpec) -> None:
        super().__init__()
        self.router, self.before = PlainRouter(moe.router, spec), spec.score_before_experts
        self.experts, self.shared_experts = moe.experts, moe.shared_experts

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x_TD = x_BSD.flatten(0, 1)
        ids, scores = self.router(x_TD)
        out = torch.zeros_like(x_TD) if self.shared_experts is None else _swiglu_of(self.shared_experts, x_TD)
        for expert, (w1, w2, w3) in enumerate(zip(self.experts.w1, self.experts.w2, self.experts.w3, strict=True)):
            token, slot = (ids == expert).nonzero(as_tuple=True)
            x, score = x_TD[token], scores[token, slot].unsqueeze(1).to(out.dtype)
            y = _swiglu(x * score, w1, w2, w3) if self.before else _swiglu(x, w1, w2, w3) * score
            out = out.index_add(0, token, y)
        return out.view_as(x_BSD)


def _swiglu(x: Tensor, gate: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _swiglu_of(mlp: DenseMLP, x: Tensor) -> Tensor:
    return _swiglu(x, mlp.gate_proj.weight, mlp.down_proj.weight, mlp.up_proj.weight)


@dataclass(frozen=True)
class ReferenceStep:
    """What one rank computes: loss, norm before clipping, clipped gradients, loss after one optimizer step.

    ``expert_ids`` is the choice that it made, per MoE layer [B, S, K]: a batch may dictate it to others.
    """

    loss: float
    norm: float
    gradients: dict[str, Tensor]
    next_loss: float
    expert_ids: tuple[Tensor, ...]


def _with_loop_experts(model: Decoder) -> list[PlainRouter]:
    """Replaces the experts of every block; returns the routers, in order of the layers."""
    routers = []
    for block in model.layers:
        if isinstance(block, Block) and block.moe is not None:
            loop = LoopMoE(block.moe, model.spec)
            setattr(block, "forward", _block_forward(block, loop))  # noqa: B010  (a method may not be assigned to)
            routers.append(loop.router)
    return routers


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
    if cell.routing != "natural":
        whole = {"rows": range(cell.train.global_batch_size), "positions": range(cell.train.seq_len)}
        moes = (block.moe for block in model.layers if isinstance(block, Block))
        for layer, moe in enumerate(moe for moe in moes if moe is not None):
            moe.router.forced_ids = forced_ids(cell, layer=layer, **whole, device=device).flatten(0, 1)
    return model


class Reference:
    """``cell``'s model and training settings on one rank, in fp32; a batch is one forward, however large."""

    def __init__(self, cell: Cell, device: torch.device) -> None:
        self._train, self.model = cell.train, _build(cell, device)
        self.routers = _with_loop_experts(self.model)
        self._params = list(self.model.parameters())
        self._optimizer = torch.optim.AdamW(
            self._params, lr=cell.train.lr, betas=(0.9, 0.95), weight_decay=0.1, foreach=False
        )
        self._whole = self.model.rope(cell.train.seq_len, device)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the valid tokens."""
        for router, ids in zip(self.routers, batch.expert_ids or (), strict=batch.expert_ids is not None):
            router.dictated = ids.flatten(0, 1)
        sequences = self._whole if batch.cu_seqlens is None else packed(self._whole, batch.cu_seqlens)
        scale = (batch.labels != -100).sum().float().reciprocal()
        loss: Tensor = self.model(batch.tokens, batch.labels, scale, sequences)
        return loss

    def expert_ids(self, shape: torch.Size) -> tuple[Tensor, ...]:
        """The choice of the last forward over tokens of ``shape`` [B, S], per MoE layer [B, S, K]."""
        return tuple(router.last_ids.view(*shape, -1) for router in self.routers if router.last_ids is not None)

    def step(self, batch: Batch) -> tuple[float, float]:
        """One optimizer step, then that of the biases; loss and norm before clipping. Gradients are kept clipped."""
        self._optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        limit = self._train.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self._params, limit, foreach=False)
        self._optimizer.step()
        for router in self.routers:
            router.update_bias()
        return loss.item(), norm.item()


def reference_step(cell: Cell, batch: Batch, device: torch.device) -> ReferenceStep:
    """One optimizer step, and the loss of the same batch after it."""
    reference = Reference(cell, device)
    loss, norm = reference.step(batch)
    ids = reference.expert_ids(batch.tokens.shape)
    with torch.no_grad():
        next_loss = reference.loss(batch).item()
    named = reference.model.named_parameters()
    gradients = {name: param.grad for name, param in named if param.grad is not None}
    return ReferenceStep(loss, norm, gradients, next_loss, ids)


def shared_reference_step(cell: Cell, batch: Batch, device: torch.device) -> ReferenceStep:
    """The same on every rank of the world, computed by rank 0 alone; collective.

    Ranks that share cores, as on a CPU, would otherwise all compute it at once, each slowing the others.
    """
    if dist.get_world_size() == 1:
        return reference_step(cell, batch, device)
    mine = reference_step(cell, batch, device) if dist.get_rank() == 0 else None
    told: list[ReferenceStep | None] = [_without_tensors(mine) if mine else None]
    dist.broadcast_object_list(told, src=0, device=device)
    assert told[0] is not None, "rank 0 tells what it computed"
    gradients = told[0].gradients.items()
    whole = [one if mine is None else mine.gradients[name] for name, one in gradients]
    ids = told[0].expert_ids if mine is None else mine.expert_ids
    return replace(
        told[0],
        gradients=dict(zip(told[0].gradients, _broadcast(whole, device), strict=True)),
        expert_ids=tuple(_broadcast(ids, device)),
    )


def _without_tensors(step: ReferenceStep) -> ReferenceStep:
    """Numbers, names and shapes: tensors are on the meta device."""
    gradients = {name: gradient.to("meta") for name, gradient in step.gradients.items()}
    return replace(step, gradients=gradients, expert_ids=tuple(ids.to("meta") for ids in step.expert_ids))


def _broadcast(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Rank 0's tensors, of one dtype, in one message; elsewhere they are on the meta device and say the shapes."""
    if not tensors:
        return []
    sizes = [tensor.numel() for tensor in tensors]
    flat = torch.empty(sum(sizes), dtype=tensors[0].dtype, device=device)
    if dist.get_rank() == 0:
        torch.cat([tensor.flatten() for tensor in tensors], out=flat)
    dist.broadcast(flat, src=0)
    return [part.view(tensor.shape) for part, tensor in zip(flat.split(sizes), tensors, strict=True)]
