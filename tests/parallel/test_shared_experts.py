"""The styles alone, on a layer with shared experts: every gradient, and AdamW's step of the gate, as on one rank."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from epbench.cells import ModelSpec
from epbench.model.moe import MoE
from epbench.parallel.styles import ExpertTensorParallel, ReplicateParallel, TensorParallel
from tests.model.compare import assert_same
from tests.ranks import run_on_ranks

SPEC = ModelSpec(hidden_size=16, moe_intermediate_size=32, num_experts=4, n_shared_experts=2)


def _layer() -> MoE:
    generator, layer = torch.Generator().manual_seed(5), MoE(SPEC)
    with torch.no_grad():
        for param in layer.parameters():
            param.copy_(0.3 * torch.randn(param.shape, generator=generator))
    return layer


def _spread(style: str) -> MoE:
    """Over four ranks, as a reader of the styles' docstrings would do it."""
    layer = _layer()
    if style == "TensorParallel":
        mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
        parallelize_module(layer, mesh, {"router.gate": ReplicateParallel(), "": TensorParallel()})
    else:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ep", "tp"))
        parallelize_module(layer, mesh, ExpertTensorParallel())
        parallelize_module(layer.router.gate, mesh["tp"], ReplicateParallel())
    return layer


def _whole(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.full_tensor() if isinstance(x, DTensor) else x


def _check(style: str) -> None:
    """The ranks of an ``ep`` group have the same tokens here, so that their gradients are twice those of one rank."""
    spread, alone = _spread(style), _layer()
    tp, copies = (4, 1) if style == "TensorParallel" else (2, 2)
    x = torch.randn(1, 8, SPEC.hidden_size, generator=torch.Generator().manual_seed(6))
    own = dist.get_rank() % tp
    out, expected = spread(x.chunk(tp, 1)[own]), alone(x)
    assert_same(out, expected.chunk(tp, 1)[own], f"{style}: output")
    out.square().sum().backward()
    expected.square().sum().backward()

    wanted = dict(alone.named_parameters())
    for name, param in spread.named_parameters():
        times = copies if ".w" in name and name.startswith("experts.") else 1
        gradient = wanted[name].grad
        assert gradient is not None
        assert_same(_whole(param.grad), times * gradient, f"{style}: gradient of {name}")
    for layer in (spread, alone):
        torch.optim.AdamW(layer.router.parameters(), eps=1.0, lr=0.1).step()  # eps: no mere sign of the gradient
    assert_same(_whole(spread.router.gate.weight), wanted["router.gate.weight"], f"{style}: the gate after a step")


def _check_both() -> None:
    for style in ("TensorParallel", "ExpertTensorParallel"):
        _check(style)


def test_a_layer_that_a_style_splits_has_its_shared_experts_split_too() -> None:
    run_on_ranks(4, _check_both)
