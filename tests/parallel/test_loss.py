"""The fused loss against ``F.cross_entropy`` over all logits: any chunk size, any labels, any split of the words."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from epbench.model.decoder import token_loss
from epbench.parallel.communication import Axis
from epbench.parallel.loss import FusedLoss
from tests.model.compare import assert_same
from tests.ranks import run_on_ranks

TOKENS, WIDTH, VOCAB = 37, 16, 48
SCALE = 1 / 29
LABELS = ("all counted", "some ignored", "a chunk ignored", "all ignored", "words of one rank only")


def _operands(*, size: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = size * torch.randn(VOCAB, WIDTH, generator=generator)
    return x.requires_grad_(), weight.requires_grad_()


def _labels(case: str) -> Tensor:
    labels = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(10))
    if case == "some ignored":
        labels[::3] = -100
    elif case == "a chunk ignored":
        labels[8:24] = -100
    elif case == "all ignored":
        labels[:] = -100
    elif case == "words of one rank only":
        labels %= VOCAB // 2
    return labels


def _plain(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients, all logits at once."""
    loss = SCALE * F.cross_entropy(x @ weight.T, labels, ignore_index=-100, reduction="sum")
    dx, dw = torch.autograd.grad(loss, (x, weight))
    return loss.detach(), dx, dw


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 2048])
def test_value_and_both_gradients_are_those_of_cross_entropy(chunk: int, labels: str) -> None:
    x, weight = _operands()
    expected, dx, dw = _plain(x, weight, _labels(labels))
    loss = FusedLoss(chunk=chunk)(x, weight, _labels(labels), torch.tensor(SCALE))
    loss.backward()
    assert_same(loss, expected, "loss")
    assert_same(x.grad, dx, "gradient of the inputs")
    assert_same(weight.grad, dw, "gradient of the weight")


def test_an_ignored_token_has_a_gradient_of_exactly_zero() -> None:
    x, weight = _operands()
    labels = _labels("a chunk ignored")
    FusedLoss(chunk=8)(x, weight, labels, torch.tensor(SCALE)).backward()
    assert x.grad is not None
    assert torch.equal(x.grad.any(dim=1), labels != -100)


def test_the_gradient_that_comes_in_is_multiplied() -> None:
    x, weight = _operands()
    _, dx, dw = _plain(x, weight, _labels("some ignored"))
    (-2.5 * FusedLoss(chunk=8)(x, weight, _labels("some ignored"), torch.tensor(SCALE))).backward()
    assert_same(x.grad, -2.5 * dx, "gradient of the inputs")
    assert_same(weight.grad, -2.5 * dw, "gradient of the weight")


def test_large_logits_do_not_overflow() -> None:
    """Logits of several hundred: their exponent alone is infinite in fp32."""
    x, weight = _operands(size=100.0)
    assert (x @ weight.T).max() > 500
    expected, dx, _ = _plain(x, weight, _labels("all counted"))
    loss = FusedLoss(chunk=8)(x, weight, _labels("all counted"), torch.tensor(SCALE))
    loss.backward()
    assert_same(loss, expected, "loss")
    assert_same(x.grad, dx, "gradient of the inputs")


def test_bf16_operands_give_an_fp32_loss_and_bf16_gradients() -> None:
    """Against the plain form, whose logits are rounded to bf16 too; what differs is the order of sums."""
    x, weight = (operand.detach().bfloat16().requires_grad_() for operand in _operands())
    labels, scale = _labels("some ignored"), torch.tensor(SCALE)
    expected = token_loss(x, weight, labels, scale)
    dx, dw = torch.autograd.grad(expected, (x, weight))
    loss = FusedLoss(chunk=8)(x, weight, labels, scale)
    loss.backward()
    assert loss.dtype == torch.float32
    assert_same(loss, expected, "loss")
    for operand, wanted, what in ((x, dx, "inputs"), (weight, dw, "weight")):
        assert operand.grad is not None
        assert operand.grad.dtype == torch.bfloat16
        assert_same(operand.grad.float(), wanted.float(), what, tolerance=2**-7)


def _split_vocabulary(chunk: int) -> list[float]:
    """On 2 ranks: each holds half of the words; loss and gradients against the whole on this rank."""
    axis = Axis.of(init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)), "tp")
    losses = []
    for size, labels in [*((1.0, case) for case in LABELS), (100.0, "all counted")]:
        x, weight = _operands(size=size)
        expected, dx, dw = _plain(x, weight, _labels(labels))
        own = weight.detach().chunk(2)[axis.rank].clone().requires_grad_()
        loss = FusedLoss(axis, chunk=chunk)(x, own, _labels(labels), torch.tensor(SCALE))
        loss.backward()
        assert x.grad is not None
        dist.all_reduce(x.grad)  # partial over tp, as the docstring says
        assert_same(loss, expected, f"{labels}, {size}: loss")
        assert_same(x.grad, dx, f"{labels}, {size}: gradient of the inputs")
        assert_same(own.grad, dw.chunk(2)[axis.rank], f"{labels}, {size}: gradient of the weight")
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("chunk", [8, 2048])
def test_vocabulary_split_over_two_ranks_equals_one(chunk: int) -> None:
    first, second = run_on_ranks(2, _split_vocabulary, chunk)
    assert first == second, "both ranks return the same loss"
