"""FSDP2 over two meshes: dense weights over dp_shard x cp, experts over what ep and etp leave of the world.

The experts are an FSDP unit of their own inside the block's, unless every rank holds its experts alone
(ep x etp = world): then there is nothing to gather or to reduce, and FSDP over one rank would still copy every
gradient through ``_chunk_cat``, whose host side takes 10 ms a layer at 300 M parameters and leaves the GPU idle
for 8 of them (2 x H200, torch 2.11). Such experts stay outside FSDP and are cast where they are used.

Gradients are summed, never divided: the loss is
already the local sum over the global number of tokens, which makes one recipe right for dense weights and for
experts, whose all-to-all has summed over ep already (facts 4.3, 10). ``set_force_sum_reduction_for_comms`` goes
with a factor of exactly 1: gloo has no PREMUL_SUM, and any other factor is applied twice on a group of one.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from epbench.cells import TrainSpec
from epbench.model.decoder import Block, Decoder
from epbench.parallel.mesh import ParallelDims

__all__ = ["apply_fsdp"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _expert_placement(num_experts: int, dims: ParallelDims) -> Shard:
    """On dim 0 while every rank gets an expert; else on dim 1, where each expert is split evenly."""
    return Shard(1) if dims.layout.efsdp * dims.layout.ep > num_experts else Shard(0)


def _units(block: Block) -> list[nn.Module]:
    return [unit for unit in block.modules() if isinstance(unit, FSDPModule)]


def _set_prefetch(model: Decoder) -> None:
    """Explicit order: the host waits for split sizes in every layer, so implicit prefetch comes too late."""
    blocks = [block for block in model.layers if isinstance(block, Block)]
    chain: list[list[nn.Module]] = [[model.embed_tokens], *(_units(block) for block in blocks), [model.head]]
    for now, following in pairwise(chain):
        _fsdp(now[0]).set_modules_to_forward_prefetch([_fsdp(unit) for unit in following])
        _fsdp(following[0]).set_modules_to_backward_prefetch([_fsdp(unit) for unit in reversed(now)])


def _fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule), f"{type(module).__name__} is not sharded yet"
    return module


def apply_fsdp(model: Decoder, dims: ParallelDims, train: TrainSpec) -> None:
    """Shards the model in place; master weights stay fp32, compute and reduction dtypes are ``train``'s."""
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[train.compute_dtype],
        reduce_dtype=DTYPES[train.reduce_dtype],
        cast_forward_inputs=False,
    )
    dense, experts = dims.fsdp_mesh(), dims.fsdp_mesh(experts=True)
    alone = dims.layout.efsdp == dims.layout.dp_replicate == 1
    outside = {param for name, param in model.named_parameters() if alone and ".experts." in name}
    placement = _expert_placement(model.spec.num_experts, dims)

    def shard(module: nn.Module, mesh: DeviceMesh, *, reshard: bool = train.reshard_after_forward) -> None:
        where = placement if mesh is experts else Shard(0)
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=reshard,
            mp_policy=policy,
            shard_placement_fn=lambda _: where,
            ignored_params=outside,
        )

    shard(model.embed_tokens, dense)
    for block in model.layers:
        assert isinstance(block, Block)
        if block.moe is not None and not alone:
            shard(block.moe.experts, experts)
        shard(block, dense)
    shard(model.head, dense, reshard=False)
    shard(model, dense)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    _set_prefetch(model)
