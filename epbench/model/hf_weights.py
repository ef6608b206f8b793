"""Weights of a published checkpoint into our parameters: every rank reads the slices that it keeps, and no more.

The files are memory-mapped and sliced by name (safetensors), one slice at a time: a rank of ep = 8 never holds,
nor reads, another rank's experts. Before the first byte is read every name and shape is checked against the
model, from the files' headers, on every rank alike: a wrong checkpoint fails everywhere at once.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from epbench.errors import CheckpointError
from epbench.hf_config import weight_files
from epbench.model.decoder import Decoder
from epbench.model.hf_names import hf_names, our_name
from epbench.model.init import Box, shard_box
from epbench.wording import place, shown

__all__ = ["HFCheckpoint", "load_hf_weights", "open_checkpoint"]

_DTYPES = ("F32", "BF16", "F16")
_TIED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class HFCheckpoint:
    """The tensors of a directory by name; made by :func:`open_checkpoint`, usable until it is left."""

    def __init__(self, where: str, files: list[Any]) -> None:
        self.where = where
        self._file_of: dict[str, Any] = {}
        for file in files:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if name in self._file_of:
                    raise CheckpointError(f"{where}: {place(name)} is in two files; which one was trained?")
                self._file_of[name] = file

    @property
    def names(self) -> set[str]:
        """All tensors of all files."""
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor. Raises CheckpointError for a dtype whose numbers are not the weights themselves."""
        part = self._file_of[name].get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise CheckpointError(f"{self.where}: {name} is {part.get_dtype()}, and only {', '.join(_DTYPES)} are read")
        return tuple(part.get_shape())

    def read(self, name: str, box: Box) -> Tensor:
        """The part ``box`` of a tensor, of the file's dtype, on the CPU."""
        part: Tensor = self._file_of[name].get_slice(name)[tuple(slice(start, start + size) for start, size in box)]
        return part


@contextmanager
def open_checkpoint(directory: Path | str) -> Iterator[HFCheckpoint]:
    """Opens all files of a checkpoint; raises CheckpointError naming a file that is missing or damaged."""
    with ExitStack() as stack:
        files = []
        for path in weight_files(directory):
            try:
                files.append(stack.enter_context(safe_open(path, framework="pt")))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{place(path)}: is no safetensors file: {shown(str(error))}") from None
        yield HFCheckpoint(place(directory), files)


def load_hf_weights(model: Decoder, directory: Path | str) -> None:
    """Fills every parameter of ``model``, sharded or not, from a checkpoint, cast to the parameter's dtype.

    No collective: every rank reads its own slices from ``directory``. Layers that the file has beyond the model's
    are left alone. Raises CheckpointError naming the first tensor that is missing, that this model has no place
    for, or that is of another shape or dtype.
    """
    with open_checkpoint(directory) as checkpoint, torch.no_grad():
        _check(model, checkpoint)
        for name, param in model.named_parameters():
            _fill(name, param, checkpoint, num_experts=model.spec.num_experts)
        if _HEAD in checkpoint.names and model.spec.tie_word_embeddings:
            _check_tied(model.embed_tokens.weight, checkpoint)


def _wanted(model: Decoder) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of everything that the model needs."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, param in model.named_parameters():
        names = hf_names(name, num_experts=model.spec.num_experts)
        shape = tuple(param.shape)
        wanted |= dict.fromkeys(names, shape[1:] if ".experts." in name else shape)
    return wanted


def _check(model: Decoder, checkpoint: HFCheckpoint) -> None:
    wanted = _wanted(model)
    missing = [name for name in wanted if name not in checkpoint.names]
    if missing:
        raise CheckpointError(f"{checkpoint.where}: missing {_listed(missing)}")
    surplus = sorted(name for name in checkpoint.names - set(wanted) if not _left_alone(name, model))
    if surplus:
        raise CheckpointError(f"{checkpoint.where}: this model has no place for {_listed(surplus)}")
    for name, shape in wanted.items():
        if checkpoint.shape(name) != shape:
            raise CheckpointError(
                f"{checkpoint.where}: {name} has shape {list(checkpoint.shape(name))}, the model needs {list(shape)}"
            )


def _listed(names: list[str]) -> str:
    return f"{place(names[0])} and {len(names) - 1} more" if len(names) > 1 else place(names[0])


def _left_alone(name: str, model: Decoder) -> bool:
    """A layer beyond the model's, or the lm_head of tied embeddings, which is checked on its own."""
    if name == _HEAD:
        return model.spec.tie_word_embeddings
    try:
        ours = our_name(name).name
    except ValueError:
        return False
    return ours.startswith("layers.") and int(ours.split(".")[1]) >= model.spec.num_layers


def _local(param: Tensor) -> Tensor:
    return param.to_local() if isinstance(param, DTensor) else param.data


def _fill(name: str, param: Tensor, checkpoint: HFCheckpoint, *, num_experts: int) -> None:
    names, box, out = hf_names(name, num_experts=num_experts), shard_box(param), _local(param)
    if not out.numel():
        return
    if ".experts." not in name:
        out.copy_(checkpoint.read(names[0], box))
        return
    first, count = box[0]
    for row, expert in enumerate(names[first : first + count]):
        out[row].copy_(checkpoint.read(expert, box[1:]))


def _check_tied(embedding: Tensor, checkpoint: HFCheckpoint) -> None:
    """A file may repeat the tied weight, but not with other numbers: which one was trained?"""
    box, held = shard_box(embedding), _local(embedding)
    if held.numel() and not torch.equal(checkpoint.read(_TIED, box), checkpoint.read(_HEAD, box)):
        raise CheckpointError(f"{checkpoint.where}: tie_word_embeddings is true, but {_HEAD} differs from {_TIED}")
