"""Mixture of experts as published for Qwen3: softmax over all experts in fp32, top-k, scores on expert outputs.

The layer is three pieces, because whoever holds the experts may be another rank, and because FSDP gathers the
experts' weights between them: :meth:`MoE.route` (router, dispatch), :class:`Experts`, :meth:`MoE.merge`
(combine, weighted sum). Shapes: T tokens, K experts per token, E experts, D model width, F expert width, R
routed rows.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epbench.cells import ModelSpec
from epbench.model.grouped import grouped_linear
from epbench.model.layers import Linear, Move, identity, local
from epbench.model.permute import expand, inverse_of, permute

__all__ = ["Choice", "Dispatcher", "Experts", "LocalDispatcher", "MoE", "Routed", "Router", "count", "sort_by_expert"]


class Choice(NamedTuple):
    """What a routing decided: all that must not change when activation checkpointing runs it again.

    ``ids`` [T, K] int64; ``counts`` is what the dispatcher learned of other ranks' choices, empty without any.
    """

    ids: Tensor
    counts: tuple[Tensor, ...] = ()


class Routed(NamedTuple):
    """Rows on the rank of their expert, and what it takes to send them home. Nothing is kept on a module.

    ``rows`` [R, D] sorted by local expert; ``offsets`` [local experts] int32, each expert's end; ``scores``
    [T, K] of this rank's own tokens; ``order`` and ``inverse`` [T*K] sort own copies by expert; ``choice`` makes
    the same routing again; ``state`` is the dispatcher's.
    """

    rows: Tensor
    offsets: Tensor
    scores: Tensor
    order: Tensor
    inverse: Tensor
    choice: Choice
    state: tuple[Tensor, ...] = ()


class Dispatcher(Protocol):
    """Sends token copies to the ranks of their experts and brings the outputs back."""

    def dispatch(self, x_TD: Tensor, choice: Choice, scores_TK: Tensor, num_experts: int) -> Routed:
        """Rows for this rank's experts; ``choice.counts`` are those of the first time, or empty."""
        ...

    def combine(self, y_RD: Tensor, routed: Routed) -> Tensor:
        """Outputs [T*K, D] of this rank's own token copies, in order of ``routed.order``."""
        ...


def count(ids: Tensor, num_experts: int) -> Tensor:
    """How often each expert occurs: [num_experts] int64, without the host sync of ``bincount``."""
    flat = ids.flatten()
    return torch.zeros(num_experts, dtype=torch.int64, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))


def sort_by_expert(ids: Tensor) -> tuple[Tensor, Tensor]:
    """A stable order of the flattened ``ids`` by expert, and its inverse."""
    order = ids.flatten().argsort(stable=True)
    return order, inverse_of(order)


class LocalDispatcher:
    """All experts are here."""

    def dispatch(self, x_TD: Tensor, choice: Choice, scores_TK: Tensor, num_experts: int) -> Routed:
        """Sorts the copies by expert."""
        order, inverse = sort_by_expert(choice.ids)
        offsets = count(choice.ids, num_experts).cumsum(0).to(torch.int32)
        return Routed(expand(x_TD, order, inverse), offsets, scores_TK, order, inverse, choice)

    def combine(self, y_RD: Tensor, routed: Routed) -> Tensor:
        """Rows are already this rank's own, in order."""
        assert y_RD.shape[0] == routed.order.shape[0], "every copy has a row"
        return y_RD


class Router(nn.Module):
    """Chooses K experts per token. ``forced_ids`` [T, K], if set, replaces the choice but not the scores.

    ``last_ids`` [T, K] keeps the last choice for the record of realised load; allocated by whoever wants it.
    """

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.top_k, self.normalise = model.num_experts_per_tok, model.norm_topk_prob
        self.gate = Linear(model.hidden_size, model.num_experts)
        self.forced_ids: Tensor | None = None
        self.last_ids: Tensor | None = None

    def forward(self, x_TD: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Expert ids [T, K] int64 and scores [T, K] fp32, from probabilities over all experts in fp32.

        ``ids``, if given, are those of the first time: only the scores are computed again.
        """
        probabilities = self.gate(x_TD).float().softmax(dim=-1)
        if ids is None:
            ids = self.forced_ids if self.forced_ids is not None else probabilities.detach().topk(self.top_k)[1]
        scores = probabilities.gather(1, ids)
        if self.normalise:
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return ids, scores

    def record(self, ids_TK: Tensor) -> None:
        """Keeps the choice in ``last_ids``; called outside of compiled and of repeated code."""
        if self.last_ids is not None:
            self.last_ids.copy_(ids_TK)


class Experts(nn.Module):
    """SwiGLU experts; ``w1`` (gate) and ``w3`` (up) [E, F, D], ``w2`` (down) [E, D, F]."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        up = (model.num_experts, model.moe_intermediate_size, model.hidden_size)
        self.w1 = nn.Parameter(torch.empty(up))
        self.w3 = nn.Parameter(torch.empty(up))
        self.w2 = nn.Parameter(torch.empty(up[0], up[2], up[1]))

    def forward(self, rows_RD: Tensor, offsets_E: Tensor) -> Tensor:
        """[R, D] -> [R, D]; a partial sum over the ranks that split F, if any do."""
        w1, w2, w3 = local(self.w1), local(self.w2), local(self.w3)
        hidden = F.silu(grouped_linear(rows_RD, w1, offsets_E)) * grouped_linear(rows_RD, w3, offsets_E)
        return grouped_linear(hidden, w2, offsets_E)


class MoE(nn.Module):
    """Router, dispatch, experts, combine. ``dispatcher``, ``enter`` and ``leave`` are the parallel layer's."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.num_experts = model.num_experts
        self.router = Router(model)
        self.experts = Experts(model)
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.enter: Move = identity
        self.leave: Move = identity

    def route(self, x_BSD: Tensor, choice: Choice | None = None) -> Routed:
        """From tokens to rows on the ranks that hold their experts; ``choice`` repeats an earlier routing."""
        x_TD = self.enter(x_BSD).flatten(0, 1)
        ids, scores = self.router(x_TD, None if choice is None else choice.ids)
        return self.dispatcher.dispatch(x_TD, Choice(ids) if choice is None else choice, scores, self.num_experts)

    def merge(self, y_RD: Tensor, routed: Routed, batch: int) -> Tensor:
        """From expert outputs back to tokens [batch, S, D]: the score-weighted sum of each token's copies."""
        home = self.dispatcher.combine(y_RD, routed)
        y_TKD = permute(home, routed.inverse, routed.order).unflatten(0, routed.scores.shape)
        out_TD = torch.bmm(routed.scores.to(y_TKD.dtype).unsqueeze(1), y_TKD).squeeze(1)
        return self.leave(out_TD.unflatten(0, (batch, -1)))

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        routed = self.route(x_BSD)
        return self.merge(self.experts(routed.rows, routed.offsets), routed, x_BSD.shape[0])
