"""Whole published tensors out of a sharded model, bucket by bucket: for a file, or for an inference engine.

Every rank writes the pieces that it holds into a zeroed buffer, and the buffers are summed over the world **as
bytes**: a byte is written by one rank and is zero on all others, so the sum is that byte, whatever its bits mean.
Sums of floats would turn -0.0 into 0.0 and lose the payload of a NaN. Of ranks that hold the same piece the first
contributes.

Cost: one all-reduce a bucket, which puts 2 (n - 1) / n times the bucket's bytes on each rank's wire (a ring of n
ranks), and leaves every rank with the whole tensors, as engines that sit beside every trainer need them. Memory:
one bucket here, and one that the consumer still holds while the next is made; nothing else is allocated.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from epbench.errors import CheckpointError
from epbench.hf_config import INDEX, SINGLE, config_json
from epbench.model.decoder import Decoder
from epbench.model.hf_names import hf_names, hf_order
from epbench.model.init import shard_box
from epbench.parallel.communication import Axis, all_reduce_
from epbench.parallel.gradients import is_first_replica
from epbench.wording import place, shown

__all__ = ["Bucket", "save_hf_weights", "stream_hf_weights"]

Bucket = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class _Entry:
    """One published tensor: a whole parameter of ours, or its row ``expert``."""

    name: str
    param: Tensor
    expert: int | None
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return self.param.shape if self.expert is None else self.param.shape[1:]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def stream_hf_weights(model: Decoder, bucket_bytes: int, *, dtype: torch.dtype | None = None) -> Iterator[Bucket]:
    """All weights under their published names, whole, in the published order; a collective over the world.

    Every rank must take every bucket. Tensors are of ``dtype``, or of their parameter's, on the parameters' device;
    the routers' correction biases are always fp32. They share their bucket's memory (at most ``bucket_bytes``), so a
    consumer that keeps one keeps the bucket. Tied embeddings come once, as published. Raises ValueError, before
    anything is communicated, naming a tensor that is larger than a bucket.
    """
    return map(_gather, _plan(model, bucket_bytes, dtype))


def save_hf_weights(model: Decoder, directory: Path | str, *, shard_bytes: int) -> None:
    """Writes a checkpoint that ``transformers`` loads: ``config.json`` and files of at most ``shard_bytes``.

    A collective; rank 0 writes, and holds up to two files' bytes while it does. The index comes last, by rename: a
    directory whose writing broke off has none and is no checkpoint. Raises ValueError for a model that is no
    published one, and CheckpointError on every rank if ``directory`` holds a checkpoint already or cannot be written.
    """
    config = config_json(model.spec)
    plan = _plan(model, shard_bytes, None)
    config["dtype"] = str(plan[0][0].dtype).removeprefix("torch.")
    directory, writer = Path(directory), _rank() == 0
    device = plan[0][0].param.device
    problem = _unusable(directory) if writer else None
    _all_or_nobody(problem, device)
    for number, entries in enumerate(plan, start=1):
        bucket = _gather(entries)  # also after a failed write: the other ranks wait for it
        if writer and not problem:
            problem = _written(bucket, directory / _file_name(number, of=len(plan)))
        del bucket  # before the next one is made
    if writer and not problem:
        problem = _finished(plan, directory, config)
    _all_or_nobody(problem, device)


# ---------------------------------------------------------------- what goes into which bucket


def _entries(model: Decoder, dtype: torch.dtype | None) -> Iterator[_Entry]:
    for name, param in model.named_parameters():
        names = hf_names(name, num_experts=model.spec.num_experts)
        experts: list[int | None] = [*range(len(names))] if ".experts." in name else [None]
        yield from (_Entry(hf, param, e, dtype or param.dtype) for hf, e in zip(names, experts, strict=True))
    for name, bias in model.named_buffers():  # fp32 for good: its steps vanish in a narrower dtype
        yield _Entry(hf_names(name, num_experts=0)[0], bias, None, bias.dtype)


def _plan(model: Decoder, bucket_bytes: int, dtype: torch.dtype | None) -> list[list[_Entry]]:
    """Buckets in order, each filled until the next tensor would not fit; the same on every rank."""
    plan: list[list[_Entry]] = []
    room = 0
    for entry in sorted(_entries(model, dtype), key=lambda entry: hf_order(entry.name)):
        if entry.nbytes > bucket_bytes:
            raise ValueError(f"{entry.name} has {entry.nbytes} bytes, which no bucket of {bucket_bytes} bytes holds")
        if entry.nbytes > room or plan[-1][0].dtype != entry.dtype:
            plan.append([])
            room = bucket_bytes
        plan[-1].append(entry)
        room -= entry.nbytes
    return plan


# ---------------------------------------------------------------- one bucket


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _sum_over_world(x: Tensor) -> Tensor:
    if not dist.is_initialized():
        return x
    group = dist.group.WORLD
    assert group is not None, "an initialised process group is the world"
    world = Axis("world", group.group_name, dist.get_world_size(), dist.get_rank())
    return all_reduce_(x, axis=world, purpose="weights")


def _contributes(param: Tensor) -> bool:
    """Whether this rank is the one that contributes the piece of ``param`` that it holds."""
    if not isinstance(param, DTensor):
        return _rank() == 0
    assert param.device_mesh.size() == dist.get_world_size(), "a parameter lives on a part of the world"
    return is_first_replica(param)


@torch.no_grad()
def _gather(entries: list[_Entry]) -> Bucket:
    """The whole tensors of one bucket, on every rank; a collective."""
    sizes = [prod(entry.shape) for entry in entries]
    flat = torch.zeros(sum(sizes), dtype=entries[0].dtype, device=entries[0].param.device)
    wholes = [part.view(entry.shape) for entry, part in zip(entries, flat.split(sizes), strict=True)]
    for entry, whole in zip(entries, wholes, strict=True):
        if _contributes(entry.param):
            _write_piece(entry, whole)
    _sum_over_world(flat.view(torch.uint8))
    return [(entry.name, whole) for entry, whole in zip(entries, wholes, strict=True)]


def _write_piece(entry: _Entry, whole: Tensor) -> None:
    param, box = entry.param, shard_box(entry.param)
    held = param.to_local() if isinstance(param, DTensor) else param
    if entry.expert is not None:
        row, (first, count) = entry.expert, box[0]
        if not first <= row < first + count:
            return
        held, box = held[row - first], box[1:]
    whole[tuple(slice(start, start + length) for start, length in box)] = held


# ---------------------------------------------------------------- files


def _unusable(directory: Path) -> str | None:
    """Makes the directory; why it cannot take a checkpoint, if it cannot."""
    try:
        if any((directory / name).exists() for name in (INDEX, SINGLE)):
            return f"{place(directory)}: holds a checkpoint already; remove it, or write elsewhere"
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{place(directory)}: cannot be made: {(error.strerror or 'unknown error').lower()}"
    return None


def _all_or_nobody(problem: str | None, device: torch.device) -> None:
    """Waits for all ranks; raises CheckpointError on every rank if one has a problem."""
    if int(_sum_over_world(torch.tensor(int(problem is not None), device=device))):
        raise CheckpointError(problem or "rank 0 cannot write the checkpoint; its message says why")


def _file_name(number: int, *, of: int) -> str:
    return f"model-{number:05d}-of-{of:05d}.safetensors"


def _written(bucket: Bucket, path: Path) -> str | None:
    """Writes one file; why that failed, if it did."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.cpu() for name, tensor in bucket}, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        return f"{place(path)}: cannot be written: {shown(str(error))}"
    return None


def _finished(plan: list[list[_Entry]], directory: Path, config: dict[str, Any]) -> str | None:
    """Writes the configuration and, last and by rename, the index; why that failed, if it did."""
    names = {entry.name: _file_name(i, of=len(plan)) for i, entries in enumerate(plan, start=1) for entry in entries}
    total = sum(entry.nbytes for entries in plan for entry in entries)
    index, draft = directory / INDEX, directory / f".{INDEX}.draft"
    index_json = {"metadata": {"total_size": total}, "weight_map": names}
    try:
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        draft.write_text(json.dumps(index_json, indent=2) + "\n", encoding="utf-8")
        draft.replace(index)
    except OSError as error:
        return f"{place(directory)}: cannot be written: {(error.strerror or 'unknown error').lower()}"
    return None
