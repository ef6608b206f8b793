"""What most people train with: Qwen3MoeForCausalLM of transformers under FSDP2, behind the stack protocol.

The model is transformers' own (its attention by SDPA, its experts by grouped products), spread as its users do:
``fully_shard`` on the embedding, on each decoder layer and on norm and head, ``torch.compile`` and checkpointing
layer by layer. Equal work is ours: the same initial weights, tokens, loss sum, clipping and AdamW as for every other
stack, so that what differs between two rows is the model's code and nothing around it. What this stack does not
have (tp, ep, ...) is in :mod:`epbench.stack_support`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from epbench.cells import Cell, TrainSpec
from epbench.errors import ScenarioError
from epbench.model.attention import positions_in_documents
from epbench.parallel.compilation import compile_backend
from epbench.parallel.data import DTYPES, store_as
from epbench.parallel.gradients import whole_gradient
from epbench.parallel.mesh import ParallelDims
from epbench.parallel.optimizer import ShardedAdamW, clip_and_step
from epbench.parallel.routing import ForcedRouting
from epbench.stack_support import unsupported
from epbench.stacks.protocol import BACKWARD_MARK, Batch, ResidentTensors, StepDescription, World
from epbench.stacks.transformers_model import (
    ATTENTION,
    EXPERTS,
    CausalLM,
    build_model,
    gates,
    init_published,
    pieces,
    rebuild_rotary,
)

__all__ = ["TransformersStep", "build"]

COMPILE_STRATEGY = "decoder layers, graph breaks allowed and counted"


def build(cell: Cell, world: World) -> "TransformersStep":
    """Meta device -> compile, checkpointing, FSDP -> empty shards -> initial weights.

    Raises ScenarioError for a cell that :func:`epbench.stack_support.unsupported` refuses.
    """
    reasons = unsupported(cell)
    if reasons:
        raise ScenarioError("; ".join(reasons))
    dims = ParallelDims.build(cell.layout, device=world.device)
    model = build_model(cell.model, cp=dims.axis("cp") if cell.layout.cp > 1 else None)
    store_as(model, cell.train.master_dtype)
    _wrap_layers(model, cell)
    _shard(model, dims, cell.train)
    model.to_empty(device=world.device)
    rebuild_rotary(model, world.device)
    init_published(model, cell.model, seed=cell.train.seed)
    return TransformersStep(cell, world, dims, model)


def _wrap_layers(model: CausalLM, cell: Cell) -> None:
    """Compiles and checkpoints each layer inside of FSDP's hooks, which gather its weights before both."""
    for layer in model.model.layers:
        forward = layer.forward
        if cell.mode == "compiled":
            forward = torch.compile(forward, backend=compile_backend())
        if cell.train.activation_checkpointing == "full":
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = forward


def _shard(model: CausalLM, dims: ParallelDims, train: TrainSpec) -> None:
    """FSDP2 that sums gradients: the loss is the local sum over the global number of tokens already."""
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[train.compute_dtype], reduce_dtype=DTYPES[train.reduce_dtype], cast_forward_inputs=False
    )
    shard = partial(fully_shard, mesh=dims.fsdp_mesh(), mp_policy=policy)
    for module in (model.model.embed_tokens, *model.model.layers):
        shard(module, reshard_after_forward=train.reshard_after_forward)
    shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _keep_choice(gate: Any, _inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    gate.last_ids.copy_(output[2])


def _force_choice(
    gate: Any, _inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces the router's choice, if one is dictated, and keeps its scores: probabilities gathered, normalised."""
    if gate.forced_ids is None:
        return output
    logits_TE, scores_TK, _ = output
    scores = logits_TE.float().softmax(dim=-1).gather(1, gate.forced_ids)
    if gate.norm_topk_prob:
        scores = scores / scores.sum(dim=-1, keepdim=True)
    return logits_TE, scores.to(scores_TK.dtype), gate.forced_ids


class TransformersStep:
    """One training step of one cell; see :class:`epbench.stacks.protocol.Step`."""

    obeys_expert_ids = True

    def __init__(self, cell: Cell, world: World, dims: ParallelDims, model: CausalLM) -> None:
        self.cell, self.dims, self.model = cell, dims, model
        self._device = world.device
        self._world = dims.axis("world")
        self._params = dict(model.named_parameters())
        self._optimizer = ShardedAdamW(self._params.values(), cell.train)
        self._norm: Tensor | None = None
        length = cell.train.seq_len // cell.layout.cp
        self._chunk = range(dims.coordinate("cp") * length, (dims.coordinate("cp") + 1) * length)
        self._held = slice(self._chunk.start, self._chunk.stop)
        self._positions = torch.arange(self._chunk.start, self._chunk.stop, device=world.device).unsqueeze(0)
        self._forced = ForcedRouting.of(cell, rows=self._rows(), positions=self._chunk, device=world.device)
        self._gates = list(gates(model))
        for gate in self._gates:
            self._prepare(gate)
        self.on_micro_batch: Callable[[range, range], None] | None = None

    def _rows(self) -> range:
        """Rows of the global batch that this rank has a part of, over all micro-batches."""
        rows = self.cell.micro_batch_size * self.cell.num_micro_batches
        return range(self.dims.coordinate("data") * rows, (self.dims.coordinate("data") + 1) * rows)

    def _prepare(self, gate: Any) -> None:
        """Room for a choice that is dictated, and for the record of the one that is made."""
        shape = (self._positions.numel() * self.cell.micro_batch_size, self.cell.model.num_experts_per_tok)
        gate.last_ids = torch.zeros(shape, dtype=torch.int64, device=self._device)
        gate.forced_ids = None
        gate.register_forward_hook(_force_choice)
        gate.register_forward_hook(_keep_choice)

    def _dictate(self, batch: Batch, micro_batch: int, rows: slice) -> None:
        """Hands each router the experts that a batch dictates for the tokens it will see, else those of the cell."""
        ids: Sequence[Tensor | None] = [None] * len(self._gates)
        if batch.expert_ids is not None:
            ids = [ids_BSK[rows, self._held].flatten(0, 1) for ids_BSK in batch.expert_ids]
        elif self._forced is not None:
            ids = self._forced.enforce(micro_batch)
        for gate, ids_TK in zip(self._gates, ids, strict=True):
            gate.forced_ids = ids_TK

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """This rank's rows and cp chunk of tokens, labels and positions, and the documents of whole rows."""
        mine = self._rows()
        for index in range(self.cell.num_micro_batches):
            own = mine[index * self.cell.micro_batch_size :][: self.cell.micro_batch_size]
            rows = slice(own.start, own.stop)
            self._dictate(batch, index, rows)
            part, positions, documents = (rows, self._held), self._positions, None
            if batch.cu_seqlens is not None:
                documents = batch.cu_seqlens[rows]
                positions = positions_in_documents(documents, self.cell.train.seq_len)[:, self._held]
            yield batch.tokens[part], batch.labels[part], positions, documents
            if self.on_micro_batch is not None:
                self.on_micro_batch(own, self._chunk)

    def run(self, batch: Batch) -> Tensor:
        """One optimizer step; returns the global mean loss."""
        for param in self._params.values():
            param.grad = None
        scale = (batch.labels != -100).sum().float().reciprocal()
        loss = torch.zeros((), device=self._device)
        for tokens, labels, positions, documents in self._micro_batches(batch):
            part = self.model(tokens, labels, scale, positions, documents)
            with record_function(BACKWARD_MARK):
                part.backward()
            loss += part.detach()
        limit = self.cell.train.max_grad_norm
        mean, self._norm = clip_and_step(
            self._optimizer, self._params.values(), loss, world=self._world, max_norm=limit
        )
        return mean

    def grad_norm(self) -> Tensor | None:
        """Global norm before clipping."""
        return self._norm

    def named_full_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Whole gradients under our names: each published one is gathered, then cut."""
        where = pieces(self.cell.model)
        for name, param in self._params.items():
            whole = whole_gradient(param, world=self._world)
            for piece in where[name]:
                yield piece.ours, whole.narrow(piece.dim, piece.start, piece.shape[piece.dim])

    def expert_ids(self) -> list[Tensor]:
        """Per MoE layer the router's choice for this rank's tokens."""
        return [gate.last_ids for gate in self._gates]

    def resident_tensors(self) -> ResidentTensors:
        """This rank's shards."""
        return ResidentTensors.of(self._params.values(), self._optimizer.state_tensors)

    def describe(self) -> StepDescription:
        """Sizes of this rank's shards, and which implementations ran."""
        resident = self._optimizer.parameter_bytes
        return StepDescription(
            parameters=sum(param.numel() for param in self._params.values()),
            parameter_bytes=resident,
            gradient_bytes=resident,
            optimizer_bytes=self._optimizer.state_bytes,
            compile_strategy=COMPILE_STRATEGY if self.cell.mode == "compiled" else None,
            notes={"transformers": transformers.__version__, "attention": ATTENTION, "experts": EXPERTS},
        )
