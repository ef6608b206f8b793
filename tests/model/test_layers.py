"""Rotary embedding against complex numbers, attention against a softmax written out, and the small layers."""

import pytest
import torch
from torch import Tensor

from epbench.cells import ModelSpec
from epbench.model.attention import Sequences, causal_attention
from epbench.model.decoder import Decoder, token_loss
from epbench.model.layers import RMSNorm, apply_rope, rope_tables
from tests.model.compare import assert_same

CPU = torch.device("cpu")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _turned(x_BSHd: Tensor, theta: float) -> Tensor:
    """Entries i and i + d/2 are one complex number; position p turns it by p * theta ** (-2i / d)."""
    _, seq_len, _, size = x_BSHd.shape
    first, second = x_BSHd.double().chunk(2, dim=-1)
    position = torch.arange(seq_len, dtype=torch.float64)
    frequency = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turn = torch.polar(torch.ones(seq_len, size // 2, dtype=torch.float64), torch.outer(position, frequency))
    turned = torch.complex(first, second) * turn[None, :, None, :]
    return torch.cat([turned.real, turned.imag], dim=-1)


@pytest.mark.parametrize(("theta", "seq_len"), [(1e6, 64), (1e7, 64), (1e6, 8192)])
def test_rope_turns_pairs_of_entries_by_their_position(theta: float, seq_len: int) -> None:
    x = _random(1, seq_len, 2, 16)
    rotated = apply_rope(x, *rope_tables(seq_len, 16, theta, CPU))
    assert_same(rotated.double(), _turned(x, theta), "rotated heads", tolerance=1e-6)


def test_scores_after_rope_depend_on_the_distance_only() -> None:
    q, k = _random(1, 1, 1, 16, seed=1), _random(1, 1, 1, 16, seed=2)
    rope = rope_tables(32, 16, 1e6, CPU)
    scores = torch.einsum("qd,kd->qk", *(apply_rope(x.expand(1, 32, 1, 16), *rope)[0, :, 0] for x in (q, k)))
    for distance in (-7, 0, 5):
        along = scores.diagonal(distance)
        assert_same(along, along[:1].expand_as(along), f"scores at distance {distance}")


def test_rope_keeps_the_dtype() -> None:
    assert apply_rope(_random(1, 4, 2, 8).bfloat16(), *rope_tables(4, 8, 1e6, CPU)).dtype == torch.bfloat16


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention_is_causal_softmax_with_shared_kv_heads(kv_heads: int) -> None:
    heads, seq_len, size = 6, 9, 8
    q, k, v = (_random(2, seq_len, n, size, seed=n) for n in (heads, kv_heads, kv_heads + 10))
    v = v[:, :, :kv_heads]
    rope = rope_tables(seq_len, size, 1e6, CPU)
    qr, kr = apply_rope(q, *rope), apply_rope(k, *rope)
    expected = torch.zeros_like(q)
    for head in range(heads):
        shared = head * kv_heads // heads
        for at in range(seq_len):
            logits = torch.einsum("bd,bsd->bs", qr[:, at, head], kr[:, : at + 1, shared]) / size**0.5
            expected[:, at, head] = torch.einsum("bs,bsd->bd", logits.softmax(dim=1), v[:, : at + 1, shared])
    assert_same(causal_attention(q, k, v, Sequences(*rope)), expected, "attention")


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm, x = RMSNorm(4, eps=1e-6), torch.tensor([[1.0, -1.0, 3.0, 5.0]])
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    assert_same(norm(x), torch.tensor([[1.0, -2.0, 1.5, 5.0]]) / 3.0, "norm")  # mean of squares is 9


def test_loss_is_the_scaled_sum_over_counted_tokens() -> None:
    """By hand: uniform logits cost log V each, whatever the label; three of four tokens count."""
    loss = token_loss(torch.zeros(4, 2), torch.ones(8, 2), torch.tensor([0, 7, -100, 3]), torch.tensor(0.5))
    assert_same(loss, 0.5 * 3 * torch.tensor(8.0).log(), "loss")


def test_a_position_learns_nothing_from_later_ones() -> None:
    """Gradients of early losses with respect to late embeddings are exactly zero."""
    model = Decoder(ModelSpec(num_layers=1))
    with torch.no_grad():
        for index, param in enumerate(model.parameters()):
            param.copy_(0.1 * _random(*param.shape, seed=index))
    tokens = torch.arange(12).view(1, 12)  # every position has an embedding row of its own
    labels = torch.full((1, 12), -100)
    labels[0, :6] = tokens[0, 1:7]
    model(tokens, labels, torch.tensor(1.0), model.rope(12, CPU)).backward()
    assert model.embed_tokens.weight.grad is not None
    assert model.embed_tokens.weight.grad[5].any()
    assert not model.embed_tokens.weight.grad[6:12].any()
