"""Mixture of experts: a router's choice, sent to the experts and back, and the experts that every token visits.

The layer is three pieces, because whoever holds the experts may be another rank, and because FSDP gathers the
experts' weights between them: :meth:`MoE.route` (router, dispatch, shared experts), :class:`Experts`,
:meth:`MoE.merge` (combine, weighted sum). Scores multiply the experts' outputs, as published for Qwen3 and
DeepSeek-V3, or their inputs (``score_before_experts``), which a SwiGLU does not turn into the same. Shapes: T
tokens, K experts per token, E experts, D model width, F expert width, R routed rows.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epbench.cells import ModelSpec
from epbench.model.grouped import grouped_linear
from epbench.model.layers import Move, identity, local
from epbench.model.mlp import DenseMLP
from epbench.model.permute import expand, inverse_of, permute, stable_order
from epbench.model.router import Router

__all__ = [
    "Choice",
    "Dispatcher",
    "Experts",
    "LocalDispatcher",
    "MoE",
    "Routed",
    "count",
    "grouped_experts",
    "loop_experts",
    "sort_by_expert",
]


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
    the same routing again; ``state`` is the dispatcher's; ``shared`` [B, S, D] is what the shared experts add.
    """

    rows: Tensor
    offsets: Tensor
    scores: Tensor
    order: Tensor
    inverse: Tensor
    choice: Choice
    state: tuple[Tensor, ...] = ()
    shared: Tensor | None = None


class Dispatcher(Protocol):
    """Sends token copies to the ranks of their experts and brings the outputs back."""

    def dispatch(self, x_TD: Tensor, choice: Choice, scores_TK: Tensor, num_experts: int) -> Routed:
        """Rows for this rank's experts; ``choice.counts`` are those of the first time, or empty.

        ``x`` may also be [T*K, D]: then a token's copies differ, and each is there already.
        """
        ...

    def combine(self, y_RD: Tensor, routed: Routed) -> Tensor:
        """Outputs [T*K, D] of this rank's own token copies, in order of ``routed.order``."""
        ...


def count(ids: Tensor, num_experts: int) -> Tensor:
    """How often each expert occurs: [num_experts] int64, without the host sync of ``bincount``."""
    flat = ids.flatten()
    return torch.zeros(num_experts, dtype=torch.int64, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))


def sort_by_expert(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """A stable order of the flattened ``ids`` by expert, and its inverse."""
    order = stable_order(ids.flatten(), num_experts)
    return order, inverse_of(order)


class LocalDispatcher:
    """All experts are here."""

    def dispatch(self, x_TD: Tensor, choice: Choice, scores_TK: Tensor, num_experts: int) -> Routed:
        """Sorts the copies by expert."""
        order, inverse = sort_by_expert(choice.ids, num_experts)
        offsets = count(choice.ids, num_experts).cumsum(0).to(torch.int32)
        return Routed(expand(x_TD, order, inverse), offsets, scores_TK, order, inverse, choice)

    def combine(self, y_RD: Tensor, routed: Routed) -> Tensor:
        """Rows are already this rank's own, in order."""
        assert y_RD.shape[0] == routed.order.shape[0], "every copy has a row"
        return y_RD


def grouped_experts(rows_RD: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, offsets_E: Tensor) -> Tensor:
    """SwiGLU of each expert on its rows, [R, D] -> [R, D], in three grouped products."""
    hidden = F.silu(grouped_linear(rows_RD, w1, offsets_E)) * grouped_linear(rows_RD, w3, offsets_E)
    return grouped_linear(hidden, w2, offsets_E)


def loop_experts(rows_RD: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, offsets_E: Tensor) -> Tensor:
    """What :func:`grouped_experts` computes, one expert after the other: to read, and to check with.

    The host waits for the offsets, so nothing that is timed runs this.
    """
    of_experts = rows_RD.tensor_split(offsets_E.tolist()[:-1])
    weights = (weight.to(rows_RD.dtype) for weight in (w1, w2, w3))
    outputs = []
    for x, gate, down, up in zip(of_experts, *weights, strict=True):
        outputs.append(F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down))
    return torch.cat(outputs)


ExpertProducts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Experts(nn.Module):
    """SwiGLU experts; ``w1`` (gate) and ``w3`` (up) [E, F, D], ``w2`` (down) [E, D, F].

    ``products`` may be set to :func:`loop_experts`.
    """

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        up = (model.num_experts, model.moe_intermediate_size, model.hidden_size)
        self.w1 = nn.Parameter(torch.empty(up))
        self.w3 = nn.Parameter(torch.empty(up))
        self.w2 = nn.Parameter(torch.empty(up[0], up[2], up[1]))
        self.products: ExpertProducts = grouped_experts

    def forward(self, rows_RD: Tensor, offsets_E: Tensor) -> Tensor:
        """[R, D] -> [R, D]; a partial sum over the ranks that split F, if any do."""
        return self.products(rows_RD, local(self.w1), local(self.w2), local(self.w3), offsets_E)


def _scored_copies(x_TD: Tensor, scores_TK: Tensor) -> Tensor:
    """Every copy of a token times its score: [T*K, D]; the product in fp32, the copies in the dtype of ``x``."""
    return (x_TD.unsqueeze(1) * scores_TK.unsqueeze(2)).to(x_TD.dtype).flatten(0, 1)


def _weighted_sum(y_TKD: Tensor, scores_TK: Tensor) -> Tensor:
    return torch.bmm(scores_TK.to(y_TKD.dtype).unsqueeze(1), y_TKD).squeeze(1)


class MoE(nn.Module):
    """Router, dispatch, experts, combine, and ``shared_experts``, one dense SwiGLU, if the model has any.

    ``dispatcher``, ``enter`` and ``leave`` are the parallel layer's. Where tp enters and leaves the whole layer
    (etp = tp), the shared experts hand back a partial sum that ``leave`` sums with the experts'; else they are
    a sub-layer of their own, with their own ``enter`` and ``leave``.
    """

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.num_experts, self.score_before_experts = model.num_experts, model.score_before_experts
        self.router = Router(model)
        self.experts = Experts(model)
        width = model.n_shared_experts * model.moe_intermediate_size
        self.shared_experts = DenseMLP(model.hidden_size, width) if width else None
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.enter: Move = identity
        self.leave: Move = identity

    def route(self, x_BSD: Tensor, choice: Choice | None = None) -> Routed:
        """From tokens to rows on the ranks that hold their experts; ``choice`` repeats an earlier routing."""
        x_BSD = self.enter(x_BSD)
        x_TD = x_BSD.flatten(0, 1)
        ids, scores = self.router(x_TD, None if choice is None else choice.ids)
        copies = _scored_copies(x_TD, scores) if self.score_before_experts else x_TD
        routed = self.dispatcher.dispatch(copies, choice or Choice(ids), scores, self.num_experts)
        if self.shared_experts is None:
            return routed
        # after the dispatch: the host has just waited for split sizes, and this work lets it run ahead again
        # every field by position: what _replace makes, torch 2.11 cannot hand out of a graph
        return Routed(*routed[:-1], self.shared_experts(x_BSD))

    def merge(self, y_RD: Tensor, routed: Routed, batch: int) -> Tensor:
        """From expert outputs back to tokens [batch, S, D]: each token's copies summed, weighted by their scores."""
        home = self.dispatcher.combine(y_RD, routed)
        y_TKD = permute(home, routed.inverse, routed.order).unflatten(0, routed.scores.shape)
        out_TD = y_TKD.sum(dim=1) if self.score_before_experts else _weighted_sum(y_TKD, routed.scores)
        out_BSD = out_TD.unflatten(0, (batch, -1))
        return self.leave(out_BSD if routed.shared is None else out_BSD + routed.shared)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        routed = self.route(x_BSD)
        return self.merge(self.experts(routed.rows, routed.offsets), routed, x_BSD.shape[0])
