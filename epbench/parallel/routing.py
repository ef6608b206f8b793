"""Routings that are forced instead of learned: the experts of every token, made before anything is timed.

The experts of a token are a function of the seed, the MoE layer, its row in the global batch and its position, and of
nothing of the layout (but for ``hot_rank``, whose hot experts are those of ep rank 0), so that any rank makes its part
alone and every layout does the same work. They are the same in every step. ``docs/routing.md`` defines the kinds.

Shapes: B rows, S positions, T = B x S tokens of one micro-batch, K experts per token, E experts.
"""

import torch
from torch import Tensor

from epbench.cells import Cell
from epbench.model.counter_based import key_of, uniform
from epbench.routing_file import open_routing
from epbench.routing_kinds import HotExperts, hot_experts, routing_kind

__all__ = ["ForcedRouting", "forced_ids", "popularity", "round_robin"]

_CHUNK = 1 << 21  # random numbers made at a time: bounds the scratch to some tens of MB


def round_robin(positions_T: Tensor, num_experts: int, top_k: int) -> Tensor:
    """Expert ids [T, K], perfectly even over positions, strided over the experts.

    Slot k of position p goes to expert p + k * E / K: a token's copies lie as far apart as they can, so its
    fan-out is min(K, ep), the largest there is; that of ``uniform`` is lower, 5.3 at ep 8 and K 8. (``arange(T * K) %
    E`` would put all copies of a token on one rank and flatter every dispatcher that deduplicates, facts 4.12.)
    """
    slots = torch.arange(top_k, device=positions_T.device) * num_experts // top_k
    return (positions_T.unsqueeze(1) + slots) % num_experts


def popularity(num_experts: int, *, seed: int, layer: int, device: torch.device) -> Tensor:
    """[E] int64: each expert's rank by popularity, from 0; a random permutation for each layer.

    Expert ids say which rank holds an expert, so without it ep rank 0 would hold all the popular ones.
    """
    experts = torch.arange(num_experts, device=device)
    return uniform(experts, key_of(f"{seed}/popularity/{layer}")).argsort().argsort()


def _noise(positions_S: Tensor, num_experts: int, *, key: int) -> Tensor:
    """[S, E] float64 Gumbel noise.

    The K largest of ``log w + noise`` are K draws without replacement with probabilities proportional to w, in order
    (Plackett-Luce; the Gumbel top-k of Kool, van Hoof and Welling, ICML 2019).
    """
    counter_SE = positions_S.unsqueeze(1) * num_experts + torch.arange(num_experts, device=positions_S.device)
    return -uniform(counter_SE, key).log().neg().log()


def _split(noise_SE: Tensor, positions_S: Tensor, hot: HotExperts, top_k: int) -> Tensor:
    """[S, K]: some of the hot experts and the rest of the others, each drawn evenly; exactly F over a row.

    Position p has floor((p + 1) F K) - floor(p F K) hot ones, in whole numbers: every device rounds alike.
    """
    up, down = hot.copies.numerator, hot.copies.denominator
    num_hot_S1 = ((positions_S + 1) * up // down - positions_S * up // down).unsqueeze(1)
    hot_SE, other_SE = noise_SE[:, : hot.experts], noise_SE[:, hot.experts :]
    from_hot = hot_SE.topk(min(top_k, hot_SE.shape[1]))[1]
    from_others = other_SE.topk(min(top_k, other_SE.shape[1]))[1] + hot.experts
    slot_SK = torch.arange(top_k, device=noise_SE.device).expand(len(positions_S), -1)
    place_SK = torch.where(slot_SK < num_hot_S1, slot_SK, slot_SK - num_hot_S1 + from_hot.shape[1])
    return torch.cat([from_hot, from_others], dim=1).gather(1, place_SK)


def _drawn(cell: Cell, positions_S: Tensor, *, layer: int, row: int) -> Tensor:
    """[S, K] int64 of one row: ``uniform``, ``zipf`` or ``hot_rank``."""
    model, seed = cell.model, cell.train.seed
    top_k, (kind, value) = model.num_experts_per_tok, routing_kind(cell.routing)
    noise_SE = _noise(positions_S, model.num_experts, key=key_of(f"{seed}/routing/{layer}/{row}"))
    hot = hot_experts(cell)
    if hot is not None:
        return _split(noise_SE, positions_S, hot, top_k)
    if kind == "zipf":
        rank_E = popularity(model.num_experts, seed=seed, layer=layer, device=positions_S.device)
        noise_SE -= float(value) * (rank_E + 1).double().log()
    return noise_SE.topk(top_k)[1]


def _row(cell: Cell, positions: range, *, layer: int, row: int, device: torch.device) -> Tensor:
    """[S, K] int64."""
    model = cell.model
    positions_S = torch.arange(positions.start, positions.stop, device=device)
    if cell.routing == "round_robin":
        return round_robin(positions_S, model.num_experts, model.num_experts_per_tok)
    parts = positions_S.split(max(1, _CHUNK // model.num_experts))
    return torch.cat([_drawn(cell, part, layer=layer, row=row) for part in parts])


def _replayed(path: str, *, layer: int, rows: range, positions: range, device: torch.device) -> Tensor:
    part = open_routing(path)[layer, rows.start : rows.stop, positions.start : positions.stop]
    return torch.from_numpy(part.astype("int64")).to(device)


def forced_ids(cell: Cell, *, layer: int, rows: range, positions: range, device: torch.device) -> Tensor:
    """Expert ids [B, S, K] int64 of MoE layer ``layer`` for these rows of the global batch and these positions.

    ``layer`` counts the layers that have experts. Raises ScenarioError if a file to replay cannot be read.
    """
    kind, value = routing_kind(cell.routing)
    assert kind != "natural", "a natural routing is the router's own"
    if kind == "replay":
        return _replayed(value, layer=layer, rows=rows, positions=positions, device=device)
    return torch.stack([_row(cell, positions, layer=layer, row=row, device=device) for row in rows])


class ForcedRouting:
    """One rank's share of a forced routing: all micro-batches made at once, one of them in force.

    Routers read buffers, one a MoE layer: [T, K] int64. :meth:`enforce` fills them from copies of one byte an id,
    or four, without allocating and without a host sync.
    """

    @classmethod
    def of(cls, cell: Cell, *, rows: range, positions: range, device: torch.device) -> "ForcedRouting | None":
        """For these rows of the global batch and these positions; None where the routers choose themselves."""
        natural = cell.routing == "natural" or not cell.model.num_moe_layers
        return None if natural else cls(cell, rows=rows, positions=positions, device=device)

    def __init__(self, cell: Cell, *, rows: range, positions: range, device: torch.device) -> None:
        size, model = cell.micro_batch_size, cell.model
        narrow = torch.uint8 if model.num_experts <= 256 else torch.int32
        layers = [
            forced_ids(cell, layer=layer, rows=rows, positions=positions, device=device).to(narrow)
            for layer in range(model.num_moe_layers)
        ]
        self._micro_batches = [
            [ids_BSK[row : row + size].flatten(0, 1) for ids_BSK in layers] for row in range(0, len(rows), size)
        ]
        self._buffers = [ids_TK.long() for ids_TK in self._micro_batches[0]]

    def enforce(self, micro_batch: int) -> list[Tensor]:
        """The buffers, with the routing of a step's ``micro_batch``, from 0, in them."""
        torch._foreach_copy_(self._buffers, self._micro_batches[micro_batch])
        return self._buffers
