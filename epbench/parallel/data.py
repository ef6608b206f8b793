"""FSDP2 over two meshes: dense weights over dp_shard x cp, experts over what ep and etp leave of the world.

How the experts of a block are held (:func:`holding`) depends on the layout and on what FSDP2 can do:

- ``alone``: every rank holds its experts alone (ep x etp = world, no replicas). There is nothing to gather or to
  reduce, and FSDP over one rank would still copy every gradient through ``_chunk_cat``, whose host side takes
  10 ms a layer at 300 M parameters and leaves the GPU idle for 8 of them (2 x H200, torch 2.11). Such experts stay
  outside FSDP and are cast where they are used.
- ``joined``: they are part of the block's FSDP unit, either because both are sharded over the same ranks or
  because FSDP2 takes a mesh per parameter.
- ``nested``: they are an FSDP unit of their own inside the block's, gathered by hooks in the middle of the block.

Gradients are summed, never divided: the loss is already the local sum over the global number of tokens, which
makes one recipe right for dense weights and for experts, whose all-to-all has summed over ep already (facts 4.3,
10). ``set_force_sum_reduction_for_comms`` goes with a factor of exactly 1: gloo has no PREMUL_SUM, and any other
factor is applied twice on a group of one.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from epbench.cells import TrainSpec
from epbench.layout import Layout
from epbench.model.decoder import Block, Decoder
from epbench.parallel import compat
from epbench.parallel.mesh import ParallelDims

__all__ = ["DTYPES", "Holding", "apply_fsdp", "holding", "store_as"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Holding = Literal["alone", "joined", "nested"]


def holding(layout: Layout, *, parameter_meshes: bool) -> Holding:
    """How a block's experts are held; ``parameter_meshes`` says whether FSDP2 takes a mesh per parameter."""
    if layout.efsdp == layout.dp_replicate == 1:
        return "alone"
    same_ranks = layout.ep == layout.tp == 1  # efsdp = dp_shard x cp
    return "joined" if same_ranks or parameter_meshes else "nested"


def store_as(model: nn.Module, dtype: str) -> None:
    """Parameters, and with them gradients and moments, in ``dtype`` (of :data:`DTYPES`); before anything shards them.

    Buffers stay: a router's bias moves by steps that a narrower dtype would swallow.
    """
    for param in model.parameters():
        param.data = param.data.to(DTYPES[dtype])


def _expert_placement(num_experts: int, dims: ParallelDims) -> Shard:
    """On dim 0 while every rank gets an expert; else on dim 1, where each expert is split evenly."""
    return Shard(1) if dims.layout.efsdp * dims.layout.ep > num_experts else Shard(0)


def _units(block: Block) -> list[nn.Module]:
    return [unit for unit in block.modules() if isinstance(unit, FSDPModule)]


def _set_prefetch(model: Decoder) -> None:
    """Explicit order: the host waits for split sizes in every layer, so implicit prefetch comes too late."""
    blocks = [block for block in model.layers if isinstance(block, Block)]
    ends: list[list[nn.Module]] = [] if model.tied else [[model.head]]
    chain: list[list[nn.Module]] = [[model.embed_tokens], *(_units(block) for block in blocks), *ends]
    for now, following in pairwise(chain):
        _fsdp(now[0]).set_modules_to_forward_prefetch([_fsdp(unit) for unit in following])
        _fsdp(following[0]).set_modules_to_backward_prefetch([_fsdp(unit) for unit in reversed(now)])


def _fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule), f"{type(module).__name__} is not sharded yet"
    return module


class _Sharder:
    """``fully_shard`` with what all units of one model share."""

    def __init__(self, model: Decoder, dims: ParallelDims, train: TrainSpec, held: Holding) -> None:
        self._dims, self._train = dims, train
        self._policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[train.compute_dtype],
            reduce_dtype=DTYPES[train.reduce_dtype],
            cast_forward_inputs=False,
        )
        experts = {param for name, param in model.named_parameters() if ".experts." in name}
        self._outside = experts if held == "alone" else set()
        self._placement = self._placements(experts, model, held=held)

    def _placements(
        self, experts: set[nn.Parameter], model: Decoder, *, held: Holding
    ) -> Callable[[nn.Parameter], Any]:
        shard: Any = _expert_placement(model.spec.num_experts, self._dims)
        if held == "joined" and not self._same_ranks():
            shard = compat.on_mesh(shard, self._dims.fsdp_mesh(experts=True))
        return lambda param: shard if param in experts else Shard(0)

    def _same_ranks(self) -> bool:
        return self._dims.layout.ep == self._dims.layout.tp == 1

    def __call__(self, modules: Any, *, experts: bool = False, reshard: bool | None = None) -> None:
        fully_shard(
            modules,
            mesh=self._dims.fsdp_mesh(experts=experts),
            reshard_after_forward=self._train.reshard_after_forward if reshard is None else reshard,
            mp_policy=self._policy,
            shard_placement_fn=self._placement,
            ignored_params=self._outside,
        )


def apply_fsdp(model: Decoder, dims: ParallelDims, train: TrainSpec, *, held: Holding) -> None:
    """Shards the model in place; master weights stay as they are, compute and reduction dtypes are ``train``'s.

    Tied embedding and head share one parameter, so they are one unit, gathered for the whole step.
    """
    shard = _Sharder(model, dims, train, held)
    if model.tied:
        shard([model.embed_tokens, model.head], reshard=False)
    else:
        shard(model.embed_tokens)
        shard(model.head, reshard=False)
    for block in model.layers:
        assert isinstance(block, Block)
        if block.moe is not None and held == "nested":
            shard(block.moe.experts, experts=True)
        shard(block)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    _set_prefetch(model)
