"""Routings that are forced instead of learned. They depend on a token's position and on nothing of the layout."""

import torch
from torch import Tensor

__all__ = ["FORCED", "round_robin"]


def round_robin(positions_T: Tensor, num_experts: int, top_k: int) -> Tensor:
    """Expert ids [T, K], perfectly even over positions, strided over the experts.

    Slot k of position p goes to expert p + k * E / K: a token's copies lie as far apart as they can, so its
    fan-out is min(K, ep), about what random routing has. (``arange(T * K) % E`` would put all copies of a token
    on one rank and flatter every dispatcher that deduplicates, facts 4.12.)
    """
    slots = torch.arange(top_k, device=positions_T.device) * num_experts // top_k
    return (positions_T.unsqueeze(1) + slots) % num_experts


FORCED = {"round_robin": round_robin}
