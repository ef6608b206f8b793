"""Round-robin routing: even load and the fan-out that random routing has, not the one of a block (facts 4.12)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epbench.model.moe import count
from epbench.parallel.routing import round_robin


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
