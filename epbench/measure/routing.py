"""Where the routers sent the tokens: what a throughput must be read beside, and what can be replayed.

A layout that is fast on even routing can be slow on real routing, and routing that sends all copies of a
token to one rank flatters any dispatcher that sends a token once per rank. So load and fan-out are
measured.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.errors import ScenarioError
from epbench.measure.ranks import sum_over_ranks_
from epbench.records import ExpertCopies, ExpertLoad
from epbench.routing_file import new_routing
from epbench.routing_kinds import hot_experts
from epbench.stacks.protocol import ObservableStep

if TYPE_CHECKING:
    import numpy as np

    from epbench.cells import Cell
    from epbench.stacks.protocol import Step, World

__all__ = ["RoutingRecorder", "expert_copies", "expert_load"]


def expert_load(step: "Step", cell: "Cell", world: "World") -> ExpertLoad:
    """Realised load over the world; the worst MoE layer's ratios, and fan-out over all layers. A collective.

    Ranks that hold the same tokens (expert tensor parallelism, or tensor parallelism without sequence
    sharding) count them equally often, which leaves ratios as they are. All None if the stack cannot tell.
    """
    layers = step.expert_ids()
    if not layers:
        return ExpertLoad()
    num_experts, ep = cell.model.num_experts, cell.layout.ep
    counts_LE = _counts_of_all_ranks(layers, num_experts, world)
    reach = sum_over_ranks_(torch.stack([_reach(ids_TK, num_experts // ep, ep) for ids_TK in layers]), world)
    ranks, tokens = reach.sum(0).tolist()
    return ExpertLoad(
        max_over_mean=_worst_ratio(counts_LE),
        rank_max_over_mean=_worst_ratio(counts_LE.view(len(layers), ep, -1).sum(2)),
        fan_out=ranks / tokens if tokens else None,
    )


def expert_copies(step: "Step", cell: "Cell", world: "World") -> ExpertCopies | None:
    """Copies per MoE layer and expert, and per ep rank, that :func:`expert_load` judges. A collective.

    With etp = tp every tp rank routes the same tokens; they are counted once. None if the stack cannot tell.
    """
    layers = step.expert_ids()
    if not layers:
        return None
    counts_LE = _counts_of_all_ranks(layers, cell.model.num_experts, world) // cell.layout.etp
    hot = hot_experts(cell)
    return ExpertCopies(
        routing=cell.routing,
        layers=[index for index in range(cell.model.num_layers) if cell.model.is_moe_layer(index)],
        experts=counts_LE.tolist(),
        ranks=counts_LE.view(len(layers), cell.layout.ep, -1).sum(2).tolist(),
        hot_experts=None if hot is None else hot.experts,
    )


class RoutingRecorder:
    """Keeps the choice of the first step that ``step`` runs from now on, all micro-batches of it, in host memory.

    It waits for the device after each of them, so that step must be one that is not timed, a warm-up step. Raises
    ScenarioError for a stack that does not say when a micro-batch is over.
    """

    def __init__(self, step: "Step", cell: "Cell") -> None:
        if not isinstance(step, ObservableStep):
            raise ScenarioError(f"measure.record_routing: stack {cell.train.stack} has no on_micro_batch to record by")
        self._step: Step = step
        self._observed: ObservableStep = step
        self._cell = cell
        self._dtype = torch.uint8 if cell.model.num_experts <= 256 else torch.int32  # both are known to NCCL
        self._corners: list[tuple[int, int]] = []
        self._choices: list[list[Tensor]] = []
        step.on_micro_batch = self._keep

    def _keep(self, rows: range, positions: range) -> None:
        size = (len(rows), len(positions), -1)
        ids = self._step.expert_ids() or []
        self._corners.append((rows.start, positions.start))
        self._choices.append([ids_TK.to("cpu", self._dtype, copy=True).view(size) for ids_TK in ids])
        if len(self._choices) == self._cell.num_micro_batches:
            self._observed.on_micro_batch = None

    def write(self, path: Path, world: "World") -> None:
        """Makes one file of what all ranks kept, a layer at a time; a collective, rank 0 writes.

        Tokens that several ranks routed (etp = tp) have one place in the file.
        """
        assert len(self._choices) == self._cell.num_micro_batches, "a step was run"
        model, train = self._cell.model, self._cell.train
        shape = (model.num_moe_layers, train.global_batch_size, train.seq_len, model.num_experts_per_tok)
        corners = _from_all_ranks(self._corners, world)
        with new_routing(path, shape, num_experts=model.num_experts) if world.rank == 0 else nullcontext() as ids:
            for layer in range(model.num_moe_layers):
                mine_MBSK = torch.stack([choice[layer] for choice in self._choices])
                parts = _gathered(mine_MBSK, world)
                if ids is not None:
                    for corner, part in zip(corners, parts, strict=True):
                        _place(ids[layer], corner, part)


def _from_all_ranks(mine: list[tuple[int, int]], world: "World") -> list[list[tuple[int, int]]]:
    if world.world_size == 1:
        return [mine]
    every: list[list[tuple[int, int]]] = [[] for _ in range(world.world_size)]
    dist.all_gather_object(every, mine)
    return every


def _gathered(mine: Tensor, world: "World") -> list[Tensor]:
    """The tensor of every rank, on the CPU of rank 0; nothing elsewhere."""
    if world.world_size == 1:
        return [mine]
    mine = mine.to(world.device)
    every = [torch.empty_like(mine) for _ in range(world.world_size)] if world.rank == 0 else None
    dist.gather(mine, every)
    return [part.cpu() for part in every or ()]


def _place(ids_BSK: "np.ndarray[Any, Any]", corners: Sequence[tuple[int, int]], part_MBSK: Tensor) -> None:
    for (row, position), part_BSK in zip(corners, part_MBSK, strict=True):
        rows, positions = part_BSK.shape[:2]
        ids_BSK[row : row + rows, position : position + positions] = part_BSK.numpy()


def _counts_of_all_ranks(layers: Sequence[Tensor], num_experts: int, world: "World") -> Tensor:
    """Routed copies per layer and expert over the world, [L, E] int64."""
    return sum_over_ranks_(torch.stack([_counts(ids_TK, num_experts) for ids_TK in layers]), world)


def _counts(ids_TK: Tensor, num_experts: int) -> Tensor:
    """Routed copies per expert, [E] int64."""
    return torch.bincount(ids_TK.flatten().long(), minlength=num_experts)


def _reach(ids_TK: Tensor, experts_per_rank: int, ep: int) -> Tensor:
    """[2] int64: the number of (token, ep rank that holds one of its experts) pairs, and of tokens."""
    hit = torch.zeros(ids_TK.shape[0], ep, dtype=torch.int64, device=ids_TK.device)
    hit.scatter_(1, ids_TK.long() // experts_per_rank, 1)
    return torch.stack([hit.sum(), hit.new_tensor(ids_TK.shape[0])])


def _worst_ratio(counts_LN: Tensor) -> float | None:
    """Largest over layers of heaviest over mean; None if nothing was routed."""
    counts = counts_LN.double()
    means = counts.mean(1)
    if not bool((means > 0).all()):
        return None
    return float((counts.amax(1) / means).max())
