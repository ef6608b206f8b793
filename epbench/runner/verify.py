"""Is the layout right? The same layout and code path on a shrunk model, in fp32, against one rank.

A number is worth printing only if the layout computes what one rank would: loss, every gradient (against its
largest entry), the norm, and the loss after one optimizer step. The parameters themselves are no test: Adam's
first step is the sign of rounding wherever a gradient is near zero. Experts start 8 times larger than
published, so that their output is about the residual and a wrong sum over ranks cannot hide (facts 4.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell, ModelSpec
from epbench.records import VerifyRecord
from epbench.runner.reference import ReferenceStep, reference_step
from epbench.stacks.data import batches
from epbench.stacks.protocol import Step, World, load_stack

__all__ = ["EXPERT_SCALE", "shrink", "verify_cell"]

EXPERT_SCALE = 8.0
FP32_EPSILON = 2.0**-23


def _at_most(value: int, bound: int, unit: int) -> int:
    """``value`` if it is small already, else the least multiple of ``unit`` that reaches ``bound``."""
    return value if value <= bound else min(value, -(-bound // unit) * unit)


def _layers(model: ModelSpec) -> int:
    """The fewest layers, two or more, that hold every kind of block the model has."""
    kinds = {model.is_moe_layer(i) for i in range(model.num_layers)}
    for count in range(2, model.num_layers):
        if {model.is_moe_layer(i) for i in range(count)} == kinds:
            return count
    return model.num_layers


def _shrink_model(cell: Cell) -> ModelSpec:
    model, layout = cell.model, cell.layout
    splits_experts = layout.efsdp * layout.ep > model.num_experts  # FSDP cuts inside experts, evenly
    unit = 16 * (layout.efsdp if splits_experts else 1)
    return model.model_copy(
        update={
            "num_layers": _layers(model),
            "hidden_size": _at_most(model.hidden_size, 64, unit),
            "moe_intermediate_size": _at_most(model.moe_intermediate_size, 32, unit * layout.etp),
            "intermediate_size": _at_most(model.intermediate_size, 128, 16 * layout.tp),
            "head_dim": _at_most(model.head_dim, 16, 16),
            "vocab_size": _at_most(model.vocab_size, 512, 16 * layout.tp),
            "expert_initializer_scale": EXPERT_SCALE,
            "checkpoint": None,  # its weights are of the published sizes
        }
    )


def shrink(cell: Cell) -> Cell:
    """The cell with small widths, in fp32: same layout, mode, routing, experts, top-k, heads and divisibility.

    At most two sequences a micro-batch and two micro-batches a step; sizes that are small already are kept.
    """
    layout, train = cell.layout, cell.train
    micro_batch = min(cell.micro_batch_size, 2)
    micro_batches = min(cell.num_micro_batches, 2)
    settings = {
        "seq_len": _at_most(train.seq_len, 128, layout.cp * layout.tp),
        "micro_batch_size": micro_batch,
        "global_batch_size": layout.data_ranks * micro_batch * micro_batches,
        "compute_dtype": "fp32",
        "reduce_dtype": "fp32",
        "data": "random",  # a file's token ids are beyond the small vocabulary
    }
    return cell.model_copy(update={"model": _shrink_model(cell), "train": train.model_copy(update=settings)})


@dataclass(frozen=True)
class _Errors:
    loss: float
    step: float
    norm: float | None
    gradient: float | None
    worst: str | None

    @property
    def largest(self) -> float:
        values = [x for x in (self.loss, self.step, self.norm, self.gradient) if x is not None]
        return max(x if isfinite(x) else float("inf") for x in values)


def _relative(value: float, reference: float) -> float:
    return abs(value - reference) / max(abs(reference), 1e-30)


def _gradient_errors(step: Step, reference: ReferenceStep) -> Iterator[tuple[float, str]]:
    gradients = step.named_full_gradients()
    if gradients is None:
        return
    rounding = FP32_EPSILON * max(_item(expected.abs().max()) for expected in reference.gradients.values())
    missing = set(reference.gradients)
    for name, gradient in gradients:
        expected = reference.gradients.get(name)
        if expected is None or expected.shape != gradient.shape:  # a foreign stack of another model
            yield float("inf"), name
        else:
            yield _gradient_error(gradient, expected, rounding=rounding), name
        missing.discard(name)
    yield from ((float("inf"), name) for name in sorted(missing))


def _gradient_error(gradient: Tensor, expected: Tensor, *, rounding: float) -> float:
    """Largest deviation over the largest entry.

    A gradient that is zero by construction (the router's, with one expert per token and normalised scores) is
    nothing but rounding on one rank, below ``rounding`` everywhere; then the layout's must be that too.
    """
    largest = _item(expected.abs().max())
    if largest <= rounding:
        return 0.0 if _item(gradient.abs().max()) <= rounding else float("inf")
    return _item((gradient - expected).abs().max()) / largest


def _item(x: Tensor) -> float:
    value = float(x)
    return value if isfinite(value) else float("inf")


def _errors(cell: Cell, world: World, *, scope: str) -> _Errors:
    batch = batches(cell, 1, world.device)[0]
    reference = reference_step(cell, batch, world.device)
    step = load_stack(cell.train.stack)(cell, world)
    loss, norm = _item(step.run(batch)), step.grad_norm()
    gradients = list(_gradient_errors(step, reference)) if scope == "full" else []
    worst, name = max(gradients, default=(None, None), key=lambda pair: pair[0] or 0.0)
    return _Errors(
        loss=_relative(loss, reference.loss),
        step=_relative(_item(step.run(batch)), reference.next_loss),
        norm=None if norm is None else _relative(_item(norm), reference.norm),
        gradient=worst,
        worst=name,
    )


def _worst_over_ranks(errors: _Errors) -> _Errors:
    every: list[_Errors | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, errors)
    return max((each for each in every if each is not None), key=lambda each: each.largest)


def verify_cell(cell: Cell, world: World, *, scope: Literal["full", "loss"] = "full", tolerance: float) -> VerifyRecord:
    """Runs one shrunk step in the cell's layout and on one rank; collective, the same record on all ranks.

    ``tolerance`` is relative and the same for all four errors. A stack that gives no gradients is verified on
    its losses only, and the record's scope says so.
    """
    if torch.get_float32_matmul_precision() != "highest":  # setting it anew would miss every compile cache
        torch.set_float32_matmul_precision("highest")
    errors = _worst_over_ranks(_errors(shrink(cell), world, scope=scope))
    return VerifyRecord(
        scope="loss" if errors.gradient is None else "full",
        loss_error=errors.loss,
        grad_error=errors.gradient,
        worst_parameter=errors.worst,
        norm_error=errors.norm,
        step_error=errors.step,
        tolerance=tolerance,
        passed=errors.largest <= tolerance,
    )
