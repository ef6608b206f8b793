"""Our own training stack behind the stack protocol: Qwen3-MoE in any legal layout, one optimizer step at a time."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from epbench.cells import Cell
from epbench.model.attention import Sequences, packed
from epbench.model.decoder import Block, Decoder
from epbench.model.init import init_weights
from epbench.model.router import Router, zero_biases
from epbench.parallel.apply import parallelize
from epbench.parallel.balance import Balance
from epbench.parallel.data import store_as
from epbench.parallel.gradients import whole_gradient
from epbench.parallel.mesh import ParallelDims
from epbench.parallel.optimizer import ShardedAdamW, clip_and_step
from epbench.parallel.routing import ForcedRouting
from epbench.stacks.protocol import BACKWARD_MARK, Batch, ResidentTensors, StepDescription, World

__all__ = ["Qwen3MoeStep", "build"]


def build(cell: Cell, world: World) -> "Qwen3MoeStep":
    """Meta device -> parallelise -> empty shards -> initial weights."""
    dims = ParallelDims.build(cell.layout, device=world.device)
    with torch.device("meta"):
        model = Decoder(cell.model)
    store_as(model, cell.train.master_dtype)
    how = parallelize(model, dims, cell)
    model.to_empty(device=world.device)
    zero_biases(model)
    _initial_weights(model, cell)
    return Qwen3MoeStep(cell, world, dims, model, compile_strategy=how)


def _initial_weights(model: Decoder, cell: Cell) -> None:
    sizes = cell.model
    if sizes.checkpoint is None:
        scale = sizes.expert_initializer_scale
        init_weights(model, seed=cell.train.seed, std=sizes.initializer_range, expert_scale=scale)
    else:
        from epbench.model.hf_weights import load_hf_weights  # the only cells that need safetensors

        load_hf_weights(model, sizes.checkpoint)


def _routers(model: Decoder) -> list[Router]:
    return [block.moe.router for block in model.layers if isinstance(block, Block) and block.moe is not None]


class Qwen3MoeStep:
    """One training step of one cell; see :class:`epbench.stacks.protocol.Step`."""

    obeys_expert_ids = True

    def __init__(
        self, cell: Cell, world: World, dims: ParallelDims, model: Decoder, *, compile_strategy: str | None
    ) -> None:
        self.cell, self.dims, self.model = cell, dims, model
        self._device, self._compile_strategy = world.device, compile_strategy
        self._world = dims.axis("world")
        self._params = dict(model.named_parameters())
        self._optimizer = ShardedAdamW(self._params.values(), cell.train)
        self._whole = model.rope(cell.train.seq_len, world.device)
        self._norm: Tensor | None = None
        self._routers = _routers(model)
        self._forced = ForcedRouting.of(cell, rows=self._rows(), positions=self._routed_chunk(), device=world.device)
        for router in self._routers:
            self._prepare(router)
        self.on_micro_batch: Callable[[range, range], None] | None = None
        self._balance = self._balanced()

    def _sequence_chunk(self, *, tp: bool) -> range:
        """Positions that this rank holds: its cp chunk, and of that its tp chunk if ``tp``."""
        layout, seq_len = self.cell.layout, self.cell.train.seq_len
        chunk = seq_len // layout.cp
        start = self.dims.coordinate("cp") * chunk
        if tp:
            chunk //= layout.tp
            start += self.dims.coordinate("tp") * chunk
        return range(start, start + chunk)

    def _prepare(self, router: Router) -> None:
        """Room for the record of the choice, for the tokens that reach this rank's router."""
        tokens = len(self._routed_chunk()) * self.cell.micro_batch_size
        shape = (tokens, self.cell.model.num_experts_per_tok)
        router.last_ids = torch.zeros(shape, dtype=torch.int64, device=self._device)

    def _routed_chunk(self) -> range:
        """Positions of the tokens that this rank's routers see."""
        return self._sequence_chunk(tp=self.cell.layout.etp == 1)

    def _rows(self) -> range:
        """Rows of the global batch that this rank has a part of, over all micro-batches."""
        rows = self.cell.micro_batch_size * self.cell.num_micro_batches
        return range(self.dims.coordinate("data") * rows, (self.dims.coordinate("data") + 1) * rows)

    def _balanced(self) -> Balance | None:
        """What moves the routers' biases before every optimizer step; None if they have none."""
        routers, rate = self._routers, self.cell.model.router_bias_update_rate
        if not routers or not rate:
            return None
        balance = Balance(routers, rate=rate, world=self._world)
        self._optimizer.before_step(balance.update)
        return balance

    def _dictate(self, batch: Batch, micro_batch: int, rows: range) -> None:
        """Hands each router the experts that a batch dictates for the tokens it will see, else those of the cell."""
        held = self._routed_chunk()
        ids: Sequence[Tensor | None] = [None] * len(self._routers)
        if batch.expert_ids is not None:
            part = slice(rows.start, rows.stop), slice(held.start, held.stop)
            ids = [ids_BSK[part].flatten(0, 1) for ids_BSK in batch.expert_ids]
        elif self._forced is not None:
            ids = self._forced.enforce(micro_batch)
        for router, ids_TK in zip(self._routers, ids, strict=True):
            if router.forced_ids is not ids_TK:
                router.forced_ids = ids_TK

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Sequences]]:
        """This rank's rows and cp chunk, micro-batch by micro-batch, and the whole sequences that they are of."""
        held, mine = self._sequence_chunk(tp=False), self._rows()
        for index in range(self.cell.num_micro_batches):
            rows = mine[index * self.cell.micro_batch_size :][: self.cell.micro_batch_size]
            whole = slice(rows.start, rows.stop)
            part = whole, slice(held.start, held.stop)
            self._dictate(batch, index, rows)
            documents = None if batch.cu_seqlens is None else batch.cu_seqlens[whole]
            sequences = self._whole if documents is None else packed(self._whole, documents)
            yield batch.tokens[part], batch.labels[part], sequences
            if self.on_micro_batch is not None:
                self.on_micro_batch(rows, self._routed_chunk())

    def run(self, batch: Batch) -> Tensor:
        """One optimizer step; returns the global mean loss."""
        for param in self._params.values():
            param.grad = None
        scale = (batch.labels != -100).sum().float().reciprocal()
        loss = torch.zeros((), device=self._device)
        for tokens, labels, sequences in self._micro_batches(batch):
            part = self.model(tokens, labels, scale, sequences)
            with record_function(BACKWARD_MARK):
                part.backward()
            if self._balance is not None:
                self._balance.observe()
            loss += part.detach()
        share = loss / self.cell.layout.tp  # every tp rank has the same loss
        limit = self.cell.train.max_grad_norm
        mean, self._norm = clip_and_step(
            self._optimizer, self._params.values(), share, world=self._world, max_norm=limit
        )
        return mean

    def grad_norm(self) -> Tensor | None:
        """Global norm before clipping."""
        return self._norm

    def named_full_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Whole gradients, put together one at a time from the shards of the first replica."""
        for name, param in self._params.items():
            yield name, whole_gradient(param, world=self._world)

    def expert_ids(self) -> list[Tensor]:
        """Per MoE layer the choice for the tokens that reached this rank's router."""
        return [router.last_ids for router in self._routers if router.last_ids is not None]

    def resident_tensors(self) -> ResidentTensors:
        """This rank's shards."""
        return ResidentTensors.of(self._params.values(), self._optimizer.state_tensors)

    def describe(self) -> StepDescription:
        """Sizes of this rank's shards."""
        resident = self._optimizer.parameter_bytes
        return StepDescription(
            parameters=sum(p.numel() for p in self._params.values()),
            parameter_bytes=resident,
            gradient_bytes=resident,
            optimizer_bytes=self._optimizer.state_bytes,
            compile_strategy=self._compile_strategy,
        )
