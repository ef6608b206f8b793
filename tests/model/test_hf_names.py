"""Published names by hand, there and back, and in the order of numbers."""

import random

import pytest
import torch

from epbench.cells import ModelSpec
from epbench.model.decoder import Decoder
from epbench.model.hf_names import OurName, hf_names, hf_order, our_name

NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "layers.0.attention_norm.weight": "model.layers.0.input_layernorm.weight",
    "layers.7.attention.q_proj.weight": "model.layers.7.self_attn.q_proj.weight",
    "layers.10.attention.k_norm.weight": "model.layers.10.self_attn.k_norm.weight",
    "layers.2.mlp_norm.weight": "model.layers.2.post_attention_layernorm.weight",
    "layers.2.moe.router.gate.weight": "model.layers.2.mlp.gate.weight",
    "layers.2.moe.router.e_score_correction_bias": "model.layers.2.mlp.gate.e_score_correction_bias",
    "layers.2.moe.shared_experts.up_proj.weight": "model.layers.2.mlp.shared_experts.up_proj.weight",
    "layers.3.mlp.gate_proj.weight": "model.layers.3.mlp.gate_proj.weight",
    "head.norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_parameter_has_one_published_name(name: str) -> None:
    assert hf_names(name, num_experts=8) == [NAMES[name]]
    assert our_name(NAMES[name]) == OurName(name)


@pytest.mark.parametrize(("weight", "projection"), [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")])
def test_experts_are_named_one_by_one_in_the_order_of_numbers(weight: str, projection: str) -> None:
    names = hf_names(f"layers.5.moe.experts.{weight}", num_experts=12)
    assert names == [f"model.layers.5.mlp.experts.{expert}.{projection}.weight" for expert in range(12)]
    assert [our_name(name) for name in names] == [OurName(f"layers.5.moe.experts.{weight}", e) for e in range(12)]


def test_every_parameter_of_a_decoder_has_its_own_names_and_finds_back() -> None:
    with torch.device("meta"):
        model = Decoder(ModelSpec(num_layers=3, num_experts=11, mlp_only_layers=(0,)))
    ours = [name for name, _ in model.named_parameters()]
    theirs = [(name, published) for name in ours for published in hf_names(name, num_experts=11)]
    assert len({published for _, published in theirs}) == len(theirs)
    assert all(our_name(published).name == name for name, published in theirs)


def test_the_published_order_is_that_of_numbers() -> None:
    experts = [
        f"model.layers.2.mlp.experts.{expert}.{part}.weight"
        for expert in (0, 1, 2, 10, 11)
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    ordered = [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.layers.2.self_attn.k_norm.weight",
        "model.layers.2.mlp.gate.weight",
        *experts,
        "model.layers.2.mlp.shared_experts.gate_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.10.self_attn.q_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]
    mixed = random.Random(0).sample(ordered, len(ordered))
    assert sorted(mixed, key=hf_order) == ordered


@pytest.mark.parametrize(
    "name", ["", "layers.0.attention.bias", "layers.00.mlp_norm.weight", "layers.0.mlp.experts.w1"]
)
def test_what_is_no_parameter_of_ours_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is no parameter"):
        hf_names(name, num_experts=8)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.experts.01.gate_proj.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.x.mlp.gate.weight",
        "head.weight",
    ],
)
def test_what_is_no_published_tensor_is_refused_by_name(name: str) -> None:
    for function in (our_name, hf_order):
        with pytest.raises(ValueError, match=f"'{name}' is no tensor"):
            function(name)
