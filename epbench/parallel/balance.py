"""The correction bias of routers, moved against the load: balance without an auxiliary loss.

After every optimizer step an expert's bias rises by a fixed rate if the step's tokens chose it less often than the
mean, and falls by it if more often (Wang et al., arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437, 2.1.2)::

    bias += rate * sign(mean load - load)

The load is that of the whole step: all micro-batches and all ranks. It is read from the choice that each router has
recorded, once per micro-batch, so a forward that activation checkpointing runs again counts nothing twice. With etp
= tp every tp rank routes the same tokens, and each is counted tp times: that scales all loads alike, and the sign
does not see it. Loads are integers, hence the bias is the same bit for bit on every rank and in every layout.
"""

from collections.abc import Sequence

import torch

from epbench.model.router import Router
from epbench.parallel.communication import Axis, all_reduce_

__all__ = ["Balance"]


class Balance:
    """Counts the load of ``routers`` [L of them] and moves their biases; all have one and room for ``last_ids``."""

    def __init__(self, routers: Sequence[Router], *, rate: float, world: Axis) -> None:
        self._routers, self._rate, self._world = routers, rate, world
        self._biases = [
            router.e_score_correction_bias for router in routers if router.e_score_correction_bias is not None
        ]
        assert len(self._biases) == len(routers) > 0, "every router has a bias"
        self.load_LE = torch.zeros(
            (len(routers), self._biases[0].shape[0]), dtype=torch.int64, device=self._biases[0].device
        )

    def observe(self) -> None:
        """Adds the choice of the last micro-batch to the load; call once per micro-batch, after its backward."""
        ids = [router.last_ids.flatten() for router in self._routers if router.last_ids is not None]
        assert len(ids) == len(self._routers), "every router records its choice"
        ids_LR = torch.stack(ids)
        self.load_LE.scatter_add_(1, ids_LR, torch.ones_like(ids_LR))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the biases by the load of all ranks since the last call; one all-reduce for all layers."""
        load_LE = all_reduce_(self.load_LE, axis=self._world, purpose="router_bias")
        below_mean_LE = (load_LE.sum(dim=1, keepdim=True) - load_LE * load_LE.shape[1]).sign()
        torch._foreach_add_(self._biases, list((below_mean_LE * self._rate).unbind(0)))
        load_LE.zero_()
