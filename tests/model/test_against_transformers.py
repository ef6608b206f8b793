"""The decoder computes what the published implementation computes, on the same weights, forward and backward.

Two implementations of other people's making would have to share a mistake to pass: theirs builds the causal
mask, repeats kv heads, loops over experts and shifts labels; ours does none of that in the same way.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from epbench.cells import ModelSpec
from epbench.model.decoder import Decoder
from epbench.model.hf_names import hf_names
from tests.model.compare import assert_same

BATCH, SEQ_LEN = 2, 24
VARIANTS: dict[str, dict[str, Any]] = {
    "scores normalised": {},
    "scores not normalised": {"norm_topk_prob": False},
    "a dense first layer": {"mlp_only_layers": (0,)},
    "every second layer has experts": {"decoder_sparse_step": 2, "num_layers": 4},
    "one kv head": {"num_key_value_heads": 1},
    "rope as in the coder model": {"rope_theta": 1e7, "head_dim": 32},
}


def _published(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters, or their gradients, under the published names; gate and up projections are fused there."""
    theirs = {hf_names(name, num_experts=0)[0]: value for name, value in ours.items() if ".experts." not in name}
    for name in ours:
        if name.endswith(".experts.w1"):
            prefix = name.removesuffix(".w1")
            gate, up, down = (ours[f"{prefix}.{each}"] for each in ("w1", "w3", "w2"))
            published = f"model.{prefix.replace('.moe.', '.mlp.')}"
            theirs[f"{published}.gate_up_proj"] = torch.cat([gate, up], dim=1)
            theirs[f"{published}.down_proj"] = down
    return theirs


def _reference(spec: ModelSpec, weights: dict[str, Tensor]) -> Qwen3MoeForCausalLM:
    sizes: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "moe_intermediate_size": spec.moe_intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "num_experts": spec.num_experts,
        "num_experts_per_tok": spec.num_experts_per_tok,
        "norm_topk_prob": spec.norm_topk_prob,
        "decoder_sparse_step": spec.decoder_sparse_step,
        "mlp_only_layers": list(spec.mlp_only_layers),
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "rms_norm_eps": spec.rms_norm_eps,
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))
    model.load_state_dict(weights, strict=True)
    return model


def _randomise(model: Decoder) -> None:
    """Matrices of the published std, experts 8 times that, norms around one: nothing is left at a neutral value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            noise = torch.randn(param.shape, generator=generator)
            scale = model.spec.initializer_range * (8 if ".experts." in name else 1)
            param.copy_(1 + 0.2 * noise if param.dim() == 1 else scale * noise)


def _tokens_and_labels(vocab_size: int) -> tuple[Tensor, Tensor]:
    """Tokens, and labels as the published model takes them: not shifted, -100 where nothing is to be learned."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(vocab_size, (BATCH, SEQ_LEN), generator=generator)
    labels = tokens.clone()
    labels[0, :5] = -100
    labels[1, -1] = -100
    return tokens, labels


def _shifted(labels: Tensor) -> Tensor:
    """The label of each position is the next token; the last position has none."""
    return torch.cat([labels[:, 1:], torch.full((BATCH, 1), -100)], dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_are_those_of_the_published_implementation(variant: str) -> None:
    spec = ModelSpec().model_copy(update=VARIANTS[variant])
    ours = Decoder(spec)
    _randomise(ours)
    theirs = _reference(spec, _published({name: param.detach() for name, param in ours.named_parameters()}))
    tokens, labels = _tokens_and_labels(spec.vocab_size)

    expected = theirs(input_ids=tokens, labels=labels, use_cache=False).loss
    expected.backward()
    targets = _shifted(labels)
    scale = (targets != -100).sum().float().reciprocal()
    loss = ours(tokens, targets, scale, ours.rope(SEQ_LEN, tokens.device))
    loss.backward()

    assert_same(loss, expected, "loss")
    gradients = {name: param.grad for name, param in ours.named_parameters() if param.grad is not None}
    published = _published(gradients)
    assert published.keys() == dict(theirs.named_parameters()).keys()
    for name, param in theirs.named_parameters():
        assert_same(published[name], param.grad, name)
