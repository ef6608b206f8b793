"""Floating-point operations of one training token, under both conventions that the field publishes.

Tokens a second are a fact; FLOP/s are tokens a second times a convention, and two are in use. Counting the
**full** attention square (torchtitan) makes the same run of Qwen3-30B at 4096 tokens look 21 % faster than
counting the **causal** half that a flash kernel computes (NVIDIA). Both are given, and always named.

Linear layers count 6 FLOPs per active matrix entry and token (2 forward, 4 backward): attention projections,
router, the experts a token visits (shared ones too), dense feed-forward and lm_head. The embedding is a lookup
and the norms are not matrices: neither counts. Nor does what activation checkpointing recomputes: that is not
useful work.
"""

from dataclasses import dataclass

from epbench.cells import ModelSpec

__all__ = ["Flops", "Tflops", "flops_per_token", "mfu", "nodes_suffix", "peak_flops_per_s", "tflops"]

# Dense bf16 (no sparsity) as NVIDIA's data sheets give it, by the name that the driver reports. Names are
# matched whole: PCIe, NVL and MIG variants of the same chip are slower and must not borrow these numbers.
_DENSE_BF16_PEAK = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
_ON_NODES = " on "


@dataclass(frozen=True)
class Flops:
    """FLOPs of one token, forward and backward, by where they are spent."""

    linear: float
    attention_full: float

    @property
    def attention_causal(self) -> float:
        """Attention with the masked half left out."""
        return self.attention_full / 2

    @property
    def full(self) -> float:
        """All FLOPs with the full attention square."""
        return self.linear + self.attention_full

    @property
    def causal(self) -> float:
        """All FLOPs with the causal half of attention."""
        return self.linear + self.attention_causal


@dataclass(frozen=True)
class Tflops:
    """Speed of one rank in TFLOP/s under both conventions."""

    causal: float
    full: float


def flops_per_token(model: ModelSpec, *, seq_len: float) -> Flops:
    """FLOPs of one token of a sequence of ``seq_len``, forward + backward.

    Attention forward is 2 matmuls (scores, values) of 2 * seq_len * heads * head_dim; backward is twice that. Where
    documents are packed, ``seq_len`` is :func:`epbench.packing.attended_length`: squares are counted, not rows.
    """
    attention = 12.0 * model.num_layers * seq_len * model.num_attention_heads * model.head_dim
    return Flops(linear=6.0 * _active_matrix_entries(model), attention_full=attention)


def _active_matrix_entries(model: ModelSpec) -> int:
    """Entries of all matrices that one token is multiplied with."""
    query_and_output = 2 * model.num_attention_heads * model.head_dim
    key_and_value = 2 * model.num_key_value_heads * model.head_dim
    attention = model.hidden_size * (query_and_output + key_and_value)
    experts = model.num_experts_per_tok + model.n_shared_experts
    moe = model.hidden_size * model.num_experts + experts * model.expert_parameters
    dense = 3 * model.hidden_size * model.intermediate_size
    num_dense_layers = model.num_layers - model.num_moe_layers
    blocks = model.num_layers * attention + model.num_moe_layers * moe + num_dense_layers * dense
    return blocks + model.vocab_size * model.hidden_size


def tflops(model: ModelSpec, *, seq_len: float, tokens_per_s_per_rank: float) -> Tflops:
    """TFLOP/s of one rank that trains ``tokens_per_s_per_rank``."""
    flops = flops_per_token(model, seq_len=seq_len)
    return Tflops(
        causal=flops.causal * tokens_per_s_per_rank / 1e12,
        full=flops.full * tokens_per_s_per_rank / 1e12,
    )


def peak_flops_per_s(device_name: str) -> float | None:
    """Dense bf16 peak of a device by the driver's name for it; None if epbench does not know it."""
    return _DENSE_BF16_PEAK.get(device_name.partition(_ON_NODES)[0])


def nodes_suffix(nodes: int) -> str:
    """What the name of a device has behind it when ranks are on several nodes: ``NVIDIA H200 on 2 nodes``."""
    return f"{_ON_NODES}{nodes} nodes" if nodes > 1 else ""


def mfu(tflops_causal: float, *, device_name: str) -> float | None:
    """Model FLOPs utilisation in 0..1: causal TFLOP/s over the dense bf16 peak; None for an unknown device.

    The causal count is the smaller one, so the utilisation is never flattered by FLOPs that no kernel ran.
    """
    peak = peak_flops_per_s(device_name)
    return None if peak is None else tflops_causal * 1e12 / peak
