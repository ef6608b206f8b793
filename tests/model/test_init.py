"""Initial numbers: normal, reproducible, and dependent on (seed, name, global index) alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from epbench.cells import ModelSpec
from epbench.model.decoder import Decoder
from epbench.model.init import Box, init_weights, normal_box

SHAPE = torch.Size((6, 5, 8))


def _fill(box: Box, *, name: str = "w", shape: torch.Size = SHAPE, seed: int = 0, std: float = 1.0) -> Tensor:
    out = torch.empty([length for _, length in box])
    normal_box(name, shape, box, seed=seed, std=std, out=out)
    return out


def _whole(shape: torch.Size = SHAPE, **how: object) -> Tensor:
    return _fill(tuple((0, size) for size in shape), shape=shape, **how)  # type: ignore[arg-type]


@st.composite
def _boxes(draw: st.DrawFn) -> Box:
    starts = [draw(st.integers(0, size)) for size in SHAPE]
    return tuple((start, draw(st.integers(0, size - start))) for start, size in zip(starts, SHAPE, strict=True))


@settings(deadline=None)
@given(box=_boxes())
def test_any_part_is_that_part_of_the_whole(box: Box) -> None:
    slices = tuple(slice(start, start + length) for start, length in box)
    assert torch.equal(_fill(box), _whole()[slices])


@pytest.mark.parametrize("chunk", [1, 40, 41, 100])
def test_the_same_numbers_however_many_are_made_at_a_time(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _whole()
    monkeypatch.setattr("epbench.model.init._CHUNK", chunk)
    assert torch.equal(_whole(), whole)


def test_numbers_are_normal_with_mean_zero_and_the_given_std() -> None:
    """The seed is fixed, so these bounds (4 standard errors, p > 0.001) either hold or do not."""
    std, shape = 0.02, torch.Size((500, 400))
    values = _whole(shape, std=std).flatten().double()
    error = std / values.numel() ** 0.5
    assert abs(values.mean()) < 4 * error
    assert abs(values.std() - std) < 4 * error / 2**0.5
    assert stats.kstest(values.numpy(), "norm", args=(0, std)).pvalue > 1e-3
    assert values.abs().max() < 6 * std, "the radius of 24 bits ends at 5.9 standard deviations"
    assert values.unique().numel() > 0.99 * values.numel()


@pytest.mark.parametrize("lag", [1, 400, 200 * 400])
def test_neighbours_are_independent(lag: int) -> None:
    values = _whole(torch.Size((500, 400))).flatten().double()
    pairs = values.numel() - lag
    assert abs((values[lag:] * values[:-lag]).mean()) < 4 / pairs**0.5


@pytest.mark.parametrize("other", [{"name": "w2"}, {"seed": 1}])
def test_another_name_or_seed_gives_independent_numbers(other: dict[str, object]) -> None:
    shape = torch.Size((300, 300))
    first, second = _whole(shape).flatten(), _whole(shape, **other).flatten()
    assert abs((first * second).mean()) < 4 / first.numel() ** 0.5


def test_indices_beyond_32_bits_do_not_wrap() -> None:
    shape = torch.Size((1 << 33, 4))
    far, wrapped = _fill(((1 << 32, 4), (0, 4)), shape=shape), _fill(((0, 4), (0, 4)), shape=shape)
    assert not torch.isclose(far, wrapped).any()


def test_norms_start_at_one_and_experts_are_scaled() -> None:
    model = Decoder(ModelSpec(mlp_only_layers=(0,)))
    init_weights(model, seed=0, std=0.02, expert_scale=8.0)
    for name, param in model.named_parameters():
        values = param.detach()
        if param.dim() == 1:
            assert (values == 1).all(), name
        else:
            expected = 0.16 if ".experts." in name else 0.02
            assert abs(float(values.std()) / expected - 1) < 0.1, name
