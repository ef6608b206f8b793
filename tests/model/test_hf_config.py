"""``config.json`` to model sizes and back; what is not built is refused by its key."""

import json
from pathlib import Path
from typing import Any

import pytest

from epbench.cells import PRESETS, ModelSpec
from epbench.errors import CheckpointError
from epbench.hf_config import config_json, model_spec
from tests.checkpoints import SMALL

PUBLISHED: dict[str, Any] = {  # Qwen3-30B-A3B, as served
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def _directory(path: Path, **changes: Any) -> Path:
    """A directory with the published file; a key changed to ``...`` is left out."""
    config = {key: value for key, value in (PUBLISHED | changes).items() if value is not ...}
    (path / "config.json").write_text(json.dumps(config))
    return path


def _without_origin(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"preset": "", "checkpoint": None})


def test_the_published_file_is_the_preset(tmp_path: Path) -> None:
    spec = model_spec(_directory(tmp_path))
    assert _without_origin(spec) == _without_origin(PRESETS["qwen3-30b-a3b"])
    assert (spec.preset, spec.checkpoint) == (tmp_path.name, str(tmp_path))


SAME: dict[str, dict[str, Any]] = {
    "as transformers 5 writes it": {
        "num_experts": ...,
        "num_local_experts": 128,
        "rope_theta": ...,
        "rope_scaling": ...,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "rope base as a whole number": {"rope_theta": 1000000},
    "no keys that have the built value anyway": {"hidden_act": ..., "use_sliding_window": ..., "mlp_only_layers": ...},
    "keys of the coder model": {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0},
}


@pytest.mark.parametrize("writing", SAME)
def test_other_ways_to_write_the_same_model(writing: str, tmp_path: Path) -> None:
    spec = model_spec(_directory(tmp_path, **SAME[writing]))
    assert _without_origin(spec) == _without_origin(PRESETS["qwen3-30b-a3b"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architectures": ["Qwen3NextForCausalLM"]}, "architectures is ['Qwen3NextForCausalLM']"),
    "another type": ({"model_type": "qwen3"}, "model_type is 'qwen3'; only Qwen3MoeForCausalLM"),
    "no type": ({"model_type": ...}, "model_type is missing"),
    "a missing size": ({"head_dim": ...}, "head_dim is missing"),
    "missing experts": ({"num_experts": ...}, "num_experts is missing"),
    "experts said twice": ({"num_local_experts": 64}, "num_experts and num_local_experts contradict"),
    "no rope base": ({"rope_theta": ...}, "rope_theta is missing"),
    "two rope bases": ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is given twice"),
    "scaled rope": ({"rope_scaling": YARN}, "rope_scaling = {'rope_type': 'yarn'"),
    "scaled rope of transformers 5": ({"rope_parameters": YARN | {"rope_theta": 1e6}}, "rope_parameters = {"),
    "rope of no known form": ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn' is not built"),
    "a sliding window": ({"use_sliding_window": True}, "use_sliding_window = True is not built"),
    "biases": ({"attention_bias": True}, "attention_bias = True is not built"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not built"),
    "shared experts": ({"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size = 512"),
    "quantised weights": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config = {"),
    "a size of the wrong type": ({"hidden_size": "2048"}, "hidden_size should be a valid integer, got '2048'"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers should be greater than 0, got 0"),
    "an infinite number": ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be finite"),
    "a rope base that is no number": ({"rope_theta": float("nan")}, "rope_theta must be finite"),
    "a size that no count holds": ({"num_experts": 2**70}, "num_experts must be finite and below 2^63"),
    "layers that are no list": ({"mlp_only_layers": "0"}, "mlp_only_layers should be a list, got '0'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_built_is_refused_by_its_key(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(CheckpointError) as error:
        model_spec(_directory(tmp_path, **changes))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/config.json: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: no such file"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("\x80", r"is not UTF-8 text \(byte 0\)"),
        ('{"a": ' * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=words):
        model_spec(tmp_path)


def test_a_file_that_never_ends_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        model_spec(tmp_path)
    (tmp_path / "config.json").unlink()
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(CheckpointError, match="is larger than 64 MiB"):
        model_spec(tmp_path)


@pytest.mark.parametrize("spec", [SMALL, *PRESETS.values()], ids=lambda spec: f"{spec.preset}-{spec.hidden_size}")
def test_sizes_survive_the_way_to_the_file_and_back(spec: ModelSpec, tmp_path: Path) -> None:
    odd = spec.model_copy(update={"decoder_sparse_step": 2, "tie_word_embeddings": True, "norm_topk_prob": False})
    for each in (spec, odd):
        (tmp_path / "config.json").write_text(json.dumps(config_json(each)))
        assert _without_origin(model_spec(tmp_path)) == _without_origin(each)


def test_a_model_that_the_published_class_does_not_compute_has_no_file() -> None:
    with pytest.raises(ValueError, match="has no scoring_func, n_shared_experts"):
        config_json(ModelSpec(scoring_func="sigmoid", n_shared_experts=1))


def test_every_setting_of_the_model_is_in_the_file_or_known_to_be_beyond_it() -> None:
    """A new one that is in neither would be left out of what is written, silently."""
    beyond = {"scoring_func", "routed_scaling_factor", "n_group", "topk_group"}
    beyond |= {"router_bias_update_rate", "n_shared_experts", "score_before_experts"}
    origin = {"preset", "total_layers", "checkpoint", "expert_initializer_scale"}  # of the weights, not of the model
    written = {"num_layers" if key == "num_hidden_layers" else key for key in config_json(ModelSpec())}
    assert set(ModelSpec.model_fields) - written == beyond | origin
    for name in beyond:
        default = ModelSpec.model_fields[name].default
        other = not default if isinstance(default, bool) else "sigmoid" if isinstance(default, str) else default + 1
        with pytest.raises(ValueError, match=f"has no {name}"):
            config_json(ModelSpec(**{name: other}))
