"""How evenly the router spread the tokens of the last step: what a throughput must be read beside.

A layout that is fast on even routing can be slow on real routing, and routing that sends all copies of a
token to one rank flatters any dispatcher that sends a token once per rank. So load and fan-out are
measured.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from epbench.measure.ranks import sum_over_ranks_
from epbench.records import ExpertLoad

if TYPE_CHECKING:
    from epbench.cells import Cell
    from epbench.stacks.protocol import Step, World

__all__ = ["expert_load"]


def expert_load(step: "Step", cell: "Cell", world: "World") -> ExpertLoad:
    """Realised load over the world; the worst MoE layer's ratios, and fan-out over all layers. A collective.

    Ranks that hold the same tokens (expert tensor parallelism, or tensor parallelism without sequence
    sharding) count them equally often, which leaves ratios as they are. All None if the stack cannot tell.
    """
    layers = step.expert_ids()
    if not layers:
        return ExpertLoad()
    num_experts, ep = cell.model.num_experts, cell.layout.ep
    counts_LE = sum_over_ranks_(torch.stack([_counts(ids_TK, num_experts) for ids_TK in layers]), world)
    reach = sum_over_ranks_(torch.stack([_reach(ids_TK, num_experts // ep, ep) for ids_TK in layers]), world)
    ranks, tokens = reach.sum(0).tolist()
    return ExpertLoad(
        max_over_mean=_worst_ratio(counts_LE),
        rank_max_over_mean=_worst_ratio(counts_LE.view(len(layers), ep, -1).sum(2)),
        fan_out=ranks / tokens if tokens else None,
    )


def _counts(ids_TK: Tensor, num_experts: int) -> Tensor:
    """Routed copies per expert, [E] int64."""
    return torch.bincount(ids_TK.flatten().long(), minlength=num_experts)


def _reach(ids_TK: Tensor, experts_per_rank: int, ep: int) -> Tensor:
    """[2] int64: the number of (token, ep rank that holds one of its experts) pairs, and of tokens."""
    hit = torch.zeros(ids_TK.shape[0], ep, dtype=torch.int64, device=ids_TK.device)
    hit.scatter_(1, ids_TK.long() // experts_per_rank, 1)
    return torch.stack([hit.sum(), hit.new_tensor(ids_TK.shape[0])])


def _worst_ratio(counts_LN: Tensor) -> float | None:
    """Largest over layers of heaviest over mean; None if nothing was routed."""
    counts = counts_LN.double()
    means = counts.mean(1)
    if not bool((means > 0).all()):
        return None
    return float((counts.amax(1) / means).max())
