"""The mistakes that bit real stacks (facts 4), planted on purpose: parity must notice each of them."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.distributed.tensor import DTensor

from epbench.model.attention import Sequences
from epbench.model.decoder import Block, Decoder
from epbench.model.mlp import DenseMLP
from epbench.model.moe import Choice, MoE, Routed
from epbench.parallel.balance import Balance
from epbench.parallel.communication import Axis
from epbench.parallel.gradients import local_gradients
from epbench.parallel.mesh import ParallelDims
from epbench.parallel.styles import sequence_moves

__all__ = ["PLANTS"]

Plant = AbstractContextManager[object]


def _experts_summed_twice() -> Plant:
    """With etp = tp every tp rank computes whole experts, and the MoE's exit sums them over tp all the same (4.1)."""

    def whole(model: Decoder, _dims: ParallelDims, tp: Axis) -> None:
        for module in model.modules():
            if isinstance(module, MoE):
                module.enter, module.leave = sequence_moves(tp)

    return patch("epbench.parallel.apply.apply_expert_parallel", whole)


def _gate_gradient_of_one_rank() -> Plant:
    """The router's gradient is taken for whole although each tp rank saw some of the tokens only (4.2)."""
    from epbench.model import layers

    right = layers.local

    def wrong(param: Tensor) -> Tensor:
        replicated_matrix = isinstance(param, DTensor) and param.dim() == 2 and param.placements[-1].is_replicate()
        return param.to_local() if isinstance(param, DTensor) and replicated_matrix else right(param)

    return patch("epbench.model.layers.local", wrong)


def _scores_without_gradient() -> Plant:
    """Combine weighs the outputs by their scores, and its backward forgets that it did."""
    from epbench.model import moe

    right = moe._weighted_sum

    def wrong(y_TKD: Tensor, scores_TK: Tensor) -> Tensor:
        return right(y_TKD, scores_TK.detach() + 0 * scores_TK)

    return patch("epbench.model.moe._weighted_sum", wrong)


def _expert_gradient_divided() -> Plant:
    """FSDP averages the experts' gradients over its ranks, as if nothing had divided by the tokens yet (4.3)."""
    right = local_gradients

    def wrong(params: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        pairs = right(params)
        for param, grad in pairs:
            if isinstance(param, DTensor) and param.dim() == 3:  # experts are the only ones
                names = param.device_mesh.mesh_dim_names or ()
                grad.div_(param.device_mesh.size(names.index("efsdp")))
        return pairs

    return patch("epbench.parallel.optimizer.local_gradients", wrong)


def _norm_counts_replicas() -> Plant:
    """Weights that several ranks hold are counted by each of them in the gradient norm (4.5)."""
    return patch("epbench.parallel.gradients.num_replicas", lambda *_: 1)


def _shared_experts_of_one_rank() -> Plant:
    """Each tp rank takes its part of the shared experts' width for all of it, and its own tokens for all tokens."""
    from epbench.parallel import tensor

    right = tensor._dense

    def wrong(mlp: DenseMLP, region: Any, *, inside: bool = False) -> None:
        right(mlp, region, inside=True)

    return patch("epbench.parallel.tensor._dense", wrong)


def _another_choice_in_recompute() -> Plant:
    """Recomputation sends the rows of the first time, but weighs them as another token would (4.7)."""
    right = Block.route

    def wrong(block: Block, x_BSD: Tensor, sequences: Sequences, choice: Choice | None = None) -> tuple[Tensor, Routed]:
        if choice is not None:
            choice = choice._replace(ids=choice.ids.roll(1, 0))  # as many rows for each rank as before: nothing hangs
        return right(block, x_BSD, sequences, choice)

    return patch.object(Block, "route", wrong)


def _bias_of_one_rank() -> Plant:
    """Every rank moves its correction biases by the load that it has seen itself."""
    return patch("epbench.parallel.balance.all_reduce_", lambda load, **_: load)


def _bias_moved_twice() -> Plant:
    """The recomputed forward counts as another step: the correction bias moves twice by the same load."""
    right = Balance.update

    def wrong(balance: Balance) -> None:
        load = balance.load_LE.clone()
        right(balance)
        balance.load_LE.copy_(load)
        right(balance)

    return patch.object(Balance, "update", wrong)


def _documents_see_each_other() -> Plant:
    """Where documents end is known and nobody tells attention."""
    return patch("epbench.stacks.qwen3_moe.packed", lambda whole, _: whole)


PLANTS: dict[str, Callable[[], Plant]] = {
    "nothing": nullcontext,
    "experts summed twice": _experts_summed_twice,
    "gate gradient of one rank": _gate_gradient_of_one_rank,
    "scores without gradient": _scores_without_gradient,
    "expert gradient divided": _expert_gradient_divided,
    "norm counts replicas": _norm_counts_replicas,
    "shared experts of one rank": _shared_experts_of_one_rank,
    "another choice in recompute": _another_choice_in_recompute,
    "bias of one rank": _bias_of_one_rank,
    "bias moved twice": _bias_moved_twice,
    "documents see each other": _documents_see_each_other,
}
