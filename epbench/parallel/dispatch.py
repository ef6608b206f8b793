"""Dispatch and combine over an expert-parallel group with uneven all-to-alls.

A token's copies are sorted by expert, which sorts them by rank; counts go first, then rows. Rows arrive in
order of source rank and are regrouped by local expert for the grouped product. Combine is the same way back.
"""

import torch
from torch import Tensor

from epbench.model.moe import Choice, Routed, count, sort_by_expert
from epbench.model.permute import expand, inverse_of, permute, stable_order
from epbench.parallel.communication import Axis, all_to_all, await_splits, exchange_counts

__all__ = ["AllToAllDispatcher"]


def _regroup(received_NE: Tensor, num_rows: int) -> Tensor:
    """Order that takes rows from (source rank, local expert) to (local expert, source rank)."""
    segment_ends = received_NE.flatten().cumsum(0)
    row = torch.arange(num_rows, device=received_NE.device)
    segment = torch.searchsorted(segment_ends, row, right=True)
    return stable_order(segment % received_NE.shape[1], received_NE.shape[1])


class AllToAllDispatcher:
    """The torch-native dispatcher: one count exchange, one all-to-all each way. Holds no state of a step."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def dispatch(self, x_TD: Tensor, choice: Choice, scores_TK: Tensor, num_experts: int) -> Routed:
        """Own token copies to their experts' ranks; ``state`` is (splits on the CPU, regrouping and its inverse)."""
        counts = choice.counts or exchange_counts(count(choice.ids, num_experts), axis=self.axis)
        order, inverse = sort_by_expert(choice.ids, num_experts)
        copies = expand(x_TD, order, inverse)
        splits = await_splits(*counts, axis=self.axis)
        rows = all_to_all(copies, splits, axis=self.axis, purpose="dispatch")
        received = counts[0][1].view(self.axis.size, -1)
        regroup = _regroup(received, rows.shape[0])
        back = inverse_of(regroup)
        offsets = received.sum(0).cumsum(0).to(torch.int32)
        choice = Choice(choice.ids, counts)
        state = (splits, regroup, back)
        return Routed(permute(rows, regroup, back), offsets, scores_TK, order, inverse, choice, state)

    def combine(self, y_RD: Tensor, routed: Routed) -> Tensor:
        """Expert outputs back to the ranks of their tokens: [T*K, D]."""
        splits, regroup, back = routed.state
        y = permute(y_RD, back, regroup)
        return all_to_all(y, splits, axis=self.axis, purpose="combine", reverse=True, rows=routed.order.shape[0])
