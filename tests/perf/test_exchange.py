"""What two ranks need to exchange rows: dispatch and combine over ep 2, Ulysses over cp 2. Timed on rank 0.

Over NCCL on two GPUs, else over gloo, whose numbers say what the host does and nothing of a network.
"""

import pytest
import torch
import torch.distributed as dist
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from epbench.model.moe import Choice
from epbench.parallel.communication import Axis
from epbench.parallel.context import heads_to_sequence, sequence_to_heads
from epbench.parallel.dispatch import AllToAllDispatcher
from tests.perf.sizes import Heads, Layer
from tests.perf.timed import (
    Call,
    Direction,
    clock,
    describe,
    device_of,
    dtype_of,
    time_on_two_ranks,
    with_backward,
)
from tests.ranks import beside_rank_1

pytestmark = [pytest.mark.benchmark(timer=clock, disable_gc=True), pytest.mark.usefixtures("one_thread")]


def _axis(name: str) -> Axis:
    group = dist.group.WORLD
    assert group is not None, "ranks have a group of all"
    return Axis.from_group(group, name)


def _normal(*shape: int) -> Tensor:
    device = device_of(dist.get_rank())
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    return torch.randn(shape, device=device, dtype=dtype_of(device), generator=generator).requires_grad_()


def _choice(layer: Layer) -> tuple[Choice, Tensor]:
    """Distinct experts for each token, others on each rank, and equal scores."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    ids = torch.rand(layer.tokens, layer.experts, generator=generator).topk(layer.top_k)[1]
    ids = ids.to(device_of(dist.get_rank()))
    return Choice(ids), torch.full(ids.shape, 1 / layer.top_k, device=ids.device)


def dispatch(layer: Layer, direction: Direction) -> Call:
    """Count exchange, copies by expert, rows to their ranks, rows by local expert."""
    dispatcher, x = AllToAllDispatcher(_axis("ep")), _normal(layer.tokens, layer.hidden)
    choice, scores = _choice(layer)
    return with_backward(direction, lambda: dispatcher.dispatch(x, choice, scores, layer.experts).rows, [x])


def combine(layer: Layer, direction: Direction) -> Call:
    """The way back of rows that were dispatched once."""
    dispatcher, x = AllToAllDispatcher(_axis("ep")), _normal(layer.tokens, layer.hidden)
    routed = dispatcher.dispatch(x.detach(), *_choice(layer), layer.experts)
    y = _normal(*routed.rows.shape)
    return with_backward(direction, lambda: dispatcher.combine(y, routed), [y])


def ulysses(heads: Heads, direction: Direction) -> Call:
    """Queries, keys and values to whole sequences of own heads, and queries back."""
    axis, own = _axis("cp"), heads.tokens // 2
    q = _normal(1, own, heads.heads, heads.head_dim)
    kv = [_normal(1, own, heads.kv_heads, heads.head_dim) for _ in range(2)]

    def there_and_back() -> tuple[Tensor, ...]:
        whole_q, *whole_kv = sequence_to_heads(q, *kv, axis=axis)
        return heads_to_sequence(whole_q, axis=axis), *whole_kv

    return with_backward(direction, there_and_back, [q, *kv])


def _raises(rank_1: str) -> None:
    raise ValueError(rank_1)


@pytest.mark.parametrize("waits", [True, False], ids=["rank 0 waits in a collective", "rank 0 is done"])
def test_what_rank_1_raised_is_told(waits: bool) -> None:
    with pytest.raises(AssertionError, match="ValueError: its own words"), beside_rank_1(_raises, "its own words"):
        if waits:
            dist.all_reduce(torch.ones(1))
    assert not dist.is_initialized()


@pytest.mark.parametrize("part", ["dispatch", "combine"])
def test_expert_parallel(benchmark: BenchmarkFixture, layer: Layer, direction: Direction, part: str) -> None:
    describe(benchmark, part, layer, "ranks=2", direction, x=(layer.tokens, layer.hidden), top_k=layer.top_k)
    time_on_two_ranks(benchmark, dispatch if part == "dispatch" else combine, layer, direction)


def test_ulysses(benchmark: BenchmarkFixture, heads: Heads, direction: Direction) -> None:
    q = (1, heads.tokens // 2, heads.heads, heads.head_dim)
    describe(benchmark, "ulysses", heads, "ranks=2", direction, q=q, kv_heads=heads.kv_heads)
    time_on_two_ranks(benchmark, ulysses, heads, direction)
