"""The collectives: rows by hand, gradients by hand, adjoints by inner products, and the labels that they carry."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.labels import CommLabel
from epbench.layout import Layout
from epbench.model.moe import Choice
from epbench.parallel.communication import (
    Axis,
    all_to_all,
    all_to_all_even,
    await_splits,
    exchange_counts,
    gather_sequence,
    scatter_sequence,
)
from epbench.parallel.dispatch import AllToAllDispatcher
from epbench.stacks.data import batches
from epbench.stacks.protocol import World
from epbench.stacks.qwen3_moe import build
from tests.ranks import run_on_ranks

WORLD = 4
CPU = torch.device("cpu")
# rows that rank i sends to rank j: rank 1 sends nothing, rank 2 gets nothing, rank 3 keeps some
SENT = ((2, 1, 0, 3), (0, 0, 0, 0), (1, 4, 0, 0), (5, 0, 0, 2))


def _axis() -> Axis:
    return Axis.of(init_device_mesh("cpu", (WORLD,), mesh_dim_names=("ep",)), "ep")


def _row(source: int, target: int, index: int) -> list[float]:
    return [float(source), float(target), float(index)]


def _sent(rank: int) -> Tensor:
    """What ``rank`` sends: rows that say from where, to where, and which of those they are."""
    rows = [_row(rank, target, index) for target in range(WORLD) for index in range(SENT[rank][target])]
    return torch.tensor(rows).view(-1, 3)


def _received(rank: int) -> Tensor:
    """What ``rank`` gets: in order of source."""
    rows = [_row(source, rank, index) for source in range(WORLD) for index in range(SENT[source][rank])]
    return torch.tensor(rows).view(-1, 3)


def _splits(rank: int) -> Tensor:
    return torch.tensor([SENT[rank], [row[rank] for row in SENT]])


def _check_uneven() -> None:
    axis = _axis()
    rank, splits = axis.rank, _splits(axis.rank)
    x = _sent(rank).requires_grad_()
    y = all_to_all(x, splits, axis=axis, purpose="dispatch")
    assert torch.equal(y, _received(rank)), y

    # d/dx of sum(y * (10 + y)) with the factor held fixed: each row comes home as ten more than itself
    (y * (10 + _received(rank))).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 10 + _sent(rank)), x.grad

    back = _received(rank).requires_grad_()
    home = all_to_all(back, splits, axis=axis, purpose="combine", reverse=True, rows=sum(SENT[rank]))
    assert torch.equal(home, _sent(rank)), home
    (home * (10 + _sent(rank))).sum().backward()
    assert back.grad is not None
    assert torch.equal(back.grad, 10 + _received(rank)), back.grad


def test_uneven_rows_arrive_in_order_of_source_and_gradients_go_home() -> None:
    run_on_ranks(WORLD, _check_uneven)


def _check_expanded_gradient() -> None:
    """``sum()`` sends back a gradient of stride 0, which gloo and NCCL cannot send as it is."""
    axis = _axis()
    x = _sent(axis.rank).requires_grad_()
    all_to_all(x, _splits(axis.rank), axis=axis, purpose="dispatch").sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def _check_even_and_counts() -> None:
    axis = _axis()
    _check_expanded_gradient()
    x = torch.tensor([[_row(axis.rank, target, 0)] for target in range(WORLD)], requires_grad=True)
    y = all_to_all_even(x, axis=axis, purpose="ulysses_in")
    assert torch.equal(y, torch.tensor([[_row(source, axis.rank, 0)] for source in range(WORLD)]))
    (y * (axis.rank + 1)).sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0, 0].tolist() == [1, 2, 3, 4], "the gradient of a chunk is the factor of whoever got it"

    per_expert = torch.tensor([[target + 1, 10 * axis.rank] for target in range(WORLD)]).flatten()
    both, on_its_way = exchange_counts(per_expert, axis=axis)
    assert both[0].tolist() == per_expert.tolist()
    assert both[1].view(WORLD, -1).tolist() == [[axis.rank + 1, 10 * source] for source in range(WORLD)]
    splits = await_splits(both, on_its_way, axis=axis)
    assert splits.tolist() == [
        [target + 1 + 10 * axis.rank for target in range(WORLD)],
        [axis.rank + 1 + 10 * source for source in range(WORLD)],
    ]
    assert splits.device.type == "cpu"
    _check_order()


class _Ops(TorchDispatchMode):
    """The names of our own operators, in order of their calls."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "epbench":
            self.names.append(func.name().removeprefix("epbench::"))
        return func(*args, **(kwargs or {}))


def _check_order() -> None:
    """The host waits for the counts when all else is queued; who has them already exchanges none."""
    dispatcher, x = AllToAllDispatcher(_axis()), torch.arange(12.0).view(6, 2)
    scores = torch.ones(6, 2)
    with _Ops() as first:
        routed = dispatcher.dispatch(x, Choice(torch.arange(12).view(6, 2) % 8), scores, 8)
    assert first.names == ["exchange_counts", "expand", "await_splits", "all_to_all", "permute"]
    with _Ops() as again:
        repeated = dispatcher.dispatch(x, routed.choice, scores, 8)
    assert again.names == first.names[1:]
    assert torch.equal(repeated.rows, routed.rows)


def test_even_chunks_and_counts() -> None:
    run_on_ranks(WORLD, _check_even_and_counts)


def _inner(x: Tensor, y: Tensor) -> float:
    """The inner product over all ranks."""
    product = (x * y).sum()
    dist.all_reduce(product)
    return product.item()


def _check_adjoint() -> None:
    """<A x, y> = <x, A^T y> for gather = A and scatter = A^T, and autograd uses the same pair."""
    axis = _axis()
    generator = torch.Generator().manual_seed(axis.rank)
    x = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(3, 5 * WORLD, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    gathered, scattered = gather_sequence(x, axis=axis), scatter_sequence(y, axis=axis)
    assert (gathered.shape, scattered.shape) == (y.shape, x.shape)
    left, right = _inner(gathered.detach(), y.detach()), _inner(x.detach(), scattered.detach())
    assert left == pytest.approx(right, rel=1e-13)
    assert abs(left) > 1e-3, "two zeros would agree whatever the operators"

    (dx,) = torch.autograd.grad(gathered, x, y.detach())
    (dy,) = torch.autograd.grad(scattered, y, x.detach())
    assert torch.equal(dx, scattered)
    assert torch.equal(dy, gathered)


def _check_sequence_by_hand() -> None:
    axis = _axis()
    own = torch.tensor([[[10.0 * axis.rank], [10.0 * axis.rank + 1]], [[100.0 + axis.rank], [200.0 + axis.rank]]])
    gathered = gather_sequence(own, axis=axis)
    assert gathered[0, :, 0].tolist() == [0, 1, 10, 11, 20, 21, 30, 31]
    assert gathered[1, :, 0].tolist() == [100, 200, 101, 201, 102, 202, 103, 203]
    summed = scatter_sequence(gathered * (axis.rank + 1), axis=axis)
    assert torch.equal(summed, 10 * own), "1 + 2 + 3 + 4 times this rank's own chunk"


def _check_sequence() -> None:
    _check_sequence_by_hand()
    _check_adjoint()


def test_gathering_and_scattering_the_sequence_are_adjoint() -> None:
    run_on_ranks(WORLD, _check_sequence)


def _labels(profiler: profile) -> list[CommLabel]:
    parsed = [CommLabel.parse(event.name) for event in profiler.events() or []]
    return [label for label in parsed if label is not None]


def _labels_of_one_exchange() -> list[CommLabel]:
    axis = _axis()
    splits = _splits(axis.rank)

    def exchange(x: Tensor) -> Tensor:
        return all_to_all(x.sin(), splits, axis=axis, purpose="dispatch").sin()

    x = _sent(axis.rank).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        y: Tensor = checkpoint(exchange, x, use_reentrant=False, preserve_rng_state=False)
        y.sum().backward()
    return _labels(profiler)


def test_labels_say_purpose_phase_axis_group_and_bytes() -> None:
    row_bytes = 3 * 4
    for rank, labels in enumerate(run_on_ranks(WORLD, _labels_of_one_exchange)):
        sent, received = sum(SENT[rank]) * row_bytes, sum(row[rank] for row in SENT) * row_bytes
        assert labels == [
            CommLabel("all_to_all", "dispatch", "forward", "ep", 0, WORLD, sent, received),
            CommLabel("all_to_all", "dispatch", "recompute", "ep", 0, WORLD, sent, received),
            CommLabel("all_to_all", "dispatch", "backward", "ep", 0, WORLD, received, sent),
        ]


LAYERS = 2
CELL = Cell(
    layout=Layout(cp=2, tp=2, ep=4),
    model=ModelSpec(num_layers=LAYERS),
    train=TrainSpec(seq_len=32, global_batch_size=2, activation_checkpointing="full"),
)


def _labels_of_a_step(cell: Cell) -> list[CommLabel]:
    step = build(cell, World(dist.get_rank(), WORLD, dist.get_rank(), CPU))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step.run(batches(cell, 1, CPU)[0])
    return _labels(profiler)


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_every_collective_of_a_step_is_labelled(checkpointing: str) -> None:
    """How often follows from the model: each all-to-all once a layer, again if recomputed.

    Counts have no gradient, and full checkpointing keeps them; selective checkpointing keeps every all-to-all.
    """
    train = CELL.train.model_copy(update={"activation_checkpointing": checkpointing})
    recomputed = LAYERS if checkpointing == "full" else 0
    for labels in run_on_ranks(WORLD, _labels_of_a_step, CELL.model_copy(update={"train": train})):
        exchanges = Counter((it.purpose, it.phase) for it in labels if it.op == "all_to_all")
        expected = Counter({("count_exchange", "forward"): LAYERS})
        for purpose in ("dispatch", "combine", "ulysses_in", "ulysses_out"):
            for phase, calls in (("forward", LAYERS), ("backward", LAYERS), ("recompute", recomputed)):
                expected[purpose, phase] = calls
        assert exchanges == +expected
        assert [it.op for it in labels if it.purpose == "norm"] == ["all_reduce"]
        assert {it.axis: it.size for it in labels} == {"ep": 4, "cp": 2, "tp": 2, "world": 4}


def test_bytes_of_dispatch_add_up_over_ranks() -> None:
    """64 tokens x 2 copies x 64 wide x 4 bytes leave all ranks together and arrive, whatever the routing."""
    labels = [it for rank in run_on_ranks(WORLD, _labels_of_a_step, CELL) for it in rank]
    moved = LAYERS * CELL.tokens_per_step * 2 * CELL.model.hidden_size * 4
    for purpose in ("dispatch", "combine"):
        for phase in ("forward", "backward", "recompute"):
            chosen = [it for it in labels if (it.purpose, it.phase) == (purpose, phase)]
            assert sum(it.sent_bytes for it in chosen) == moved, (purpose, phase)
            assert sum(it.received_bytes for it in chosen) == moved, (purpose, phase)
