"""Tensor parallelism with sequence-sharded activations, and the experts' share of it (etp).

Weights become DTensors on the tp axis (FSDP2 composes with that), computation stays on local tensors: a
sub-layer is entered by gathering the sequence and left by reduce-scattering the partial sums, so between
sub-layers every rank holds S / tp positions. One rule follows for gradients: whatever is replicated over tp
(norms, q_norm and k_norm, the router) has seen part of the tokens or heads only, so its gradient is partial
(see ``model.layers.local``).

The experts themselves are spread by :mod:`epbench.parallel.styles`. With etp = tp their hidden dim is split too:
the MoE is entered and left like any other sub-layer, every tp rank routes the same gathered tokens, and each
computes a partial output. With etp = 1 tokens stay sequence-sharded into the router, and ep spans tp.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn import functional as F

from epbench.model.attention import Attention
from epbench.model.decoder import Block, Decoder
from epbench.model.mlp import DenseMLP
from epbench.model.moe import MoE
from epbench.parallel.communication import Axis, scatter_sequence
from epbench.parallel.styles import ReplicateParallel, place, sequence_moves, split_dense

__all__ = ["apply_tensor_parallel"]


def _lookup(axis: Axis) -> Callable[[Tensor, Tensor], Tensor]:
    def lookup(ids_BS: Tensor, weight_VD: Tensor) -> Tensor:
        ids = ids_BS - axis.rank * weight_VD.shape[0]
        elsewhere = (ids < 0) | (ids >= weight_VD.shape[0])
        rows = F.embedding(ids.masked_fill(elsewhere, 0), weight_VD)
        return scatter_sequence(rows.masked_fill(elsewhere.unsqueeze(-1), 0), axis=axis)

    return lookup


@dataclass(frozen=True)
class _Region:
    """How sub-layers are entered and left; one for all blocks, so that they share their compiled code."""

    mesh: DeviceMesh
    enter: Callable[[Tensor], Tensor]
    leave: Callable[[Tensor], Tensor]


def _replicate(module: nn.Module, mesh: DeviceMesh) -> None:
    parallelize_module(module, mesh, ReplicateParallel())


def _attention(attention: Attention, region: _Region) -> None:
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        place(projection, "weight", region.mesh, Shard(0))
    place(attention.o_proj, "weight", region.mesh, Shard(1))
    for norm in (attention.q_norm, attention.k_norm):
        _replicate(norm, region.mesh)
    attention.enter, attention.leave = region.enter, region.leave


def _dense(mlp: DenseMLP, region: _Region, *, inside: bool = False) -> None:
    """``inside``: the layer is part of one that enters and leaves for it."""
    split_dense(mlp, region.mesh)
    if not inside:
        mlp.enter, mlp.leave = region.enter, region.leave


def _moe(moe: MoE, region: _Region, *, split_experts: bool) -> None:
    _replicate(moe.router.gate, region.mesh)
    if moe.shared_experts is not None:
        _dense(moe.shared_experts, region, inside=split_experts)


def _block(block: Block, region: _Region, *, split_experts: bool) -> None:
    for norm in (block.attention_norm, block.mlp_norm):
        _replicate(norm, region.mesh)
    _attention(block.attention, region)
    if block.moe is not None:
        _moe(block.moe, region, split_experts=split_experts)
    if block.mlp is not None:
        _dense(block.mlp, region)


def apply_tensor_parallel(model: Decoder, mesh: DeviceMesh, axis: Axis, *, split_experts: bool) -> None:
    """Shards everything but the experts over the 1-D ``mesh``; ``split_experts`` says that etp = tp."""
    region = _Region(mesh, *sequence_moves(axis))
    place(model.embed_tokens, "weight", mesh, Shard(0))
    model.embed_tokens.lookup = _lookup(axis)
    for block in model.layers:
        assert isinstance(block, Block)
        _block(block, region, split_experts=split_experts)
    _replicate(model.head.norm, mesh)
    if model.tied:
        model.tie()
    else:
        place(model.head, "weight", mesh, Shard(0))
    model.head.enter = region.enter
