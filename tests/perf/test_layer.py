"""What the parts of a layer with experts cost on one rank: router, permutation, grouped products, weighted sum.

Every benchmark calls what a step calls. Sizes: ``tests/perf/sizes.py``; how to run and compare: ``docs/perf.md``.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from epbench.cells import ModelSpec
from epbench.model.moe import Choice, Experts, LocalDispatcher, MoE, Routed, sort_by_expert
from epbench.model.permute import expand
from epbench.model.router import Router
from tests.perf.sizes import Layer
from tests.perf.timed import Direction, clock, describe, device_of, dtype_of, time_call, with_backward

pytestmark = [pytest.mark.benchmark(timer=clock, disable_gc=True), pytest.mark.usefixtures("one_thread")]

STD = 0.02


def _model(layer: Layer) -> ModelSpec:
    return ModelSpec(
        hidden_size=layer.hidden,
        num_experts=layer.experts,
        num_experts_per_tok=layer.top_k,
        moe_intermediate_size=layer.width,
    )


def _normal(*shape: int) -> Tensor:
    """A leaf of standard normal numbers that wants a gradient."""
    device = device_of()
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, device=device, dtype=dtype_of(device), generator=generator).requires_grad_()


def _filled(module: torch.nn.Module) -> torch.nn.Module:
    device = device_of()
    module.to(device, dtype_of(device))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=STD)
    return module


def _ids(layer: Layer) -> Tensor:
    """Another choice of distinct experts for each token: [T, K] int64."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(layer.tokens, layer.experts, generator=generator).topk(layer.top_k)[1].to(device_of())


def _routed(layer: Layer) -> Routed:
    x, ids = _normal(layer.tokens, layer.hidden), _ids(layer)
    scores = torch.full(ids.shape, 1 / layer.top_k, device=x.device)
    return LocalDispatcher().dispatch(x.detach(), Choice(ids), scores, layer.experts)


def test_router(benchmark: BenchmarkFixture, layer: Layer, direction: Direction) -> None:
    """Product with the gate, softmax, top-k, normalised scores."""
    router, x = _filled(Router(_model(layer))), _normal(layer.tokens, layer.hidden)
    describe(benchmark, "router", layer, direction, x=x.shape, top_k=layer.top_k)
    time_call(benchmark, with_backward(direction, lambda: router(x)[1], [x, *router.parameters()]))


def test_permute(benchmark: BenchmarkFixture, layer: Layer, direction: Direction) -> None:
    """The order of all copies by expert, its inverse, and the copies in that order."""
    x, ids = _normal(layer.tokens, layer.hidden), _ids(layer)
    describe(benchmark, "permute", layer, direction, x=x.shape, ids=ids.shape)
    time_call(benchmark, with_backward(direction, lambda: expand(x, *sort_by_expert(ids, layer.experts)), [x]))


def test_merge(benchmark: BenchmarkFixture, layer: Layer, direction: Direction) -> None:
    """Copies back in order of tokens and summed, weighted by their scores."""
    moe, routed = MoE(_model(layer)), _routed(layer)
    y = _normal(layer.tokens * layer.top_k, layer.hidden)
    describe(benchmark, "merge", layer, direction, y=y.shape)
    time_call(benchmark, with_backward(direction, lambda: moe.merge(y, routed, 1), [y]))


def test_experts(benchmark: BenchmarkFixture, layer: Layer, direction: Direction) -> None:
    """Three grouped products of all experts, on one rank that holds them all."""
    experts, routed = _filled(Experts(_model(layer))), _routed(layer)
    rows = routed.rows.requires_grad_()
    describe(benchmark, "experts", layer, direction, rows=rows.shape, w1=experts.get_parameter("w1").shape)
    wrt = [rows, *experts.parameters()]
    time_call(benchmark, with_backward(direction, lambda: experts(rows, routed.offsets), wrt))
