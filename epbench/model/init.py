"""Initial weights that depend on (seed, parameter name, global index) and on nothing else.

Each element is a counter-based random number of its own global index, so a rank fills its shard without ever
holding the whole parameter, and every layout on every device starts from the same model. The generator is
that of :mod:`epbench.model.counter_based` with Box-Muller; norms start at one.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from epbench.model.counter_based import key_of, logical_shift, splitmix64

__all__ = ["Box", "init_part", "init_weights", "normal_box", "shard_box"]

Box = tuple[tuple[int, int], ...]  # (start, length) on every dim of the whole parameter

_CHUNK = 1 << 24  # elements made at a time: bounds the int64 scratch to a few hundred MB


def _standard_normal(index: Tensor, seed: int) -> Tensor:
    bits = splitmix64(index, seed)
    scale = 2.0**-24
    radius = (logical_shift(bits, 40).float() + 0.5) * scale
    angle = (logical_shift(bits << 24, 40).float() + 0.5) * scale
    return (-2.0 * radius.log()).sqrt() * (2.0 * math.pi * angle).cos()


def normal_box(name: str, shape: torch.Size, box: Box, *, seed: int, std: float, out: Tensor) -> None:
    """Fills ``out`` with the part ``box`` of the parameter ``name`` of whole ``shape``: normal, mean 0, ``std``."""
    key = key_of(f"{seed}/{name}")
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    inner = torch.zeros((), dtype=torch.int64, device=out.device)
    for (start, length), stride in zip(box[1:], strides[1:], strict=True):
        inner = inner.unsqueeze(-1) + (torch.arange(length, device=out.device) + start) * stride
    start, length = box[0]
    rows_at_once = max(1, _CHUNK // max(1, inner.numel()))
    for row in range(0, length, rows_at_once):
        rows = torch.arange(row, min(row + rows_at_once, length), device=out.device) + start
        index = (rows * strides[0]).view(-1, *[1] * inner.dim()) + inner
        out[row : row + rows_at_once] = _standard_normal(index, key) * std


def shard_box(param: Tensor) -> Box:
    """Which part of the whole parameter this rank holds.

    FSDP2 shards what tensor or expert parallelism left, so the mesh dims cut in order from last to first
    (which is what a ``_StridedShard`` placement on the first says).
    """
    box = [(0, size) for size in param.shape]
    if isinstance(param, DTensor):
        mesh, coordinate = param.device_mesh, param.device_mesh.get_coordinate()
        assert coordinate is not None, "a rank outside the parameter's mesh holds nothing of it"
        for axis in reversed(range(mesh.ndim)):
            placement = param.placements[axis]
            if isinstance(placement, (Shard, _StridedShard)):
                start, length = box[placement.dim]
                chunk = -(-length // mesh.size(axis))
                begin = min(coordinate[axis] * chunk, length)
                box[placement.dim] = (start + begin, min(chunk, length - begin))
    return tuple(box)


def init_part(
    name: str, shape: torch.Size, box: Box, *, seed: int, std: float, expert_scale: float = 1.0, out: Tensor
) -> None:
    """Fills ``out``, the part ``box`` of parameter ``name``: a vector (norm) with one, a matrix with normal numbers.

    ``expert_scale`` multiplies the experts' weights: at the published std their output is so small against the
    residual that a wrong sum over ranks hides in the tolerance (facts 4.1), so tests use 8.
    """
    assert tuple(out.shape) == tuple(length for _, length in box), f"{name}: {out.shape} is not {box}"
    if len(shape) == 1:
        out.fill_(1.0)
    elif out.numel():
        scale = expert_scale if ".experts." in name else 1.0
        normal_box(name, shape, box, seed=seed, std=std * scale, out=out)


@torch.no_grad()
def init_weights(model: nn.Module, *, seed: int, std: float, expert_scale: float = 1.0) -> None:
    """Fills every parameter, sharded or not; see :func:`init_part`."""
    for name, param in model.named_parameters():
        out = param.to_local() if isinstance(param, DTensor) else param.data
        init_part(name, param.shape, shard_box(param), seed=seed, std=std, expert_scale=expert_scale, out=out)
