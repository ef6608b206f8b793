"""Dispatch, experts, shared experts and combine on one rank, against the definition written out and published code."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from epbench.cells import ModelSpec
from epbench.model.decoder import Decoder
from epbench.model.moe import MoE, grouped_experts, loop_experts
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


SIGMOID: dict[str, Any] = {"scoring_func": "sigmoid", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "as in Qwen3": {},
    "scores not normalised": {"norm_topk_prob": False},
    "sigmoid, groups and a scale": SIGMOID,
    "shared experts": {"n_shared_experts": 2},
    "scores before experts": {"score_before_experts": True, "norm_topk_prob": False},
    "all of it": {**SIGMOID, "n_shared_experts": 1, "score_before_experts": True},
}
FORCED = {
    "natural": None,
    "three experts take all": torch.tensor([1, 4, 6]).repeat(2 * TOKENS, 1),
    "two copies on one expert": torch.tensor([5, 5, 2]).repeat(2 * TOKENS, 1),
}


@pytest.mark.parametrize("routing", FORCED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_those_of_a_loop_over_experts(variant: str, routing: str) -> None:
    moe = _moe(FORCED[routing], **VARIANTS[variant])
    x = _tokens(2, TOKENS).requires_grad_()
    inputs = {"tokens": x, **dict(moe.named_parameters())}
    expected = LoopMoE(moe, SPEC.model_copy(update=VARIANTS[variant]))(x)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(8))
    wanted = torch.autograd.grad(expected, list(inputs.values()), gradient)

    result = moe(x)
    got = torch.autograd.grad(result, list(inputs.values()), gradient)
    assert_same(result, expected, "output")
    for name, actual, gradient_wanted in zip(inputs, got, wanted, strict=True):
        assert_same(actual, gradient_wanted, f"gradient of {name}")


def test_output_and_every_gradient_are_those_of_the_published_layer() -> None:
    """DeepSeek-V3's: sigmoid, groups, bias, scale and shared experts together."""
    spec = SPEC.model_copy(update={**SIGMOID, "n_shared_experts": 2, "router_bias_update_rate": 0.1})
    ours = MoE(spec)
    _fill(ours, 0.5)
    assert ours.router.e_score_correction_bias is not None
    ours.router.e_score_correction_bias += 0.2 * torch.randn(8, generator=torch.Generator().manual_seed(9))
    theirs = DeepseekV3MoE(_published_config(spec))
    theirs.load_state_dict(_published({name: value.detach() for name, value in ours.state_dict().items()}))

    x, theirs_x = (_tokens(2, TOKENS).requires_grad_() for _ in range(2))
    result, expected = ours(x), theirs(theirs_x)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(8))
    result.backward(gradient)
    expected.backward(gradient)
    assert_same(result, expected, "output")
    assert_same(x.grad, theirs_x.grad, "gradient of the tokens")
    gradients = _published({name: param.grad for name, param in ours.named_parameters() if param.grad is not None})
    for name, param in theirs.named_parameters():
        assert_same(gradients.pop(name), param.grad, f"gradient of {name}")
    assert not gradients, "a gradient that the published layer does not have"


def _published_config(spec: ModelSpec) -> DeepseekV3Config:
    config = DeepseekV3Config(
        hidden_size=spec.hidden_size,
        moe_intermediate_size=spec.moe_intermediate_size,
        n_routed_experts=spec.num_experts,
        n_shared_experts=spec.n_shared_experts,
        num_experts_per_tok=spec.num_experts_per_tok,
        n_group=spec.n_group,
        topk_group=spec.topk_group,
        norm_topk_prob=spec.norm_topk_prob,
        routed_scaling_factor=spec.routed_scaling_factor,
    )
    config._experts_implementation = "eager"
    return config


def _published(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the published layer, where gate and up projections of the routed experts are one tensor."""
    renamed = {"router.gate.weight": "gate.weight", "router.e_score_correction_bias": "gate.e_score_correction_bias"}
    theirs = {renamed.get(name, name): value for name, value in ours.items() if not name.startswith("experts.")}
    theirs["experts.gate_up_proj"] = torch.cat([ours["experts.w1"], ours["experts.w3"]], dim=1)
    return theirs | {"experts.down_proj": ours["experts.w2"]}


ROWS = {
    "even": [3, 3, 3, 3],
    "uneven": [1, 7, 2, 5],
    "experts without rows": [0, 6, 0, 3],
    "the last without rows": [2, 4, 5, 0],
    "all rows on one expert": [0, 0, 9, 0],
    "no rows at all": [0, 0, 0, 0],
}


@pytest.mark.parametrize("case", ROWS)
def test_grouped_experts_are_a_loop_at_any_offsets(case: str) -> None:
    counts, generator = ROWS[case], torch.Generator().manual_seed(3)
    shapes = {"rows": (sum(counts), 16), "w1": (4, 8, 16), "w2": (4, 16, 8), "w3": (4, 8, 16)}
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes.values()]
    offsets = torch.tensor(counts).cumsum(0).to(torch.int32)
    rows, w1, w2, w3 = inputs
    expected, result = (experts(rows, w1, w2, w3, offsets) for experts in (loop_experts, grouped_experts))
    gradient = torch.randn(expected.shape, generator=generator)
    wanted, got = (torch.autograd.grad(out, inputs, gradient) for out in (expected, result))
    assert_same(result, expected, "output")
    for name, actual, gradient_wanted in zip(shapes, got, wanted, strict=True):
        assert_same(actual, gradient_wanted, f"gradient of {name}")


def test_the_loop_can_be_chosen_in_place_of_the_grouped_products() -> None:
    moe, x = _moe(None), _tokens(2, TOKENS)
    grouped = moe(x)
    moe.experts.products = loop_experts
    assert_same(moe(x), grouped, "output")


def test_by_hand_scores_before_experts_are_in_the_rows() -> None:
    moe, x = _moe(None, score_before_experts=True), _tokens(1, TOKENS)
    routed = moe.route(x)
    ids, scores = moe.router(x[0])
    for expert, rows in enumerate(routed.rows.tensor_split(routed.offsets[:-1].long())):
        token, slot = (ids == expert).nonzero(as_tuple=True)
        assert_same(rows, x[0][token] * scores[token, slot].unsqueeze(1), f"rows of expert {expert}")
    out = moe.merge(routed.rows, routed, 1)
    assert_same(out[0], x[0] * scores.sum(dim=1, keepdim=True), "experts that do nothing: a plain sum")


def test_scores_before_experts_are_multiplied_in_fp32_and_leave_in_the_dtype_of_the_tokens() -> None:
    moe, x = _moe(None, score_before_experts=True).bfloat16(), _tokens(1, TOKENS).bfloat16()
    moe.router.forced_ids = torch.tensor([[0, 1, 2]]).repeat(TOKENS, 1)
    routed = moe.route(x)
    _, scores = moe.router(x[0])
    expected = (x[0].float() * scores[:, :1]).bfloat16()
    assert torch.equal(routed.rows[:TOKENS], expected)


def test_shared_experts_are_named_as_published() -> None:
    with torch.device("meta"):
        names = {name for name, _ in Decoder(ModelSpec(n_shared_experts=1)).named_parameters() if "shared" in name}
    parts = ("gate_proj", "up_proj", "down_proj")
    assert names == {f"layers.{layer}.moe.shared_experts.{part}.weight" for layer in (0, 1) for part in parts}


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


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The layer alone on one rank, as docs/moe.md shows it; what it prints is what the page says it prints."""
    page = (Path(__file__).parents[2] / "docs" / "moe.md").read_text(encoding="utf-8")
    code, printed = re.findall(r"^```(?:python|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[:2]
    exec(compile(ast.parse(code), "docs/moe.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_the_settings_of_the_page_are_those_of_a_model() -> None:
    page = (Path(__file__).parents[2] / "docs" / "moe.md").read_text(encoding="utf-8")
    named = {key for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert named <= set(ModelSpec.model_fields)
    assert {key for changes in VARIANTS.values() for key in changes} <= named, "what is tested here is explained there"
