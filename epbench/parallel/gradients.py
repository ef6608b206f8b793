"""The global gradient norm over parameters on different meshes, and clipping, without a host sync.

``torch.nn.utils.get_total_norm`` refuses parameters of different meshes. Here every rank sums the squares of
its shards, each divided by the number of ranks that hold the same shard, and one all-reduce over the world
gives the whole: dense, tensor-parallel, replicated and expert weights alike.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from epbench.model.init import shard_box
from epbench.parallel.communication import Axis, all_reduce_

__all__ = ["clip_", "is_first_replica", "local_gradients", "num_replicas", "sum_of_squares", "whole_gradient"]


def num_replicas(param: Tensor, world_size: int) -> int:
    """How many ranks of the world hold the same part of ``param``."""
    if not isinstance(param, DTensor):
        return world_size
    mesh = param.device_mesh
    split = (axis for axis, placement in enumerate(param.placements) if not placement.is_replicate())
    return world_size // math.prod(mesh.size(axis) for axis in split)


def is_first_replica(param: Tensor) -> bool:
    """Whether this rank comes first among those that hold the same part of ``param``."""
    if not isinstance(param, DTensor):  # experts of a world of one rank
        return True
    coordinate = param.device_mesh.get_coordinate()
    assert coordinate is not None, "a rank outside the parameter's mesh holds nothing of it"
    return all(at == 0 for at, where in zip(coordinate, param.placements, strict=True) if where.is_replicate())


def local_gradients(params: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(parameter, this rank's part of its gradient) of those that have a gradient."""
    pairs = ((param, param.grad) for param in params if param.grad is not None)
    return [(param, grad._local_tensor if isinstance(grad, DTensor) else grad) for param, grad in pairs]


def whole_gradient(param: Tensor, *, world: Axis) -> Tensor:
    """The gradient of the whole parameter, put together from the shards of the first replica; a collective."""
    assert param.grad is not None, "a parameter without a gradient took no part in the step"
    local = param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad
    whole = torch.zeros(param.shape, dtype=local.dtype, device=local.device)
    if is_first_replica(param):
        whole[tuple(slice(start, start + length) for start, length in shard_box(param))] = local
    return all_reduce_(whole, axis=world, purpose="norm")


def sum_of_squares(gradients: Iterable[tuple[Tensor, Tensor]], *, world_size: int, device: torch.device) -> Tensor:
    """This rank's share of the squared norm, fp32 scalar: summed over the world it is the squared norm."""
    groups: dict[int, list[Tensor]] = defaultdict(list)
    for param, grad in gradients:
        if grad.numel():
            groups[num_replicas(param, world_size)].append(grad)
    total = torch.zeros((), device=device)
    for replicas, grads in groups.items():
        norms = torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float32))
        total += norms.square().sum() / replicas
    return total


def clip_(gradients: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scales the gradients in place to a norm of at most ``max_norm``; 0 leaves them as they are."""
    if max_norm > 0:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([grad for grad in gradients if grad.numel()], factor)
