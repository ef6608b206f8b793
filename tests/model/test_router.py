"""The router on one rank: scores, groups and bias, against the definition written out and the published code."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from epbench.cells import ModelSpec
from epbench.model.router import Router, within_best_groups, zero_biases
from epbench.runner.reference import PlainRouter
from tests.model.compare import assert_same

TOKENS = 13
SPEC = ModelSpec(hidden_size=16, moe_intermediate_size=8, num_experts=8, num_experts_per_tok=3)


def _fill(module: nn.Module, std: float) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for param in module.parameters():
            param.copy_(std * torch.randn(param.shape, generator=generator))


def _router(**changes: object) -> Router:
    router = Router(SPEC.model_copy(update=changes))
    _fill(router, 0.5)
    return router


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, SPEC.hidden_size, generator=torch.Generator().manual_seed(6))


def _probabilities(router: Router, x_TD: Tensor) -> Tensor:
    """Over all experts, as the definition says: exp(logit) over its sum."""
    exponent = (x_TD @ router.gate.weight.T).float().exp()
    return exponent / exponent.sum(dim=1, keepdim=True)


def test_the_most_probable_experts_are_chosen_by_falling_score() -> None:
    router, x = _router(norm_topk_prob=False), _tokens(TOKENS)
    ids, scores = router(x)
    probabilities = _probabilities(router, x)
    expected = probabilities.argsort(dim=1, descending=True)[:, :3]
    assert torch.equal(ids, expected)
    assert_same(scores, probabilities.gather(1, expected), "scores")
    assert (scores.sum(dim=1) < 1).all(), "the softmax is over all experts, not over the chosen ones"


def test_normalised_scores_sum_to_one_and_keep_their_ratios() -> None:
    x = _tokens(TOKENS)
    ids, scores = _router(norm_topk_prob=True)(x)
    plain_ids, plain = _router(norm_topk_prob=False)(x)
    assert torch.equal(ids, plain_ids)
    assert_same(scores.sum(dim=1), torch.ones(TOKENS), "sum of scores")
    assert_same(scores[:, :1] / scores, plain[:, :1] / plain, "ratios of scores")


def test_probabilities_are_made_in_fp32_from_bf16_logits() -> None:
    router = _router(norm_topk_prob=False).bfloat16()
    x = _tokens(TOKENS).bfloat16()
    ids, scores = router(x)
    assert scores.dtype == torch.float32
    assert_same(scores, _probabilities(router, x).gather(1, ids), "scores")


@pytest.mark.parametrize("normalise", [True, False])
def test_forced_ids_replace_the_choice_and_keep_the_gradient_of_the_scores(normalise: bool) -> None:
    router, x = _router(norm_topk_prob=normalise), _tokens(TOKENS).requires_grad_()
    forced = (torch.arange(TOKENS).unsqueeze(1) + torch.tensor([0, 3, 5])) % SPEC.num_experts
    gradient = torch.randn(TOKENS, 3, generator=torch.Generator().manual_seed(7))
    expected = _probabilities(router, x).gather(1, forced)
    expected = expected / expected.sum(dim=1, keepdim=True) if normalise else expected
    d_gate, dx = torch.autograd.grad(expected, (router.gate.weight, x), gradient)

    router.forced_ids = forced
    ids, scores = router(x)
    scores.backward(gradient)
    assert torch.equal(ids, forced)
    assert_same(scores, expected, "scores")
    assert_same(router.gate.weight.grad, d_gate, "gradient of the gate")
    assert_same(x.grad, dx, "gradient of the tokens")


def test_the_last_choice_is_kept_for_whoever_asked() -> None:
    router, ids = _router(), torch.arange(TOKENS * 3).view(TOKENS, 3) % SPEC.num_experts
    router.record(ids)
    assert router.last_ids is None, "nobody asked"
    router.last_ids = torch.full((TOKENS, 3), -1)
    router.record(ids)
    assert torch.equal(router.last_ids, ids)


# ---- scoring, groups and bias as DeepSeek-V3 published them ----

PUBLISHED: dict[str, dict[str, Any]] = {
    "plain sigmoid": {},
    "scaled": {"routed_scaling_factor": 2.5},
    "not normalised": {"routed_scaling_factor": 2.5, "norm_topk_prob": False},
    "groups": {"n_group": 4, "topk_group": 2},
    "groups of two": {"n_group": 8, "topk_group": 3, "norm_topk_prob": False},
    "the widest choice": {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 8},
}


def _sigmoid_spec(**changes: Any) -> ModelSpec:
    sizes = {"num_experts": 16, "scoring_func": "sigmoid", "router_bias_update_rate": 0.1}
    return SPEC.model_copy(update=sizes | changes)


def _biased(spec: ModelSpec, std: float) -> Router:
    router = Router(spec)
    _fill(router, 0.5)
    assert router.e_score_correction_bias is not None
    router.e_score_correction_bias += std * torch.randn(spec.num_experts, generator=torch.Generator().manual_seed(9))
    return router


def _published(router: Router, spec: ModelSpec) -> DeepseekV3TopkRouter:
    config = DeepseekV3Config(
        hidden_size=spec.hidden_size,
        n_routed_experts=spec.num_experts,
        num_experts_per_tok=spec.num_experts_per_tok,
        n_group=spec.n_group,
        topk_group=spec.topk_group,
        norm_topk_prob=spec.norm_topk_prob,
        routed_scaling_factor=spec.routed_scaling_factor,
    )
    theirs = DeepseekV3TopkRouter(config)
    assert router.e_score_correction_bias is not None
    bias = router.e_score_correction_bias
    theirs.load_state_dict({"weight": router.gate.weight.detach(), "e_score_correction_bias": bias})
    return theirs


@pytest.mark.parametrize("bias", [0.0, 0.3, 3.0], ids=["no bias", "a bias", "a bias above every score"])
@pytest.mark.parametrize("case", PUBLISHED)
def test_choice_scores_and_gradients_are_those_of_the_published_router(case: str, bias: float) -> None:
    spec = _sigmoid_spec(**PUBLISHED[case])
    router = _biased(spec, bias)
    theirs, x = _published(router, spec), _tokens(64)
    _, expected, expected_ids = theirs(x)
    ids, scores = router(x)
    by_id, expected_by_id = (
        torch.zeros(64, 16).scatter(1, *pair) for pair in ((ids, scores), (expected_ids, expected))
    )
    assert torch.equal(ids.sort(dim=1)[0], expected_ids.sort(dim=1)[0])
    assert_same(by_id, expected_by_id, "scores")

    gradient = torch.randn(64, 16, generator=torch.Generator().manual_seed(7))
    (by_id * gradient).sum().backward()
    (expected_by_id * gradient).sum().backward()
    assert_same(router.gate.weight.grad, theirs.weight.grad, "gradient of the gate")


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
@pytest.mark.parametrize("case", PUBLISHED)
def test_choice_and_scores_are_those_of_the_plain_router(case: str, scoring_func: str) -> None:
    spec = _sigmoid_spec(**PUBLISHED[case], scoring_func=scoring_func)
    router, x = _biased(spec, 0.2), _tokens(64)
    plain = PlainRouter(router, spec)
    assert router.e_score_correction_bias is not None
    plain.bias.copy_(router.e_score_correction_bias)
    for ours, expected in zip(router(x), plain(x), strict=True):
        assert_same(ours.float(), expected.float(), "ids, then scores")


def test_the_bias_steers_the_choice_and_never_the_weights() -> None:
    spec = _sigmoid_spec(num_experts_per_tok=4)
    router, x = _biased(spec, 0.0), _tokens(TOKENS)
    before, _ = router(x)
    assert not (before == 5).any(dim=1).all(), "some token does not choose expert 5 by itself"
    assert router.e_score_correction_bias is not None
    router.e_score_correction_bias[5] = 10.0
    ids, scores = router(x)
    assert (ids[:, 0] == 5).all()
    logits = x @ router.gate.weight.T
    chosen = logits.sigmoid().gather(1, ids)
    assert_same(scores, chosen / chosen.sum(dim=1, keepdim=True), "scores of the biased choice")


def test_by_hand_the_best_pair_of_experts_makes_the_best_group() -> None:
    """Four groups of two; the best single expert is in group 3, whose pair is the worst."""
    scores = torch.tensor([[0.5, 0.4, 0.1, 0.7, 0.3, 0.2, 0.05, 0.75 - 0.3]])
    kept = within_best_groups(scores, num_groups=4, kept=2)
    assert kept.isfinite().tolist() == [[True, True, True, True, False, False, False, False]]
    assert torch.equal(kept[:, :4], scores[:, :4])


def test_a_masked_expert_stays_out_where_the_bias_makes_all_others_negative() -> None:
    """A mask of zero would let it win: 0 exceeds every score that a bias below -1 pushed under it."""
    spec = _sigmoid_spec(n_group=4, topk_group=1, num_experts_per_tok=4)
    router, x = _biased(spec, 0.0), _tokens(TOKENS)
    assert router.e_score_correction_bias is not None
    router.e_score_correction_bias -= 2.0
    ids, _ = router(x)
    groups = ids // 4
    assert (groups == groups[:, :1]).all(), "all four come from the one group that is kept"


def test_scores_that_vanish_together_are_no_nan() -> None:
    router = _router(scoring_func="sigmoid")
    router.forced_ids = torch.tensor([[0, 1, 2]])
    with torch.no_grad():
        router.gate.weight.fill_(-100.0)
    _, scores = router(torch.ones(1, SPEC.hidden_size))
    assert scores.tolist() == [[0.0, 0.0, 0.0]]


def test_a_bias_exists_only_where_it_is_updated_and_starts_at_zero() -> None:
    assert _router().e_score_correction_bias is None
    with torch.device("meta"):
        router = Router(_sigmoid_spec())
    zero_biases(router.to_empty(device="cpu"))
    assert router.e_score_correction_bias is not None
    assert router.e_score_correction_bias.dtype == torch.float32
    assert router.e_score_correction_bias.tolist() == [0.0] * 16
    assert "e_score_correction_bias" in router.state_dict()
    assert all("bias" not in name for name, _ in router.named_parameters()), "no optimizer may touch it"
