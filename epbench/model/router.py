"""The router: which experts a token visits, and how much each of them counts.

Scores are a softmax or a sigmoid over all experts; the best K are chosen, and their scores, normalised and scaled,
weigh the outputs. Three published refinements, all of DeepSeek-V3 (arXiv 2412.19437) and named as in its
``config.json``:

- A **correction bias** (Wang et al., arXiv 2408.15664) is added to the scores for the choice only. It never enters
  the weights, so it steers the load and leaves the gradient alone. :mod:`epbench.parallel.balance` moves it.
- **Groups**: a group of experts counts as much as its two best biased scores together; only the experts of the best
  ``topk_group`` groups can be chosen, so that a token meets few nodes. The others are masked with minus infinity. A
  mask of zero, as in the first published code, lets a masked expert win wherever a bias makes kept ones negative.
- ``routed_scaling_factor`` multiplies the normalised scores.

The gate's product is in the compute dtype: its weights were gathered in that dtype, and an fp32 product would leave
the tensor cores. Everything after it is in fp32, where neighbouring scores can still be told apart. Shapes: T
tokens, K experts per token, E experts, G groups, D model width.
"""

import torch
from torch import Tensor, nn

from epbench.cells import ModelSpec
from epbench.model.layers import Linear

__all__ = ["Router", "within_best_groups", "zero_biases"]

_LEAST_SUM = 1e-20  # as published: scores of forced experts may all have vanished


def within_best_groups(scores_TE: Tensor, *, num_groups: int, kept: int) -> Tensor:
    """``scores`` with minus infinity for experts outside of each token's ``kept`` best groups (of two or more)."""
    by_group_TGE: Tensor = scores_TE.unflatten(1, (num_groups, -1))
    group_TG = by_group_TGE.topk(2, dim=2)[0].sum(dim=2)
    best = group_TG.topk(kept, dim=1)[1]
    masked = torch.ones_like(group_TG, dtype=torch.bool).scatter(1, best, False)
    return by_group_TGE.masked_fill(masked.unsqueeze(2), -torch.inf).flatten(1)


class Router(nn.Module):
    """Chooses K experts per token. ``forced_ids`` [T, K], if set, replaces the choice but not the scores.

    ``last_ids`` [T, K] keeps the last choice for the record of realised load; allocated by whoever wants it.
    ``e_score_correction_bias`` [E] fp32 exists if the model updates it, and is zero once :func:`zero_biases` ran.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.top_k, self.normalise = model.num_experts_per_tok, model.norm_topk_prob
        self.sigmoid, self.scale = model.scoring_func == "sigmoid", model.routed_scaling_factor
        self.num_groups, self.kept_groups = model.n_group, model.topk_group
        self.gate = Linear(model.hidden_size, model.num_experts)
        biased = model.router_bias_update_rate > 0
        self.register_buffer("e_score_correction_bias", torch.zeros(model.num_experts) if biased else None)
        self.forced_ids: Tensor | None = None
        self.last_ids: Tensor | None = None

    def choose(self, scores_TE: Tensor) -> Tensor:
        """Expert ids [T, K] int64: the best by score and bias, within the best groups. Has no gradient."""
        steered = scores_TE.detach()
        if self.e_score_correction_bias is not None:
            steered = steered + self.e_score_correction_bias
        if self.num_groups > 1:
            steered = within_best_groups(steered, num_groups=self.num_groups, kept=self.kept_groups)
        return steered.topk(self.top_k)[1]

    def forward(self, x_TD: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Expert ids [T, K] int64 and their scores [T, K] fp32, normalised over the chosen and scaled.

        ``ids``, if given, are those of the first time: only the scores are computed again.
        """
        logits_TE = self.gate(x_TD).float()
        scores_TE = logits_TE.sigmoid() if self.sigmoid else logits_TE.softmax(dim=-1)
        if ids is None:
            ids = self.forced_ids if self.forced_ids is not None else self.choose(scores_TE)
        scores = scores_TE.gather(1, ids)
        if self.normalise:
            scores = scores / (scores.sum(dim=-1, keepdim=True) + _LEAST_SUM)
        return ids, scores * self.scale if self.scale != 1.0 else scores

    def record(self, ids_TK: Tensor) -> None:
        """Keeps the choice in ``last_ids``; called outside of compiled and of repeated code."""
        if self.last_ids is not None:
            self.last_ids.copy_(ids_TK)


def zero_biases(model: nn.Module) -> None:
    """Correction biases as training starts them; a model that was made on the meta device has none until then."""
    for module in model.modules():
        if isinstance(module, Router) and module.e_score_correction_bias is not None:
            module.e_score_correction_bias.zero_()
