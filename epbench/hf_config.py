"""A published checkpoint's ``config.json`` as our model sizes, and back, without torch: a plan reads it too.

The directory is what ``save_pretrained`` writes and the hub serves: ``config.json`` beside ``model.safetensors``,
or beside several files and ``model.safetensors.index.json``. Whatever the file asks for and this model does not
compute is refused by its key, never ignored: a router trained for another model routes nonsense. The class
defaults of ``transformers`` are not the published values (facts 1), so what shapes the model must be in the file.
"""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from epbench.cells import ModelSpec
from epbench.errors import CheckpointError
from epbench.files import read_text
from epbench.wording import place, shown

__all__ = ["INDEX", "SINGLE", "config_json", "model_spec", "weight_files"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")  # in the directory itself, whatever an index says
_MOST_MIB = 64  # an index of 100,000 tensors has 10

_ARCHITECTURE, _MODEL_TYPE = "Qwen3MoeForCausalLM", "qwen3_moe"
_REQUIRED = {  # the file's key -> ours
    "num_hidden_layers": "num_layers",
    **{
        key: key
        for key in (
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
            "vocab_size",
            "rms_norm_eps",
        )
    },
}
_OPTIONAL = ("mlp_only_layers", "initializer_range", "tie_word_embeddings")  # the class defaults are ours
_BUILT: dict[str, tuple[object, ...]] = {  # values that change nothing, of keys that otherwise would
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "use_qk_norm": (True,),
    "attention_dropout": (0,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1,),
    "shared_expert_intermediate_size": (0,),
    "quantization_config": (),
}
_ALIASES = {"num_experts": "num_local_experts"}  # as transformers 5 writes it
_BEYOND = (  # ours, and nothing that the published class computes
    "scoring_func",
    "routed_scaling_factor",
    "n_group",
    "topk_group",
    "router_bias_update_rate",
    "n_shared_experts",
    "score_before_experts",
)


def model_spec(directory: Path | str) -> ModelSpec:
    """The sizes in ``directory``/config.json; ``checkpoint`` is the directory and ``preset`` its name.

    Raises CheckpointError, one sentence with the file and the key: no such file, not JSON, another architecture,
    a missing or impossible value, or one that this model does not compute.
    """
    path = Path(directory) / "config.json"
    config, where = _json_object(path), place(path)
    _check_architecture(config, where=where)
    for key, built in _BUILT.items():
        if config.get(key) is not None and config[key] not in built:
            raise CheckpointError(f"{where}: {key} = {shown(config[key])} is not built")
    values = {ours: _required(config, key, where=where) for key, ours in _REQUIRED.items()}
    values |= {key: config[key] for key in _OPTIONAL if config.get(key) is not None}
    values |= {"rope_theta": _rope_theta(config, where=where), "total_layers": values["num_layers"]}
    values |= {"preset": Path(directory).resolve().name, "checkpoint": str(directory)}
    return _validated(values, where=where)


def config_json(spec: ModelSpec) -> dict[str, Any]:
    """The ``config.json`` with which ``transformers`` computes what a model of ``spec`` computes.

    Raises ValueError for a model that no ``Qwen3MoeForCausalLM`` is.
    """
    plain = ModelSpec()
    beyond = [name for name in _BEYOND if getattr(spec, name) != getattr(plain, name)]
    if beyond:
        raise ValueError(f"{_ARCHITECTURE} has no {', '.join(beyond)}, so this model has no config.json")
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": _MODEL_TYPE,
        **{key: getattr(spec, ours) for key, ours in _REQUIRED.items()},
        **{key: getattr(spec, key) for key in _OPTIONAL},
        "mlp_only_layers": list(spec.mlp_only_layers),
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": spec.rope_theta,
        "rope_scaling": None,
        "dtype": "float32",
    }


def weight_files(directory: Path | str) -> list[Path]:
    """The safetensors files of a checkpoint, in order of name: the index's, or the single one.

    Raises CheckpointError if there are none, or one that the index names is missing.
    """
    index = Path(directory) / INDEX
    files = [Path(directory) / name for name in _indexed(index)] if index.exists() else [Path(directory) / SINGLE]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{place(file)}: is missing")
    return files


def _indexed(index: Path) -> list[str]:
    weight_map = _json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{place(index)}: weight_map is missing or does not name files")
    for name in names:
        if not _FILE.fullmatch(name):
            raise CheckpointError(f"{place(index)}: weight_map names {shown(name)}, no safetensors file beside it")
    return sorted(set(names))


def _json_object(path: Path) -> dict[str, Any]:
    where = place(path)
    text = read_text(path, most_mib=_MOST_MIB, error=CheckpointError)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where}: is not JSON") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: is not a JSON object")
    return content


def _check_architecture(config: dict[str, Any], *, where: str) -> None:
    for key, wanted in (("model_type", _MODEL_TYPE), ("architectures", [_ARCHITECTURE])):
        if config.get(key) != wanted:
            found = shown(config[key]) if key in config else "missing"
            raise CheckpointError(f"{where}: {key} is {found}; only {_ARCHITECTURE} ({_MODEL_TYPE}) is built")


def _required(config: dict[str, Any], key: str, *, where: str) -> Any:
    values = [config[name] for name in (key, _ALIASES.get(key)) if name in config]
    if not values:
        raise CheckpointError(f"{where}: {key} is missing")
    if any(value != values[0] for value in values):
        raise CheckpointError(f"{where}: {key} and {_ALIASES[key]} contradict each other")
    return values[0]


def _rope_theta(config: dict[str, Any], *, where: str) -> Any:
    """The base of plain rotary embeddings: at the top of the file, or where transformers 5 writes it."""
    thetas = [config["rope_theta"]] if "rope_theta" in config else []
    for key in ("rope_parameters", "rope_scaling"):
        parameters = dict(config[key]) if isinstance(config.get(key), dict) else {}
        thetas += [parameters.pop("rope_theta")] if "rope_theta" in parameters else []
        kinds = [parameters.pop(name, "default") for name in ("rope_type", "type")]
        if kinds != ["default"] * 2 or parameters or not isinstance(config.get(key), dict | None):
            raise CheckpointError(f"{where}: {key} = {shown(config[key])} is not built; only rope_type default is")
    if not thetas:
        raise CheckpointError(f"{where}: rope_theta is missing")
    for theta in thetas[1:]:
        if theta != thetas[0]:
            raise CheckpointError(f"{where}: rope_theta is given twice, as {shown(thetas[0])} and {shown(theta)}")
    return thetas[0]


def _validated(values: dict[str, Any], *, where: str) -> ModelSpec:
    theirs = {ours: key for key, ours in _REQUIRED.items()}
    for name, value in values.items():
        if isinstance(value, int | float) and not abs(value) < 2**63:
            raise CheckpointError(f"{where}: {theirs.get(name, name)} must be finite and below 2^63")
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return ModelSpec.model_validate(frozen, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = theirs.get(str(first["loc"][0]), first["loc"][0])
        reason = first["msg"].removeprefix("Input ").replace("a valid tuple", "a list")
        raise CheckpointError(f"{where}: {key} {reason}, got {shown(first['input'])}") from None
