"""AdamW on the local shards.

AdamW works element by element, so it needs no mesh: it runs on plain tensors that share the shards' storage.
That keeps one fused kernel for parameters of different meshes, which a DTensor parameter group refuses to mix.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from epbench.cells import TrainSpec

__all__ = ["ShardedAdamW"]


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
    def state_bytes(self) -> int:
        """Bytes of the moments on this rank."""
        states = self._optimizer.state.values()
        return sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor))
