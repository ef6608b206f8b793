"""Files of expert ids: one NumPy array [MoE layers, rows, positions, experts per token], mapped, never read whole.

Row and position are those of the first step's global batch, so a file recorded under one layout is the same routing
under any other. A scenario that needs less of it (fewer layers, shorter rows, the small verification) takes the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epbench.array_file import open_integers
from epbench.cells import ModelSpec, TrainSpec
from epbench.errors import ScenarioError
from epbench.wording import place

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_routing_file", "new_routing", "open_routing"]

_AXES = ("MoE layers", "rows", "positions")


def open_routing(path: Path | str) -> "np.ndarray[Any, Any]":
    """The ids in a .npy file, mapped; raises ScenarioError if they are not four dimensions of integers."""
    return open_integers(path, what="expert ids", ndim=4)


def check_routing_file(path: Path, model: ModelSpec, train: TrainSpec) -> None:
    """Raises ScenarioError unless the file routes every token of a step to experts that the model has."""
    ids = open_routing(path)
    needed = (model.num_moe_layers, train.global_batch_size, train.seq_len)
    for name, has, needs in zip(_AXES, ids.shape, needed, strict=False):
        if has < needs:
            raise ScenarioError(f"{place(path)}: has {has} {name}, and the cell needs {needs}")
    if ids.shape[3] != model.num_experts_per_tok:
        chosen = f"{ids.shape[3]} experts per token, and the model chooses {model.num_experts_per_tok}"
        raise ScenarioError(f"{place(path)}: has {chosen}")
    for layer in range(model.num_moe_layers):
        _check_layer(ids[layer, : needed[1], : needed[2]], layer, model.num_experts, where=place(path))


def _check_layer(ids_BSK: "np.ndarray[Any, Any]", layer: int, num_experts: int, *, where: str) -> None:
    import numpy as np

    ordered = np.sort(ids_BSK, axis=-1)
    lowest, highest = int(ordered[..., 0].min()), int(ordered[..., -1].max())
    if lowest < 0 or highest >= num_experts:
        wrong = lowest if lowest < 0 else highest
        raise ScenarioError(f"{where}: MoE layer {layer} has expert id {wrong}; the model's are 0 to {num_experts - 1}")
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise ScenarioError(f"{where}: MoE layer {layer} sends a token to one expert twice")


@contextmanager
def new_routing(path: Path, shape: tuple[int, int, int, int], *, num_experts: int) -> "Iterator[np.memmap[Any, Any]]":
    """A file of expert ids to be filled in, of the smallest dtype that holds them; it gets its name when it is full."""
    import numpy as np
    from numpy.lib.format import open_memmap

    unfinished = path.with_suffix(".part")
    ids = open_memmap(unfinished, mode="w+", dtype=np.min_scalar_type(num_experts - 1), shape=shape)
    yield ids
    ids.flush()
    unfinished.replace(path)
