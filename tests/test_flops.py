"""FLOPs per token against numbers worked out by hand and against the published model sizes."""

import pytest

from epbench.cells import PRESETS, ModelSpec
from epbench.flops import flops_per_token, mfu, peak_flops_per_s, tflops

QWEN3_30B = PRESETS["qwen3-30b-a3b"]


def test_qwen3_30b_at_4096() -> None:
    flops = flops_per_token(QWEN3_30B, seq_len=4096)
    assert flops.linear / 1e9 == pytest.approx(18.25, abs=0.005)
    assert flops.attention_full / 1e9 == pytest.approx(9.66, abs=0.005)
    assert flops.attention_causal / 1e9 == pytest.approx(4.83, abs=0.005)
    assert flops.full / 1e9 == pytest.approx(27.91, abs=0.01)
    assert flops.causal / 1e9 == pytest.approx(23.08, abs=0.01)


def test_linear_is_six_times_active_without_embedding_and_norms() -> None:
    norms = QWEN3_30B.num_layers * (2 * QWEN3_30B.hidden_size + 2 * QWEN3_30B.head_dim) + QWEN3_30B.hidden_size
    embedding = QWEN3_30B.vocab_size * QWEN3_30B.hidden_size
    expected = 6 * (QWEN3_30B.active_parameters - embedding - norms)
    assert flops_per_token(QWEN3_30B, seq_len=4096).linear == expected


def test_by_hand_with_one_dense_and_one_moe_layer() -> None:
    model = ModelSpec(
        num_layers=2,
        total_layers=2,
        hidden_size=4,
        intermediate_size=10,
        moe_intermediate_size=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=5,
        num_experts=6,
        num_experts_per_tok=2,
        mlp_only_layers=(0,),
        vocab_size=7,
    )
    # attention of a layer: 4 x (10 + 10 + 5 + 5) = 120; dense: 120; lm_head: 28
    # MoE: router 24 + 2 experts of 36 = 96
    flops = flops_per_token(model, seq_len=8)
    assert flops.linear == 6 * (2 * 120 + 96 + 120 + 28)
    # 2 layers x 3 (forward, twice backward) x 2 matmuls x 2 x 8 tokens x 10
    assert flops.attention_full == 2 * 3 * 2 * 2 * 8 * 10


def test_by_hand_shared_experts_are_visited_by_every_token() -> None:
    """Two layers of 2 shared experts of 3 x 64 x 32 = 6144 entries, and the dense layer of a third has none."""
    sizes = {"num_layers": 3, "mlp_only_layers": (1,)}
    without, with_shared = (ModelSpec(**sizes, n_shared_experts=count) for count in (0, 2))
    linear = [flops_per_token(model, seq_len=8).linear for model in (without, with_shared)]
    assert linear[1] - linear[0] == 6 * 2 * 2 * 6144


def test_tflops_and_mfu_name_their_convention() -> None:
    speed = tflops(QWEN3_30B, seq_len=4096, tokens_per_s_per_rank=12_000)
    assert speed.causal == pytest.approx(276.97, abs=0.05)
    assert speed.full == pytest.approx(334.95, abs=0.05)
    assert mfu(speed.causal, device_name="NVIDIA H100 80GB HBM3") == pytest.approx(0.2801, abs=1e-4)


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA H200 MIG 1g.18gb", "cpu", ""])
def test_a_device_that_only_looks_alike_has_no_peak(name: str) -> None:
    assert peak_flops_per_s(name) is None
    assert mfu(100.0, device_name=name) is None


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_hopper_sxm_peak(name: str) -> None:
    assert peak_flops_per_s(name) == 989e12
