"""Forced routings: the same in every layout, distinct experts, and the load that each kind promises.

Round robin has even load and the largest fan-out there is, not that of a block (facts 4.12). The drawn kinds
are compared with their distributions: the seed is fixed, so a bound that holds once holds always.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.model.moe import count
from epbench.parallel.routing import ForcedRouting, forced_ids, popularity, round_robin
from epbench.records import VerifyRecord
from epbench.runner.verify import shrink, verify_cell
from epbench.stacks.protocol import World
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
E, K, S, ROWS = 32, 4, 1024, 8
DRAWN = ("uniform", "zipf:0.8", "zipf:1.5", "hot_rank:0.5", "hot_rank:0.45", "hot_rank:1")


def _cell(routing: str, *, ep: int = 4, **train: Any) -> Cell:
    sizes = {"seq_len": S, "global_batch_size": ROWS} | train
    model = ModelSpec(num_experts=E, num_experts_per_tok=K)
    return Cell(layout=Layout(dp_shard=ep, ep=ep), routing=routing, model=model, train=TrainSpec(**sizes))


@cache
def _ids(
    routing: str, *, layer: int = 0, rows: range = range(ROWS), positions: range = range(S), **cell: Any
) -> Tensor:
    """[B, S, K]."""
    return forced_ids(_cell(routing, **cell), layer=layer, rows=rows, positions=positions, device=CPU)


# ---- drawn routings ----


@pytest.mark.parametrize("routing", DRAWN)
def test_a_token_goes_to_distinct_experts_of_the_model(routing: str) -> None:
    ordered = _ids(routing).sort(dim=-1)[0]
    assert ordered.dtype == torch.int64
    assert 0 <= int(ordered.min()) <= int(ordered.max()) < E
    assert bool((ordered.diff(dim=-1) > 0).all())


@pytest.mark.parametrize("routing", DRAWN)
def test_rows_layers_and_seeds_differ_and_nothing_else_changes_a_token(routing: str) -> None:
    ids = _ids(routing)
    assert torch.equal(ids, _ids(routing, global_batch_size=64, ep=4))
    assert torch.equal(ids[2:4, 100:164], _ids(routing, rows=range(2, 4), positions=range(100, 164), seq_len=4096))
    for other in (_ids(routing, layer=1), _ids(routing, seed=1), ids.roll(1, 0), ids.roll(1, 1)):
        assert (ids != other).any(dim=-1).float().mean() > 0.5


@pytest.mark.parametrize("routing", ["uniform", "zipf:0.8", "round_robin"])
def test_a_layout_does_not_change_the_routing(routing: str) -> None:
    assert torch.equal(_ids(routing, ep=1), _ids(routing, ep=8))


def _chi_square(observed: Tensor, expected: Tensor) -> float:
    """In standard deviations above its mean, for as many degrees of freedom as there are bins less one."""
    bins = len(observed)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return (statistic - (bins - 1)) / math.sqrt(2 * (bins - 1))


def _chi_square_of_draws(load: Tensor, *, draws: int) -> float:
    """Of even draws without replacement, whose counts vary less than with it, by (bins - draws) / (bins - 1)."""
    bins, mean = len(load), load.mean()
    return _chi_square((load - mean) / math.sqrt((bins - draws) / (bins - 1)) + mean, mean.expand(bins))


def test_uniform_draws_every_expert_and_every_pair_alike() -> None:
    ids = _ids("uniform").flatten(0, 1)
    tokens = len(ids)
    assert abs(_chi_square_of_draws(count(ids, E).double(), draws=K)) < 3
    pairs = count(ids[:, 0] * E + ids[:, 1], E * E).double()
    possible = pairs.view(E, E)[~torch.eye(E, dtype=torch.bool)]
    assert abs(_chi_square(possible, torch.full_like(possible, tokens / len(possible)))) < 3


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.2, 2.0])
@pytest.mark.parametrize("layer", [0, 1])
def test_first_choices_follow_the_zipf_law(exponent: float, layer: int) -> None:
    """The first of K draws is one draw from popularity ~ 1 / rank^S; the others are what is left."""
    first = _ids(f"zipf:{exponent}", layer=layer)[..., 0].flatten()
    rank_E = popularity(E, seed=0, layer=layer, device=CPU) + 1
    assert sorted(rank_E.tolist()) == list(range(1, E + 1))
    weights = rank_E.double() ** -exponent
    assert abs(_chi_square(count(first, E).double(), weights / weights.sum() * len(first))) < 3
    assert _likeliest_exponent(rank_E[first]) == pytest.approx(exponent, abs=0.03)


def _likeliest_exponent(ranks: Tensor) -> float:
    """Maximum likelihood: the exponent at which the expected log rank is the observed one, by bisection."""
    logs, observed = torch.arange(1, E + 1).double().log(), float(ranks.double().log().mean())
    low, high = 0.0, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        expected = float((torch.softmax(-middle * logs, dim=0) * logs).sum())
        low, high = (middle, high) if expected > observed else (low, middle)
    return low


def test_second_choices_are_drawn_from_what_is_left() -> None:
    """Plackett-Luce, by hand: P(second = b) = sum over a of P(a) w_b / (1 - w_a)."""
    second = _ids("zipf:1.2")[..., 1].flatten()
    weights = (popularity(E, seed=0, layer=0, device=CPU) + 1).double() ** -1.2
    weights /= weights.sum()
    joint = weights.unsqueeze(1) * weights / (1 - weights.unsqueeze(1))
    expected = joint.fill_diagonal_(0).sum(0) * len(second)
    assert abs(_chi_square(count(second, E).double(), expected)) < 3


def test_popular_experts_are_spread_over_ranks_otherwise_in_each_layer() -> None:
    first = {layer: int((_ids("zipf:1.5", layer=layer)[..., 0].flatten()).mode()[0]) for layer in range(8)}
    assert len(set(first.values())) > 4
    assert len({expert // (E // 4) for expert in first.values()}) > 2


@pytest.mark.parametrize("fraction", ["0.1", "0.25", "0.3", "0.45", "0.5", "0.9", "1"])
@pytest.mark.parametrize("ep", [2, 4, 8])
def test_the_hot_rank_gets_its_fraction_of_every_row_exactly(fraction: str, ep: int) -> None:
    hot = _ids(f"hot_rank:{fraction}", ep=ep) < E // ep
    copies = float(fraction) * K
    assert hot.sum(dim=(1, 2)).tolist() == [int(copies * S + 1e-9)] * ROWS
    per_token = hot.sum(dim=2)
    assert math.floor(copies) <= int(per_token.min()) <= int(per_token.max()) <= math.ceil(copies)
    running = per_token.cumsum(1) - torch.arange(1, S + 1) * copies
    assert float(running.abs().max()) < 1, "also of every part of a row"


def test_hot_and_other_experts_are_each_drawn_alike() -> None:
    load = count(_ids("hot_rank:0.5"), E).double()
    assert abs(_chi_square_of_draws(load[: E // 4], draws=2)) < 3
    assert abs(_chi_square_of_draws(load[E // 4 :], draws=2)) < 3


def test_micro_batches_have_their_own_rows() -> None:
    cell = _cell("uniform", micro_batch_size=1, global_batch_size=8)
    routing = ForcedRouting.of(cell, rows=range(2, 4), positions=range(64), device=CPU)
    assert routing is not None
    for index, row in enumerate((2, 3)):
        for layer, ids in enumerate(routing.enforce(index)):
            assert torch.equal(ids, _ids("uniform", layer=layer, rows=range(row, row + 1), positions=range(64))[0])
    assert ForcedRouting.of(_cell("natural"), rows=range(1), positions=range(1), device=CPU) is None


# ---- every layout obeys ----

MODEL = ModelSpec(vocab_size=128)
TRAIN = TrainSpec(seq_len=32, global_batch_size=8, micro_batch_size=1)
OBEYED = {
    "ep over all, two micro-batches": (Layout(dp_shard=4, ep=4), "zipf:1.2"),
    "ep borrows tp": (Layout(dp_shard=2, tp=2, ep=4), "zipf:1.2"),
    "experts split, tp ranks route alike": (Layout(dp_shard=2, tp=2, ep=2, etp=2), "zipf:1.2"),
    "a hot rank under split experts": (Layout(dp_shard=2, tp=2, ep=2, etp=2), "hot_rank:0.7"),
    "a hot rank under cp": (Layout(dp_shard=2, cp=2, ep=4), "hot_rank:0.8"),
    "uniform, experts all here": (Layout(dp_replicate=2, cp=2), "uniform"),
}


def _verify_all(cells: list[Cell]) -> list[VerifyRecord]:
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), CPU)
    return [verify_cell(cell, world, tolerance=1e-5) for cell in cells]


@pytest.fixture(scope="module")
def verified() -> Iterator[dict[str, VerifyRecord]]:
    cells = [Cell(layout=layout, routing=routing, model=MODEL, train=TRAIN) for layout, routing in OBEYED.values()]
    assert all(shrink(cell).num_micro_batches == 2 for cell in cells)
    records: list[VerifyRecord] = run_on_ranks(4, _verify_all, cells)[0]
    yield dict(zip(OBEYED, records, strict=True))


@pytest.mark.parametrize("case", OBEYED)
def test_forced_layouts_compute_what_one_rank_computes(case: str, verified: dict[str, VerifyRecord]) -> None:
    assert verified[case].scope == "full"
    assert verified[case].passed, verified[case]


# ---- round robin ----


def _fan_out(ids_TK: Tensor, num_experts: int, ep: int) -> list[int]:
    """Distinct ranks that each token goes to; rank r holds the r-th block of experts."""
    ranks = ids_TK // (num_experts // ep)
    return [len(set(row)) for row in ranks.tolist()]


@pytest.mark.parametrize(
    ("num_experts", "top_k", "ep"),
    [
        *((128, 8, ep) for ep in (1, 2, 4, 8, 16)),
        *((160, 8, ep) for ep in (2, 5, 8, 32)),
        *((8, 2, ep) for ep in (2, 4, 8)),
    ],
)
def test_every_token_goes_to_as_many_ranks_as_it_can(num_experts: int, top_k: int, ep: int) -> None:
    ids = round_robin(torch.arange(4096), num_experts, top_k)
    assert set(_fan_out(ids, num_experts, ep)) == {min(top_k, ep)}


def test_blocks_of_consecutive_experts_would_flatter() -> None:
    """The trap itself, so that the test above is known to tell the two apart."""
    block = torch.arange(4096 * 8).view(4096, 8) % 128
    assert set(_fan_out(block, 128, 16)) == {1}


@pytest.mark.parametrize("tokens", [16, 128, 4096])
def test_load_is_perfectly_even(tokens: int) -> None:
    """16 tokens x 8 copies are the fewest that can be even over 128 experts."""
    load = count(round_robin(torch.arange(tokens), 128, 8), 128)
    assert load.tolist() == [tokens * 8 // 128] * 128


@pytest.mark.parametrize("start", [0, 1024, 3072])
def test_load_is_even_within_every_chunk_of_a_sequence(start: int) -> None:
    """Under cp a rank holds some positions only, and they too spread over all experts alike."""
    load = count(round_robin(torch.arange(start, start + 1024), 128, 8), 128)
    assert load.tolist() == [64] * 128


@settings(deadline=None)
@given(data=st.data(), num_experts=st.integers(1, 64))
def test_a_token_never_chooses_an_expert_twice(data: st.DataObject, num_experts: int) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    ids = round_robin(torch.arange(100), num_experts, top_k)
    assert ids.shape == (100, top_k)
    assert ids.dtype == torch.int64
    assert all(len(set(row)) == top_k and 0 <= min(row) <= max(row) < num_experts for row in ids.tolist())
    load = count(ids[:num_experts], num_experts)
    assert load.tolist() == [top_k] * num_experts
