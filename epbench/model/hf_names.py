"""Our parameter names and those of published Qwen3-MoE checkpoints, both ways, and the published order.

A checkpoint keeps every expert's three projections as tensors of their own; here they are rows of ``w1`` (gate),
``w3`` (up) and ``w2`` (down). Experts are numbered, and numbers are compared as integers: as text, expert 10
comes before expert 2 (facts 4.11).
"""

import re
from typing import NamedTuple

__all__ = ["OurName", "hf_names", "hf_order", "our_name"]

_TOP = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "head.norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
_SWIGLU = ("gate_proj", "up_proj", "down_proj")
_IN_LAYER = {  # in the published order
    **{f"attention.{part}.weight": f"self_attn.{part}.weight" for part in _ATTENTION},
    "moe.router.gate.weight": "mlp.gate.weight",
    "moe.router.e_score_correction_bias": "mlp.gate.e_score_correction_bias",  # as DeepSeek-V3 publishes it
    **{f"mlp.{part}.weight": f"mlp.{part}.weight" for part in _SWIGLU},
    **{f"moe.shared_experts.{part}.weight": f"mlp.shared_experts.{part}.weight" for part in _SWIGLU},
    "attention_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
}
_EXPERTS = {"moe.experts.w1": "gate_proj", "moe.experts.w3": "up_proj", "moe.experts.w2": "down_proj"}

_OUR_TOP = {theirs: ours for ours, theirs in _TOP.items()}
_OUR_IN_LAYER = {theirs: ours for ours, theirs in _IN_LAYER.items()}
_OUR_EXPERTS = {theirs: ours for ours, theirs in _EXPERTS.items()}

_NUMBER = "(0|[1-9][0-9]{0,8})"
_OUR_LAYER = re.compile(rf"layers\.{_NUMBER}\.(.+)")
_HF_LAYER = re.compile(rf"model\.layers\.{_NUMBER}\.(.+)")
_HF_EXPERT = re.compile(rf"mlp\.experts\.{_NUMBER}\.(gate_proj|up_proj|down_proj)\.weight")


class OurName(NamedTuple):
    """Where a published tensor lives here: the whole parameter ``name``, or its row ``expert``."""

    name: str
    expert: int | None = None


def hf_names(name: str, *, num_experts: int) -> list[str]:
    """The published names of our parameter or buffer ``name``: one, or for experts' weights one an expert, in order.

    Raises ValueError for a name that the decoder does not have.
    """
    layer = _OUR_LAYER.fullmatch(name)
    if name in _TOP:
        return [_TOP[name]]
    if layer and layer[2] in _IN_LAYER:
        return [f"model.layers.{layer[1]}.{_IN_LAYER[layer[2]]}"]
    if layer and layer[2] in _EXPERTS:
        experts = f"model.layers.{layer[1]}.mlp.experts"
        return [f"{experts}.{expert}.{_EXPERTS[layer[2]]}.weight" for expert in range(num_experts)]
    raise ValueError(f"'{name}' is no parameter of a Qwen3-MoE decoder")


def our_name(hf_name: str) -> OurName:
    """Where the published tensor ``hf_name`` lives here; the inverse of :func:`hf_names`.

    Raises ValueError for a name that a Qwen3-MoE checkpoint does not have.
    """
    layer = _HF_LAYER.fullmatch(hf_name)
    if hf_name in _OUR_TOP:
        return OurName(_OUR_TOP[hf_name])
    if layer and layer[2] in _OUR_IN_LAYER:
        return OurName(f"layers.{layer[1]}.{_OUR_IN_LAYER[layer[2]]}")
    expert = _HF_EXPERT.fullmatch(layer[2]) if layer else None
    if layer and expert:
        return OurName(f"layers.{layer[1]}.{_OUR_EXPERTS[expert[2]]}", int(expert[1]))
    raise ValueError(f"'{hf_name}' is no tensor of a Qwen3-MoE checkpoint")


def hf_order(hf_name: str) -> tuple[int, ...]:
    """Sort key of the published order: embedding, layers by number, final norm, lm_head.

    In a layer: attention, router, experts by number with gate, up and down together, norms. Raises ValueError as
    :func:`our_name` does.
    """
    name, expert = our_name(hf_name)
    if name in _TOP:
        return ((0, 2, 3)[list(_TOP).index(name)],)
    _, layer, inside = name.split(".", 2)
    parts = list(_IN_LAYER)
    after_router = parts.index("moe.router.e_score_correction_bias")
    if expert is not None:
        return 1, int(layer), after_router, 1, expert, list(_EXPERTS).index(inside)
    return 1, int(layer), parts.index(inside), 0
