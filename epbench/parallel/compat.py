"""The few places where torch 2.11 (CUDA machines) and 2.13 (CPU set-up) differ: names, and what FSDP2 can do."""

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

__all__ = ["all_gather", "has_parameter_meshes", "on_mesh", "reduce_scatter"]


def all_gather(output: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    """``output`` [n * rows, ...] becomes the concatenation of every rank's ``x`` [rows, ...] on dim 0."""
    module: Any = dist
    gather = getattr(module, "all_gather_single", None) or module.all_gather_into_tensor
    gather(output, x, group=group)


def reduce_scatter(output: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    """``output`` [rows, ...] becomes this rank's chunk of the sum over ranks of ``x`` [n * rows, ...]."""
    module: Any = dist
    scatter = getattr(module, "reduce_scatter_single", None) or module.reduce_scatter_tensor
    scatter(output, x, group=group)


def _fsdp_common() -> Any:
    from torch.distributed.fsdp._fully_shard import _fsdp_common

    return _fsdp_common


def has_parameter_meshes() -> bool:
    """Whether one ``fully_shard`` can shard some parameters over another mesh than the rest (2.13 can, 2.11 cannot)."""
    return hasattr(_fsdp_common(), "ShardPlacementResult")


def on_mesh(placement: Shard, mesh: DeviceMesh) -> Any:
    """What ``shard_placement_fn`` returns for parameters sharded over ``mesh``; return one object for all of them.

    ``mesh`` is 1-D, or 2-D (replicate, shard). Needs :func:`has_parameter_meshes`.
    """
    common = _fsdp_common()
    if mesh.ndim == 1:
        info = common.FSDPMeshInfo(mesh=mesh, shard_mesh_dim=0)
    else:
        info = common.HSDPMeshInfo(mesh=mesh, shard_mesh_dim=1, replicate_mesh_dim=0)
    return common.ShardPlacementResult(placement=placement, mesh_info=info)
