"""Norm and clipping over parameters of different meshes, against one rank that holds everything."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from epbench.model.init import shard_box
from epbench.parallel.gradients import clip_, is_first_replica, local_gradients, num_replicas, sum_of_squares
from tests.model.compare import assert_same
from tests.ranks import run_on_ranks

WORLD = 4
CPU = torch.device("cpu")
# name: (shape, (axes of the mesh), placements, ranks that hold the same part)
CASES: dict[str, tuple[tuple[int, ...], tuple[str, ...], tuple[Placement, ...], int]] = {
    "fsdp and tp": ((8, 12), ("a", "b"), (Shard(0), Shard(1)), 1),
    "both on one dim": ((8, 3), ("a", "b"), (Shard(0), Shard(0)), 1),
    "replicated over tp": ((8,), ("a", "b"), (Shard(0), Replicate()), 2),
    "replicated over dp_replicate": ((8, 4), ("a", "b"), (Replicate(), Shard(0)), 2),
    "replicated over both": ((5, 3), ("a", "b"), (Replicate(), Replicate()), 4),
    "the other mesh": ((8, 6), ("world",), (Shard(0),), 1),
    "fewer rows than ranks": ((3, 7), ("world",), (Shard(0),), 1),
    "an uneven last part": ((6, 2), ("world",), (Shard(0),), 1),
}


def _wholes() -> dict[str, Tensor]:
    """A gradient for each case, of very different sizes, so that a wrong weight of any shows in the norm."""
    generator = torch.Generator().manual_seed(11)
    sizes = enumerate(CASES.items())
    return {name: (1 + 0.5 * index) * torch.randn(case[0], generator=generator) for index, (name, case) in sizes}


def _params() -> dict[str, Tensor]:
    """The cases as DTensors on this world's meshes, each with its gradient; one more has none."""
    world = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("world",))
    grid = world._unflatten(0, (2, 2), ("a", "b"))
    params: dict[str, Tensor] = {}
    for name, whole in _wholes().items():
        mesh = world if CASES[name][1] == ("world",) else grid
        param = nn.Parameter(distribute_tensor(torch.zeros_like(whole), mesh, CASES[name][2]))
        param.grad = distribute_tensor(whole, mesh, CASES[name][2])
        params[name] = param
    params["without a gradient"] = nn.Parameter(distribute_tensor(torch.ones(4), world, [Shard(0)]))
    return params


def _norm(gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
    squares = sum_of_squares(gradients, world_size=WORLD, device=CPU)
    dist.all_reduce(squares)
    return squares.sqrt()


def _check_replicas(params: dict[str, Tensor]) -> None:
    """Every part has exactly one first holder, and as many holders as the table says."""
    for name, (shape, _, _, holders) in CASES.items():
        param = params[name]
        assert num_replicas(param, WORLD) == holders, name
        held, first = torch.zeros(shape), torch.zeros(shape)
        part = tuple(slice(start, start + length) for start, length in shard_box(param))
        held[part] += 1
        first[part] += is_first_replica(param)
        dist.all_reduce(held)
        dist.all_reduce(first)
        assert (held == holders).all(), f"{name}: {held}"
        assert (first == 1).all(), f"{name}: {first}"


def _check_norm_and_clipping(max_norm: float) -> list[float]:
    params, wholes = _params(), _wholes()
    _check_replicas(params)
    gradients = local_gradients(params.values())
    assert len(gradients) == len(CASES), "a parameter without a gradient is left out"
    norm = _norm(gradients)
    reference = [nn.Parameter(torch.zeros_like(whole)) for whole in wholes.values()]
    for param, whole in zip(reference, wholes.values(), strict=True):
        param.grad = whole.clone()
    expected = nn.utils.clip_grad_norm_(reference, max_norm or math.inf, foreach=False)
    assert_same(norm, expected, "norm", tolerance=1e-6)

    clip_([grad for _, grad in gradients], norm, max_norm)
    for name, param in zip(wholes, reference, strict=True):
        clipped = params[name].grad
        assert isinstance(clipped, DTensor)
        assert_same(clipped.full_tensor(), param.grad, f"clipped gradient of {name}", tolerance=1e-6)
    return [norm.item(), _norm(gradients).item()]


@pytest.mark.parametrize("max_norm", [0.5, 1e6, 0.0])
def test_norm_and_clipped_gradients_are_those_of_one_rank(max_norm: float) -> None:
    results = run_on_ranks(WORLD, _check_norm_and_clipping, max_norm)
    assert all(result == results[0] for result in results), "every rank has the same norm"
    before, after = results[0]
    assert after == pytest.approx(max_norm if 0 < max_norm < before else before, rel=1e-5)


def test_a_plain_tensor_is_held_by_every_rank_of_the_world() -> None:
    assert num_replicas(torch.zeros(3), 8) == 8
    assert is_first_replica(torch.zeros(3)), "only a world of one rank has plain parameters"


def test_the_norm_of_nothing_is_zero() -> None:
    empty = nn.Parameter(torch.zeros(0, 3))
    for gradients in ([], [(empty, torch.zeros(0, 3))]):
        assert sum_of_squares(gradients, world_size=4, device=CPU).item() == 0.0


@pytest.mark.parametrize("max_norm", [0.0, 10.0])
def test_gradients_within_the_bound_keep_every_bit(max_norm: float) -> None:
    gradients = [torch.randn(3, 4), torch.randn(5), torch.zeros(0, 2)]
    before = [gradient.clone() for gradient in gradients]
    clip_(gradients, torch.tensor(9.99), max_norm)
    assert all(map(torch.equal, gradients, before))


def test_bf16_gradients_are_summed_in_fp32() -> None:
    """1000 entries of 1/32: their squares sum to 0.9765625, exactly, in fp32."""
    grad = torch.full((1000,), 1 / 32, dtype=torch.bfloat16)
    squares = sum_of_squares([(nn.Parameter(torch.zeros(1000)), grad)], world_size=1, device=CPU)
    assert squares.dtype == torch.float32
    assert squares.item() == pytest.approx(1000 / 1024, rel=2**-8)
