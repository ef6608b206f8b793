"""Dispatch, experts, shared experts and combine on one rank, against the definition written out."""

import pytest
import torch
from torch import Tensor, nn

from epbench.cells import ModelSpec
from epbench.model.moe import MoE
from epbench.runner.reference import LoopMoE
from tests.model.compare import assert_same

TOKENS = 13
SPEC = ModelSpec(hidden_size=16, moe_intermediate_size=8, num_experts=8, num_experts_per_tok=3)


def _fill(module: nn.Module, std: float) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for param in module.parameters():
            param.copy_(std * torch.randn(param.shape, generator=generator))


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, SPEC.hidden_size, generator=torch.Generator().manual_seed(6))


def _moe(forced_ids: Tensor | None, **changes: object) -> MoE:
    moe = MoE(SPEC.model_copy(update=changes))
    _fill(moe, 0.5)
    moe.router.forced_ids = forced_ids
    return moe


FORCED = {
    "natural": None,
    "three experts take all": torch.tensor([1, 4, 6]).repeat(2 * TOKENS, 1),
    "two copies on one expert": torch.tensor([5, 5, 2]).repeat(2 * TOKENS, 1),
}


@pytest.mark.parametrize("routing", FORCED)
@pytest.mark.parametrize("normalise", [True, False])
def test_sorted_and_grouped_experts_equal_a_loop_over_them(routing: str, normalise: bool) -> None:
    moe = _moe(FORCED[routing], norm_topk_prob=normalise)
    x = _tokens(2, TOKENS).requires_grad_()
    inputs = {"tokens": x, **dict(moe.named_parameters())}
    expected = LoopMoE(moe, SPEC.model_copy(update={"norm_topk_prob": normalise}))(x)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(8))
    wanted = torch.autograd.grad(expected, list(inputs.values()), gradient)

    result = moe(x)
    got = torch.autograd.grad(result, list(inputs.values()), gradient)
    assert_same(result, expected, "output")
    for name, actual, gradient_wanted in zip(inputs, got, wanted, strict=True):
        assert_same(actual, gradient_wanted, f"gradient of {name}")


def test_scores_multiply_the_outputs_of_experts() -> None:
    """By hand: expert e answers c_e * x (its SwiGLU replaced), so the output is x times the scored sum of c."""
    moe, x = _moe(None), _tokens(1, TOKENS)
    factors = torch.arange(1.0, SPEC.num_experts + 1)
    routed = moe.route(x)
    ends = routed.offsets.tolist()
    expert_of_row = torch.repeat_interleave(torch.arange(len(ends)), torch.tensor([0, *ends]).diff())
    out = moe.merge(routed.rows * factors[expert_of_row].unsqueeze(1), routed, 1)

    ids, scores = moe.router(x[0])
    expected = x[0] * (scores * factors[ids]).sum(dim=1, keepdim=True)
    assert_same(out[0], expected, "output")


def test_rows_are_sorted_by_expert_and_all_are_there() -> None:
    moe, x = _moe(None), _tokens(1, TOKENS)
    routed = moe.route(x)
    ids, _ = moe.router(x[0])
    assert routed.offsets.dtype == torch.int32
    assert routed.offsets.tolist() == [int((ids <= expert).sum()) for expert in range(SPEC.num_experts)]
    for expert, rows in enumerate(routed.rows.tensor_split(routed.offsets[:-1].long())):
        assert torch.equal(rows, x[0][(ids == expert).any(dim=1)]), f"rows of expert {expert}"
