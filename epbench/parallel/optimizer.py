"""AdamW on the local shards.

AdamW works element by element, so it needs no mesh: it runs on plain tensors that share the shards' storage.
That keeps one fused kernel for parameters of different meshes, which a DTensor parameter group refuses to mix.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from epbench.cells import TrainSpec
from epbench.parallel.communication import Axis, all_reduce_
from epbench.parallel.gradients import clip_, local_gradients, sum_of_squares

__all__ = ["ShardedAdamW", "clip_and_step"]


class ShardedAdamW:
    """AdamW over the shards of ``params``; betas 0.9 and 0.95, weight decay 0.1, as large MoE runs use."""

    def __init__(self, params: Iterable[nn.Parameter], train: TrainSpec) -> None:
        shards = {param: param._local_tensor if isinstance(param, DTensor) else param.data for param in params}
        self._shards = {param: nn.Parameter(shard.detach()) for param, shard in shards.items() if shard.numel()}
        self._optimizer = torch.optim.AdamW(
            self._shards.values(), lr=train.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=train.optimizer_fused
        )

    def step(self, gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
        """One update from (parameter, local gradient) pairs; the gradients are not kept."""
        for param, grad in gradients:
            if isinstance(param, nn.Parameter) and param in self._shards:
                self._shards[param].grad = grad
        self._optimizer.step()
        self._optimizer.zero_grad()

    def before_step(self, hook: Callable[[], None]) -> None:
        """Runs ``hook`` at the start of every step: torch's step pre-hook, without its arguments."""
        self._optimizer.register_step_pre_hook(lambda *_: hook())

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters on this rank; their gradients have as many."""
        return sum(shard.nbytes for shard in self._shards.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of the moments on this rank."""
        return sum(x.nbytes for x in self.state_tensors)

    @property
    def state_tensors(self) -> list[Tensor]:
        """The moments on this rank, and the counts of steps."""
        states = self._optimizer.state.values()
        return [x for state in states for x in state.values() if isinstance(x, Tensor)]


def clip_and_step(
    optimizer: ShardedAdamW, params: Iterable[nn.Parameter], loss: Tensor, *, world: Axis, max_norm: float
) -> tuple[Tensor, Tensor]:
    """What follows a step's last backward: the global loss and norm in one all-reduce, clipping, and the update.

    ``loss`` is this rank's share of the global mean. Returns that mean and the norm before clipping, both scalars on
    the device, equal on every rank; 0 as ``max_norm`` clips nothing.
    """
    gradients = local_gradients(params)
    squares = sum_of_squares(gradients, world_size=world.size, device=loss.device)
    totals = all_reduce_(torch.stack([loss, squares]), axis=world, purpose="norm")
    norm = totals[1].sqrt()
    clip_([grad for _, grad in gradients], norm, max_norm)
    optimizer.step(gradients)
    return totals[0], norm
