"""Is the layout right? The same layout and code path on a shrunk model, in fp32, against one rank.

A number is worth printing only if the layout computes what one rank would: loss, every gradient (against its
largest entry), the norm, and the loss after one optimizer step. The parameters themselves are no test: Adam's
first step is the sign of rounding wherever a gradient is near zero. Experts start 8 times larger than
published, so that their output is about the residual and a wrong sum over ranks cannot hide (facts 4.1).

A cell that computes in another dtype is then run once more in that dtype, against the same reference. A score that
rounds otherwise would choose another expert and change everything after it, so the reference's choice is dictated
to it. What is left is rounding, and is held to ``OWN_DTYPE_BOUNDS``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell, ModelSpec
from epbench.records import OwnDtypeRecord, VerifyRecord
from epbench.runner.reference import ReferenceStep, shared_reference_step
from epbench.stacks.data import batches
from epbench.stacks.protocol import Batch, Step, World, load_stack

__all__ = ["EXPERT_SCALE", "OWN_DTYPE_BOUNDS", "shrink", "verify_batch", "verify_cell"]

EXPERT_SCALE = 8.0
# in bf16 one rank alone is off by about 1e-5, 1e-3 and 3e-2: eight bits of mantissa through a few layers
OWN_DTYPE_BOUNDS = {"loss_bound": 1e-3, "norm_bound": 1e-2, "grad_bound": 6e-2}
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
    expert_ranks = layout.tp if model.n_shared_experts else layout.etp  # tp splits shared experts in any case
    return model.model_copy(
        update={
            "num_layers": _layers(model),
            "hidden_size": _at_most(model.hidden_size, 64, unit),
            "moe_intermediate_size": _at_most(model.moe_intermediate_size, 32, unit * expert_ranks),
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
        "master_dtype": "fp32",
        "reduce_dtype": "fp32",
        "data": "random",  # a file's token ids are beyond the small vocabulary
    }
    return cell.model_copy(update={"model": _shrink_model(cell), "train": train.model_copy(update=settings)})


@dataclass(frozen=True)
class _Errors:
    """Relative errors of one rank, or of the worst; None: not judged."""

    loss: float
    step: float | None
    norm: float | None
    gradient: float | None
    worst: str | None  # the parameter of ``gradient``

    @property
    def largest(self) -> float:
        values = [x for x in (self.loss, self.step, self.norm, self.gradient) if x is not None]
        return max(x if isfinite(x) else float("inf") for x in values)

    def within(self, *, loss_bound: float, norm_bound: float, grad_bound: float) -> bool:
        """Whether each error keeps to its own bound."""
        pairs = ((self.loss, loss_bound), (self.norm, norm_bound), (self.gradient, grad_bound))
        return all(error is None or error <= bound for error, bound in pairs)  # NaN is not


def _relative(value: float, reference: float) -> float:
    return abs(value - reference) / max(abs(reference), 1e-30)


def _gradient_errors(step: Step, reference: ReferenceStep, error: "GradientError") -> Iterator[tuple[float, str]]:
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
            yield error(gradient.float(), expected, rounding), name
        missing.discard(name)
    yield from ((float("inf"), name) for name in sorted(missing))


GradientError = Callable[[Tensor, Tensor, float], float]


def _norm_error(gradient: Tensor, expected: Tensor, rounding: float) -> float:
    """Norm of the deviation over the norm; a gradient that is nothing but rounding is not judged."""
    if _item(expected.abs().max()) <= rounding:
        return 0.0
    return _item((gradient - expected).norm()) / _item(expected.norm())


def _largest_error(gradient: Tensor, expected: Tensor, rounding: float) -> float:
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


def _first_errors(step: Step, batch: Batch, reference: ReferenceStep, *, error: "GradientError", scope: str) -> _Errors:
    """Of the first step of ``step``; the loss after it is not judged yet."""
    loss, norm = _item(step.run(batch)), step.grad_norm()
    gradients = list(_gradient_errors(step, reference, error)) if scope == "full" else []
    worst, name = max(gradients, default=(None, None), key=lambda pair: pair[0] or 0.0)
    return _Errors(
        loss=_relative(loss, reference.loss),
        step=None,
        norm=None if norm is None else _relative(_item(norm), reference.norm),
        gradient=worst,
        worst=name,
    )


def _errors(cell: Cell, world: World, case: "_Case", *, scope: str) -> _Errors:
    step = load_stack(cell.train.stack)(cell, world)
    errors = _first_errors(step, case.batch, case.reference, error=_largest_error, scope=scope)
    after = _relative(_item(step.run(case.batch)), case.reference.next_loss)
    return _worst_over_ranks(replace(errors, step=after))


@dataclass(frozen=True)
class _Case:
    """What the layout and one rank are both given, and what one rank made of it."""

    batch: Batch
    reference: ReferenceStep


def _own_dtype(cell: Cell, world: World, case: _Case, *, scope: str) -> OwnDtypeRecord | None:
    """``cell`` in its own dtype with the reference's routing; None if that is fp32, or the stack takes no orders."""
    if cell.train.compute_dtype == "fp32":
        return None
    step = load_stack(cell.train.stack)(cell, world)
    if not getattr(step, "obeys_expert_ids", False):
        return None
    batch = case.batch._replace(expert_ids=case.reference.expert_ids)
    errors = _worst_over_ranks(_first_errors(step, batch, case.reference, error=_norm_error, scope=scope))
    return OwnDtypeRecord(
        dtype=cell.train.compute_dtype,
        loss_error=errors.loss,
        grad_error=errors.gradient,
        worst_parameter=errors.worst,
        norm_error=errors.norm,
        **OWN_DTYPE_BOUNDS,
        passed=errors.within(**OWN_DTYPE_BOUNDS),
    )


def _worst(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max((value if isfinite(value) else float("inf") for value in known), default=None)


def _worst_over_ranks(errors: _Errors) -> _Errors:
    """Each error on the rank where it is worst: with bounds of their own, a large one must not hide another's."""
    gathered: list[_Errors | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, errors)
    every = [each for each in gathered if each is not None]
    gradient = _worst(each.gradient for each in every)
    loss = _worst(each.loss for each in every)
    assert loss is not None, "every rank has a loss"
    return _Errors(
        loss=loss,
        step=_worst(each.step for each in every),
        norm=_worst(each.norm for each in every),
        gradient=gradient,
        worst=next((each.worst for each in every if each.gradient == gradient), None),
    )


OnStage = Callable[[str], object]


def _unheard(_stage: str) -> None:
    return


def verify_cell(
    cell: Cell,
    world: World,
    *,
    scope: Literal["full", "loss"] = "full",
    tolerance: float,
    on_stage: OnStage = _unheard,
) -> VerifyRecord:
    """Runs one shrunk step in the cell's layout and on one rank; collective, the same record on all ranks.

    ``tolerance`` is relative and the same for all four errors. A stack that gives no gradients is verified on
    its losses only, and the record's scope says so. ``on_stage`` is told what begins: ``reference``, ``layout``,
    ``own_dtype``.
    """
    batch = batches(shrink(cell), 1, world.device)[0]
    return verify_batch(cell, world, batch, scope=scope, tolerance=tolerance, on_stage=on_stage)


def verify_batch(
    cell: Cell,
    world: World,
    batch: Batch,
    *,
    scope: Literal["full", "loss"] = "full",
    tolerance: float,
    on_stage: OnStage = _unheard,
) -> VerifyRecord:
    """As :func:`verify_cell`, with a global batch of the shrunk cell's shape; its experts may be dictated."""
    if torch.get_float32_matmul_precision() != "highest":  # setting it anew would miss every compile cache
        torch.set_float32_matmul_precision("highest")
    small = shrink(cell)
    on_stage("reference")
    case = _Case(batch, shared_reference_step(small, batch, world.device))
    on_stage("layout")
    errors = _errors(small, world, case, scope=scope)
    on_stage("own_dtype")
    in_own_dtype = {key: getattr(cell.train, key) for key in ("compute_dtype", "master_dtype", "reduce_dtype")}
    own = _own_dtype(
        small.model_copy(update={"train": small.train.model_copy(update=in_own_dtype)}), world, case, scope=scope
    )
    return VerifyRecord(
        scope="loss" if errors.gradient is None else "full",
        loss_error=errors.loss,
        grad_error=errors.gradient,
        worst_parameter=errors.worst,
        norm_error=errors.norm,
        step_error=errors.step,
        tolerance=tolerance,
        own_dtype=own,
        passed=errors.largest <= tolerance and (own is None or own.passed),
    )
