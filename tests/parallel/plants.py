"""The mistakes that bit real stacks (facts 4), planted on purpose: parity must notice each of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.distributed.tensor import DTensor

from epbench.model.decoder import Decoder
from epbench.model.mlp import DenseMLP
from epbench.model.moe import MoE
from epbench.parallel.communication import Axis
from epbench.parallel.mesh import ParallelDims
from epbench.parallel.styles import sequence_moves

__all__ = ["PLANTS"]


def _experts_summed_twice() -> AbstractContextManager[object]:
    """Every tp rank computes the whole expert output, which the MoE's exit sums over tp all the same (4.1)."""

    def whole(model: Decoder, _dims: ParallelDims, tp: Axis) -> None:
        for module in model.modules():
            if isinstance(module, MoE):
                module.enter, module.leave = sequence_moves(tp)

    return patch("epbench.parallel.apply.apply_expert_parallel", whole)


def _gate_gradient_of_one_rank() -> AbstractContextManager[object]:
    """The router's gradient is taken for whole although each tp rank saw some of the tokens only (4.2)."""
    from epbench.model import layers

    right = layers.local

    def wrong(param: Tensor) -> Tensor:
        replicated_matrix = isinstance(param, DTensor) and param.dim() == 2 and param.placements[-1].is_replicate()
        return param.to_local() if isinstance(param, DTensor) and replicated_matrix else right(param)

    return patch("epbench.model.layers.local", wrong)


def _norm_counts_replicas() -> AbstractContextManager[object]:
    """Weights that several ranks hold are counted by each of them in the gradient norm (4.5)."""
    return patch("epbench.parallel.gradients.num_replicas", lambda *_: 1)


def _shared_experts_of_one_rank() -> AbstractContextManager[object]:
    """Each tp rank takes its part of the shared experts' width for all of it, and its own tokens for all tokens."""
    from epbench.parallel import tensor

    right = tensor._dense

    def wrong(mlp: DenseMLP, region: Any, *, inside: bool = False) -> None:
        right(mlp, region, inside=True)

    return patch("epbench.parallel.tensor._dense", wrong)


def _bias_of_one_rank() -> AbstractContextManager[object]:
    """Every rank moves its correction biases by the load that it has seen itself."""
    return patch("epbench.parallel.balance.all_reduce_", lambda load, **_: load)


def _documents_see_each_other() -> AbstractContextManager[object]:
    """Where documents end is known and nobody tells attention."""
    return patch("epbench.stacks.qwen3_moe.packed", lambda whole, _: whole)


PLANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "nothing": nullcontext,
    "experts summed twice": _experts_summed_twice,
    "gate gradient of one rank": _gate_gradient_of_one_rank,
    "norm counts replicas": _norm_counts_replicas,
    "shared experts of one rank": _shared_experts_of_one_rank,
    "bias of one rank": _bias_of_one_rank,
    "documents see each other": _documents_see_each_other,
}
