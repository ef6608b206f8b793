"""The published model of transformers as a user of FSDP2 trains it, and how its parameters correspond to ours.

transformers keeps an expert's gate and up projection in one tensor (``gate_up_proj`` [E, 2F, D]); we keep two.
A :class:`Piece` says which part of a published parameter is which of ours, so that initial weights, a function of
our name and global index, fill published shards in place, and gradients come back under our names.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from epbench.cells import ModelSpec
from epbench.model.attention import attend
from epbench.model.decoder import Decoder
from epbench.model.hf_names import hf_names
from epbench.model.init import Box, init_part, shard_box
from epbench.parallel.communication import Axis
from epbench.parallel.context import heads_to_sequence, sequence_to_heads
from epbench.parallel.loss import FusedLoss

__all__ = [
    "ATTENTION",
    "EXPERTS",
    "CausalLM",
    "Piece",
    "build_model",
    "gates",
    "init_published",
    "pieces",
    "rebuild_rotary",
]

ATTENTION = "epbench_causal"
EXPERTS = "grouped_mm"


class Head(nn.Module):
    """lm_head with the loss: fp32 logits of a whole batch never exist (see :mod:`epbench.parallel.loss`)."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        self.weight = lm_head.weight
        self.loss = FusedLoss()

    def forward(self, x_BSD: Tensor, labels_BS: Tensor, scale: Tensor) -> Tensor:
        """``scale`` times the summed loss of this rank's tokens, fp32 scalar."""
        return self.loss(x_BSD.flatten(0, 1), self.weight, labels_BS.flatten(), scale)


class CausalLM(nn.Module):
    """Qwen3MoeForCausalLM, its parameters under their published names, with the fused loss for a head."""

    def __init__(self, published: Qwen3MoeForCausalLM) -> None:
        super().__init__()
        self.model = published.model
        self.lm_head = Head(published.lm_head)

    def forward(
        self, tokens_BS: Tensor, labels_BS: Tensor, scale: Tensor, positions_BS: Tensor, cu_seqlens: Tensor | None
    ) -> Tensor:
        """``scale`` x summed loss over this rank's tokens; ``positions`` [1 or B, S] are those in whole documents.

        ``cu_seqlens`` as in :class:`epbench.stacks.protocol.Batch`, of the rows of ``tokens``.
        """
        documents = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        out = self.model(input_ids=tokens_BS, position_ids=positions_BS, use_cache=False, **documents)
        loss: Tensor = self.lm_head(out.last_hidden_state, labels_BS, scale)
        return loss


def _attention(
    module: Any,
    q_BHSd: Tensor,
    k_BGSd: Tensor,
    v_BGSd: Tensor,
    attention_mask: None,
    *,
    cu_seqlens: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention: transformers' own SDPA, around it Ulysses under cp, in its place ours for packed rows.

    Takes heads on dim 1, as transformers has them after its rotary embedding; returns [B, S, H, d]. Registered
    under a name without a mask function, so that transformers builds no mask: under its own name ``sdpa`` it looks
    at the positions' values first, and the host waits for the device in every micro-batch.
    """
    axis = module.cp_axis
    if axis is None and cu_seqlens is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(module, q_BHSd, k_BGSd, v_BGSd, attention_mask, **settings)
        return out
    q, k, v = (x.transpose(1, 2) for x in (q_BHSd, k_BGSd, v_BGSd))
    if axis is None:
        return attend(q, k, v, cu_seqlens), None
    q, k, v = sequence_to_heads(q, k, v, axis=axis)
    return heads_to_sequence(attend(q, k, v, cu_seqlens), axis=axis), None


def _config(model: ModelSpec) -> Qwen3MoeConfig:
    """``model`` in transformers' words; its own defaults of ``norm_topk_prob`` and rope are not the published ones."""
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "decoder_sparse_step",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
    settings: dict[str, Any] = {name: getattr(model, name) for name in same} | {
        "num_hidden_layers": model.num_layers,
        "mlp_only_layers": list(model.mlp_only_layers),
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "use_cache": False,
        "attn_implementation": ATTENTION,
        "experts_implementation": EXPERTS,
    }
    return Qwen3MoeConfig(**settings)


def build_model(model: ModelSpec, *, cp: Axis | None) -> CausalLM:
    """The model on the meta device, in fp32; ``cp`` is the axis that sequences are cut over, if they are."""
    AttentionInterface.register(ATTENTION, _attention)
    with torch.device("meta"):
        built = CausalLM(Qwen3MoeForCausalLM(_config(model)))
    for layer in built.model.layers:
        layer.self_attn.cp_axis = cp
    return built


def rebuild_rotary(model: CausalLM, device: torch.device) -> None:
    """Makes the rotary frequencies, which are no parameters and which ``to_empty`` left uninitialised."""
    rotary = model.model.rotary_emb
    with torch.device(device):
        model.model.rotary_emb = type(rotary)(rotary.config)


def gates(model: CausalLM) -> Iterator[Any]:
    """The routers, layer by layer; each returns (logits [T, E], scores [T, K], expert ids [T, K])."""
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            yield layer.mlp.gate


class Piece(NamedTuple):
    """Our parameter ``ours`` of whole ``shape`` within a published one: rows from ``start`` of its dim ``dim``."""

    ours: str
    shape: torch.Size
    dim: int = 0
    start: int = 0

    @property
    def rows(self) -> slice:
        """Where the piece lies on ``dim`` of the published parameter."""
        return slice(self.start, self.start + self.shape[self.dim])


_EXPERTS = {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_START = {"w1": 0, "w3": 1, "w2": 0}  # in expert widths, on dim 1


def pieces(model: ModelSpec) -> dict[str, list[Piece]]:
    """For every published parameter, by name, the parts that are ours."""
    found: dict[str, list[Piece]] = {}
    with torch.device("meta"):
        ours = Decoder(model)
    for name, param in ours.named_parameters():
        prefix, experts, last = name.rpartition(".experts.")
        if experts:
            published = f"model.{prefix.removesuffix('.moe')}.mlp.experts.{_EXPERTS[last]}"
            piece = Piece(name, param.shape, dim=1, start=_START[last] * model.moe_intermediate_size)
        else:
            (published,) = hf_names(name, num_experts=model.num_experts)
            piece = Piece(name, param.shape)
        found.setdefault(published, []).append(piece)
    return found


def _overlap(box: Box, piece: Piece) -> tuple[slice, Box]:
    """What a shard holds of a piece: its rows on ``piece.dim`` of the shard, and the box of our parameter."""
    start, length = box[piece.dim]
    begin = max(start, piece.rows.start)
    end = max(begin, min(start + length, piece.rows.stop))
    ours = list(box)
    ours[piece.dim] = (begin - piece.start, end - begin)
    return slice(begin - start, end - start), tuple(ours)


@torch.no_grad()
def init_published(model: CausalLM, spec: ModelSpec, *, seed: int) -> None:
    """Fills every shard, in place, with the initial weights of :mod:`epbench.model.init`."""
    where = pieces(spec)
    for name, param in model.named_parameters():
        out = param.to_local() if isinstance(param, DTensor) else param.data
        for piece in where[name]:
            rows, box = _overlap(shard_box(param), piece)
            part = out.narrow(piece.dim, rows.start, rows.stop - rows.start)
            init_part(
                piece.ours,
                piece.shape,
                box,
                seed=seed,
                std=spec.initializer_range,
                expert_scale=spec.expert_initializer_scale,
                out=part,
            )
