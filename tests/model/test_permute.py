"""Moving rows by a permutation, against plain indexing and what autograd makes of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epbench.model.moe import count, sort_by_expert
from epbench.model.permute import expand, inverse_of, permute

WIDTH = 5


def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def _rows(num: int, seed: int) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@given(size=st.integers(0, 40), seed=st.integers(0, 1000))
def test_the_inverse_undoes_the_order(size: int, seed: int) -> None:
    order = _permutation(size, seed)
    assert inverse_of(order)[order].tolist() == list(range(size))
    assert order[inverse_of(order)].tolist() == list(range(size))


@given(size=st.integers(0, 20), seed=st.integers(0, 1000))
def test_permute_is_indexing_forward_and_backward(size: int, seed: int) -> None:
    x, order, gradient = _rows(size, seed), _permutation(size, seed), _rows(size, seed + 1).detach()
    expected = x[order]
    (dx,) = torch.autograd.grad(expected, x, gradient)
    moved = permute(x, order, inverse_of(order))
    (moved_dx,) = torch.autograd.grad(moved, x, gradient)
    assert torch.equal(moved, expected)
    assert torch.equal(moved_dx, dx)


@settings(deadline=None)
@given(tokens=st.integers(1, 12), copies=st.integers(1, 8), seed=st.integers(0, 1000))
def test_expand_is_repetition_then_indexing_forward_and_backward(tokens: int, copies: int, seed: int) -> None:
    x, order = _rows(tokens, seed), _permutation(tokens * copies, seed)
    gradient = _rows(tokens * copies, seed + 1).detach()
    expected = x.repeat_interleave(copies, dim=0)[order]
    (dx,) = torch.autograd.grad(expected, x, gradient)
    expanded = expand(x, order, inverse_of(order))
    (expanded_dx,) = torch.autograd.grad(expanded, x, gradient)
    assert torch.equal(expanded, expected)
    torch.testing.assert_close(expanded_dx, dx, rtol=1e-6, atol=1e-6)  # a sum over copies, in another order


def test_gradients_hold_against_finite_differences() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: expand(rows, order, inverse_of(order)), x)
    assert torch.autograd.gradcheck(lambda rows: permute(rows, order, inverse_of(order)), y)


@pytest.mark.parametrize("rows", [torch.ones(6, 3), torch.ones(3, 6).t()], ids=["contiguous", "transposed"])
def test_the_ops_are_what_they_tell_the_compiler(rows: Tensor) -> None:
    """A fake kernel of other strides than the real one is wrong memory in compiled code."""
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    twice = torch.cat([order, order + 6])
    torch.library.opcheck(torch.ops.epbench.permute.default, (rows.clone().requires_grad_(), order, inverse_of(order)))
    torch.library.opcheck(torch.ops.epbench.expand.default, (rows.clone().requires_grad_(), twice, inverse_of(twice)))


@pytest.mark.parametrize(
    ("ids", "num_experts"),
    [
        ([[2, 0], [0, 1], [2, 1]], 3),
        ([[1, 1], [1, 1]], 2),
        ([[3, 2]], 4),
        ([[32767, 0], [5, 32767]], 2**15),
        ([[32768, 0], [5, 32769]], 32770),
    ],
)
def test_sorting_is_by_expert_and_keeps_the_order_of_tokens(ids: list[list[int]], num_experts: int) -> None:
    flat = [expert for row in ids for expert in row]
    order, inverse = sort_by_expert(torch.tensor(ids), num_experts)
    assert order.tolist() == sorted(range(len(flat)), key=lambda row: flat[row])
    assert inverse[order].tolist() == list(range(len(flat)))


def test_count_is_a_histogram_with_the_experts_that_nobody_chose() -> None:
    assert count(torch.tensor([[2, 0], [0, 4], [2, 0]]), 6).tolist() == [3, 0, 2, 0, 1, 0]
