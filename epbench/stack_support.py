"""Which training stacks there are, and what each of our own can run: known without importing any of them.

``epbench plan`` refuses a stack that is not installed, and makes a ``skipped`` row, with every reason, of a cell
that its stack does not support. A foreign stack is asked nothing: it raises in its ``build``.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from epbench.cells import Cell
from epbench.errors import ScenarioError, UnfitMachineError
from epbench.wording import either, place, shown, suggestion

__all__ = ["check_stack", "known_stacks", "library_versions", "require_installed", "stack_path", "unsupported"]

_BUILT_IN = MappingProxyType(
    {
        "qwen3_moe": "epbench.stacks.qwen3_moe:build",
        "transformers": "epbench.stacks.transformers:build",
    }
)
_REQUIRES = MappingProxyType({"transformers": ("transformers", "pip install 'epbench[transformers]'")})

_TRANSFORMERS: MappingProxyType[str, tuple[object, ...]] = MappingProxyType(
    {
        "model.scoring_func": ("softmax",),
        "model.routed_scaling_factor": (1.0,),
        "model.n_group": (1,),
        "model.topk_group": (1,),
        "model.router_bias_update_rate": (0.0,),
        "model.n_shared_experts": (0,),
        "model.score_before_experts": (False,),
        "model.tie_word_embeddings": (False,),
        "model.checkpoint": (None,),
        "train.activation_checkpointing": ("none", "full"),
        "train.dispatcher": ("all_to_all",),
        "train.overlap": ("none",),
    }
)


def known_stacks() -> dict[str, str]:
    """Name and ``module:function`` of every stack that is installed, our own first.

    Our own are found without an installation too, for machines where a checkout is all there is; and no package can
    put another stack under their names.
    """
    registered = {point.name: point.value for point in entry_points(group="epbench.stacks")}
    return dict(_BUILT_IN) | {name: path for name, path in registered.items() if name not in _BUILT_IN}


def stack_path(name: str) -> str:
    """``module:function`` of a stack that is installed or written so; empty for a name that nobody knows."""
    return name if ":" in name else known_stacks().get(name, "")


def library_versions(stacks: Iterable[str]) -> list[str]:
    """``library==version`` of what our own stacks among ``stacks`` stand on beside torch, where it is installed."""
    libraries = sorted({_REQUIRES[stack][0] for stack in stacks if stack in _REQUIRES})
    return [f"{library}=={version(library)}" for library in libraries if find_spec(library) is not None]


def check_stack(name: str, *, where: str) -> None:
    """Raise ScenarioError, naming those that exist, for a ``train.stack`` that cannot be meant.

    A ``module:function`` is looked for where the ranks run and not here, for it may live on their path only.
    """
    module, colon, function = name.partition(":")
    if colon:
        if not all(part.isidentifier() for part in [*module.split("."), function]):
            raise ScenarioError(f"{where}: train.stack = {shown(name)} must read like package.module:function")
    elif name not in _BUILT_IN and name not in (known := known_stacks()):
        raise ScenarioError(f"{where}: no stack named {shown(name)} is installed{suggestion(name, tuple(known))}")


def require_installed(stacks: Iterable[str]) -> None:
    """Raise UnfitMachineError if the machine lacks a library that one of ``stacks`` stands on."""
    for stack in sorted(set(stacks)):
        library, command = _REQUIRES.get(stack, (None, None))
        if library is not None and find_spec(library) is None:
            raise UnfitMachineError(f"train.stack = {stack} needs the library {library}, not installed here: {command}")


def unsupported(cell: Cell) -> list[str]:
    """Why the cell's stack cannot run it, one sentence each; empty if it can, or is not one of ours."""
    return list(_not_in_transformers(cell)) if cell.train.stack == "transformers" else []


def _not_in_transformers(cell: Cell) -> Iterator[str]:
    layout = cell.layout
    split = [f"{axis} = {degree}" for axis in ("tp", "ep", "etp") if (degree := getattr(layout, axis)) > 1]
    if split:
        yield f"stack transformers runs rep, dp and cp, and has no {', '.join(split)}"
    for key, values in _TRANSFORMERS.items():
        value = _value(cell, key)
        if value not in values:
            yield f"stack transformers has no {key} = {_text(value)} (only {either(map(_text, values))})"


def _value(cell: Cell, key: str) -> Any:
    table, _, name = key.rpartition(".")
    return getattr(getattr(cell, table) if table else cell, name)


def _text(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else place(value)
