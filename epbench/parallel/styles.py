"""How a MoE layer is spread over a mesh, one class for each way, to be used with ``parallelize_module`` or alone.

Each shards the experts' weights as DTensors (FSDP2 composes with that) and gives the layer what it needs at run
time: a dispatcher where experts live on other ranks, and an entrance and an exit where each expert is split. The
computation itself stays on local tensors, see :func:`epbench.model.layers.local`.

====================  ============  ===========================  ==============================================
style                 mesh          experts (w1, w3 / w2)        tokens that the layer is given
====================  ============  ===========================  ==============================================
ExpertParallel        (ep)          Shard(0) / Shard(0)          any, each rank its own
TensorParallel        (tp)          Shard(1) / Shard(2)          sequence-sharded over tp
ExpertTensorParallel  (ep, tp)      both                         sequence-sharded over tp, otherwise own
ReplicateParallel     any           (router gate, norms)         any; the gradient is partial over the mesh
====================  ============  ===========================  ==============================================

Shared experts are split as well where each expert is: the exit of the layer sums them with the others.

    parallelize_module(moe, mesh["ep"], ExpertParallel())
    parallelize_module(moe, mesh["tp"], {"router.gate": ReplicateParallel(), "": TensorParallel()})
"""

from collections.abc import Callable
from functools import cache, partial

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from epbench.model.mlp import DenseMLP
from epbench.model.moe import MoE
from epbench.parallel.communication import Axis, gather_sequence, scatter_sequence
from epbench.parallel.dispatch import AllToAllDispatcher

__all__ = [
    "ExpertParallel",
    "ExpertTensorParallel",
    "ReplicateParallel",
    "TensorParallel",
    "place",
    "sequence_moves",
    "split_dense",
]

_HIDDEN_DIM = {"w1": 1, "w3": 1, "w2": 2}


def place(module: nn.Module, name: str, mesh: DeviceMesh, *placements: Placement) -> None:
    """Replaces a parameter, on the meta device or equal on all ranks, by its shard; moves no data."""
    param = getattr(module, name)
    shard = distribute_tensor(param.data, mesh, placements, src_data_rank=None)
    module.register_parameter(name, nn.Parameter(shard))


def split_dense(mlp: DenseMLP, mesh: DeviceMesh) -> None:
    """Splits a SwiGLU on its width over the 1-D ``mesh``: its output is a partial sum from then on."""
    place(mlp.gate_proj, "weight", mesh, Shard(0))
    place(mlp.up_proj, "weight", mesh, Shard(0))
    place(mlp.down_proj, "weight", mesh, Shard(1))


def _split_shared(moe: MoE, mesh: DeviceMesh) -> None:
    """Unless that was done before; else every rank would add all of their output to the sum."""
    shared = moe.shared_experts
    if shared is not None and not isinstance(shared.down_proj.weight, DTensor):
        split_dense(shared, mesh)


def _layer(module: nn.Module, style: ParallelStyle) -> MoE:
    if not isinstance(module, MoE):
        raise TypeError(
            f"{type(style).__name__} spreads a MoE layer (epbench.model.moe.MoE), not {type(module).__name__}"
        )
    return module


def _check(mesh: DeviceMesh, style: ParallelStyle, *, ndim: int) -> None:
    if mesh.ndim != ndim:
        raise ValueError(f"{type(style).__name__} takes a mesh of {ndim} axis(es), got {mesh.ndim}: {mesh}")


@cache
def sequence_moves(axis: Axis) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """How a sub-layer is entered and left over ``axis``: one pair for all layers, so that they share compiled code."""
    return partial(gather_sequence, axis=axis), partial(scatter_sequence, axis=axis)


@cache
def _dispatcher(axis: Axis) -> AllToAllDispatcher:
    return AllToAllDispatcher(axis)


class ExpertParallel(ParallelStyle):
    """Whole experts on the ranks of a 1-D mesh (ep); tokens go to them and come back by all-to-all.

    ``axis`` names the group in traces; the mesh's own, called ``ep``, unless given. Raises ValueError if the
    ranks do not divide the experts.
    """

    def __init__(self, axis: Axis | None = None) -> None:
        super().__init__()
        self.axis = axis

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        moe = _layer(module, self)
        _check(device_mesh, self, ndim=1)
        _check_experts(moe, device_mesh.size())
        for name in _HIDDEN_DIM:
            place(moe.experts, name, device_mesh, Shard(0))
        moe.dispatcher = _dispatcher(self.axis or Axis.of(device_mesh, "ep"))
        return moe


class TensorParallel(ParallelStyle):
    """Every expert split on its hidden dim over a 1-D mesh (tp, when ep = 1).

    The layer gathers the sequence, all ranks route the same tokens, each computes its part of every expert, and
    the partial outputs are reduce-scattered. ``axis`` is the tp axis; the mesh's own, called ``tp``, unless given.
    The router's gate sees gradients of partial outputs: spread it with :class:`ReplicateParallel` over tp.
    """

    def __init__(self, axis: Axis | None = None) -> None:
        super().__init__()
        self.axis = axis

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        moe = _layer(module, self)
        _check(device_mesh, self, ndim=1)
        for name, hidden_dim in _HIDDEN_DIM.items():
            place(moe.experts, name, device_mesh, Shard(hidden_dim))
        _split_shared(moe, device_mesh)
        moe.enter, moe.leave = sequence_moves(self.axis or Axis.of(device_mesh, "tp"))
        return moe


class ExpertTensorParallel(ParallelStyle):
    """Experts spread over the first axis of a 2-D mesh, each split on its hidden dim over the second (etp = tp).

    ``expert_axis`` and ``tensor_axis`` as in the two styles that this one joins.
    """

    def __init__(self, expert_axis: Axis | None = None, tensor_axis: Axis | None = None) -> None:
        super().__init__()
        self.expert_axis, self.tensor_axis = expert_axis, tensor_axis

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        moe = _layer(module, self)
        _check(device_mesh, self, ndim=2)
        _check_experts(moe, device_mesh.size(0))
        of_experts, of_widths = _axes(device_mesh)
        for name, hidden_dim in _HIDDEN_DIM.items():
            place(moe.experts, name, device_mesh, Shard(0), Shard(hidden_dim))
        _split_shared(moe, of_widths)
        moe.dispatcher = _dispatcher(self.expert_axis or Axis.of(of_experts, "ep"))
        moe.enter, moe.leave = sequence_moves(self.tensor_axis or Axis.of(of_widths, "tp"))
        return moe


class ReplicateParallel(ParallelStyle):
    """Parameters of a module (not of its children) that are equal on all ranks of the mesh.

    Ranks see different tokens, or partial outputs, so each computes one term of the gradient's sum: ``grad`` is a
    DTensor that is partial over the mesh. FSDP2 reduces it, and so do a DTensor's ``full_tensor`` and torch's
    optimizers; its local tensor is one rank's term. Left out, a router's gate under tp learns from that term alone
    (facts 4.2).
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, _ in list(module.named_parameters(recurse=False)):
            place(module, name, device_mesh, *[Replicate()] * device_mesh.ndim)
        return module


def _axes(mesh: DeviceMesh) -> tuple[DeviceMesh, DeviceMesh]:
    names = mesh.mesh_dim_names
    if names is None:
        raise ValueError(f"ExpertTensorParallel needs a mesh with named axes, got {mesh}")
    return mesh[names[0]], mesh[names[1]]


def _check_experts(moe: MoE, ranks: int) -> None:
    if moe.num_experts % ranks:
        raise ValueError(f"{moe.num_experts} experts cannot be spread evenly over {ranks} ranks")
