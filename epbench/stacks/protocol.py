"""What the runner needs of a training stack, so that anyone's training step is measured with the same clock.

A stack is a function ``build(cell, world) -> Step``, found through the entry-point group ``epbench.stacks``.
The process group exists when it is called (NCCL on CUDA, gloo on CPU) and the device is set; the stack builds
the model on its own, in the cell's layout, and slices its share out of the global batch that it is handed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from epbench.cells import Cell
from epbench.errors import ScenarioError
from epbench.stack_support import check_stack, require_installed, stack_path

__all__ = [
    "BACKWARD_MARK",
    "Batch",
    "BuildStack",
    "InspectableStep",
    "ObservableStep",
    "ResidentTensors",
    "Step",
    "StepDescription",
    "World",
    "load_stack",
]

# A step that has each of its backwards inside ``torch.profiler.record_function(BACKWARD_MARK)`` is told in which phase
# its peak of memory is.
BACKWARD_MARK = "epbench:backward"


@dataclass(frozen=True)
class World:
    """This process among the ranks of a launch."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


class Batch(NamedTuple):
    """One optimizer step's data of ALL ranks, the same on every rank, on the device.

    ``tokens`` and ``labels`` are int64 of shape [global_batch_size, seq_len]; a label of -100 is not counted.

    ``cu_seqlens`` is there if documents are packed into rows: int32 [global_batch_size, documents + 1], per row 0
    and the ends of its documents, filled up with seq_len. Its shape is that of every step. Positions start anew
    in each document, and a token attends to its own document only.

    ``expert_ids`` is there if the routing is dictated: per MoE layer int64 [global_batch_size, seq_len, experts per
    token]. The scores stay the router's own. A stack that cannot obey must refuse.
    """

    tokens: Tensor
    labels: Tensor
    cu_seqlens: Tensor | None = None
    expert_ids: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class StepDescription:
    """What a built step says of itself; bytes are this rank's."""

    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    compile_strategy: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Step(Protocol):
    """One built training step. ``run`` is the timed region: it must not synchronise on its own account.

    A step that obeys ``Batch.expert_ids`` says so with an attribute ``obeys_expert_ids = True``; only then is it
    also verified in its own dtype, where a rounded score may choose another expert.
    """

    def run(self, batch: Batch) -> Tensor:
        """Zero gradients, forward, backward, clip, optimizer step.

        Returns the mean loss over all valid tokens of all ranks: a scalar on the device, equal on every rank.
        """
        ...

    def describe(self) -> StepDescription:
        """Sizes and choices, after at least one ``run`` (optimizer state exists)."""
        ...

    def grad_norm(self) -> Tensor | None:
        """Global gradient norm before clipping of the last ``run``, a scalar on the device; None if unknown."""
        ...

    def named_full_gradients(self) -> Iterator[tuple[str, Tensor]] | None:
        """(name, gradient of the whole parameter) of the last ``run``, after clipping; collective: call on all ranks.

        None if the stack cannot give them (then only the loss is verified, and the report marks it).
        """
        ...

    def expert_ids(self) -> list[Tensor] | None:
        """Per MoE layer the experts chosen for this rank's own tokens: int [tokens, experts per token]; None: unknown.

        Of the last micro-batch of the last ``run``.
        """
        ...


@runtime_checkable
class ObservableStep(Protocol):
    """A step whose routing can be recorded.

    ``on_micro_batch(rows, positions)``, if it is set, is called in ``run`` after the backward of every micro-batch,
    when ``expert_ids()`` are those of these rows of the global batch and these positions, row by row.
    """

    on_micro_batch: Callable[[range, range], None] | None


class ResidentTensors(NamedTuple):
    """What stays on this rank between steps; of a DTensor its local shard is meant."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    optimizer: Sequence[Tensor]

    @classmethod
    def of(cls, params: Iterable[Tensor], optimizer: Iterable[Tensor]) -> "ResidentTensors":
        """Parameters with the gradients that they have now, and the optimizer's state."""
        held = list(params)
        return cls(held, [param.grad for param in held if param.grad is not None], list(optimizer))


@runtime_checkable
class InspectableStep(Protocol):
    """A step whose memory at the peak can be told apart by what it is."""

    def resident_tensors(self) -> ResidentTensors:
        """The tensors as they are after a ``run``; it must not allocate on the device."""
        ...


BuildStack = Callable[[Cell, World], Step]


def _import(path: str) -> BuildStack:
    module, _, function = path.partition(":")
    try:
        return cast(BuildStack, getattr(import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise ScenarioError(f"train.stack: cannot load '{path}': {error}") from error


def load_stack(name: str) -> BuildStack:
    """The stack registered under ``name``, or at ``module:function``.

    Raises ScenarioError naming those that exist, and UnfitMachineError for a library that is missing.
    """
    check_stack(name, where="train.stack")
    require_installed([name])
    return _import(stack_path(name))
