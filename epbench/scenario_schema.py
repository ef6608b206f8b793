"""The words of a scenario file: which keys exist, what each may hold, and what of it is not built yet.

A key that nobody knows is an error with a suggestion; a value that is known but not built in this version is
told apart from a wrong one (:func:`not_yet`), because it makes a ``skipped`` row and not a broken scenario.
"""

import re
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from epbench.cells import PRESETS, MeasureSpec, Mode, ModelSpec, TrainSpec
from epbench.errors import CheckpointError, ScenarioError
from epbench.files import real_path
from epbench.gate_records import GateSpec
from epbench.hf_config import model_spec
from epbench.wording import either, shown, suggestion

__all__ = [
    "AXIS_KEYS",
    "build_gate",
    "build_measure",
    "build_model",
    "build_train",
    "canonical_mode",
    "canonical_routing",
    "check_axis",
    "check_keys",
    "not_yet",
]

_Spec = TypeVar("_Spec", bound=BaseModel)

_MODEL_KEYS = [name for name in ModelSpec.model_fields if name != "total_layers"]
_TRAIN_KEYS = list(TrainSpec.model_fields)
AXIS_KEYS = (
    "layout",
    "mode",
    "routing",
    "world_size",
    *(f"model.{name}" for name in _MODEL_KEYS),
    *(f"train.{name}" for name in _TRAIN_KEYS),
)
_SIZES = (  # what describes a model when no preset does
    "num_layers",
    "hidden_size",
    "moe_intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "vocab_size",
)
_BUILT: dict[str, tuple[object, ...]] = {
    "train.compute_dtype": ("fp32", "bf16"),
    "train.master_dtype": ("fp32", "bf16"),
    "train.activation_checkpointing": ("none", "full", "selective"),
    "train.dispatcher": ("all_to_all",),
    "train.overlap": ("none",),
}
_ROUTINGS = ("natural", "round_robin", "uniform", "zipf:1.2", "hot_rank:0.5", "replay:FILE")
_ROUTING = re.compile(r"natural|round_robin|uniform|(zipf|hot_rank):([0-9.]{1,12})|replay:[^\x00-\x1f]{1,4096}")


_TABLES: dict[str, tuple[str, ...]] = {
    "model": tuple(_MODEL_KEYS),
    "train": tuple(_TRAIN_KEYS),
    "measure": tuple(MeasureSpec.model_fields),
    "gate": tuple(GateSpec.model_fields),
}
_TOP = ("schema", "name", "description", "extends", "world_size", "device")
_LISTS = ("zip", "exclude", "include")


def check_keys(document: dict[str, Any], *, where: str) -> None:
    """Raise ScenarioError, with the key's path and a suggestion, if ``document`` has a key nobody knows."""
    _known(document, (*_TOP, *_TABLES, "matrix", *_LISTS), where=where, prefix="")
    for name, keys in _TABLES.items():
        _known(_table(document.get(name, {}), where=where, name=name), keys, where=where, prefix=f"{name}.")
    _known_axes(document.get("matrix", {}), where=where, name="matrix")
    for name in _LISTS:
        blocks = document.get(name, [])
        if not isinstance(blocks, list):
            raise ScenarioError(f"{where}: '{name}' must be written as [[{name}]] blocks")
        for index, block in enumerate(blocks):
            extra = ("expect",) if name == "include" else ()
            _known_axes(block, where=where, name=f"{name}[{index}]", extra=extra)


def check_axis(key: str, *, where: str) -> None:
    """Raise ScenarioError, with a suggestion, for a key that no cell has."""
    _known({key: None}, AXIS_KEYS, where=where, prefix="")


def _known_axes(table: Any, *, where: str, name: str, extra: tuple[str, ...] = ()) -> None:
    plain = tuple(key for key in AXIS_KEYS if "." not in key)
    _known(
        _table(table, where=where, name=name),
        (*plain, "model", "train", *extra),
        where=where,
        prefix=f"{name}.",
    )
    for sub in ("model", "train"):
        fields = _table(table.get(sub, {}), where=where, name=f"{name}.{sub}")
        _known(fields, _TABLES[sub], where=where, prefix=f"{name}.{sub}.")


def _table(value: Any, *, where: str, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: '{name}' must be a table, got {shown(value)}")
    return value


def _known(table: dict[str, Any], known: tuple[str, ...], *, where: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            nested = "model" in known or known == AXIS_KEYS
            owners = [axis for axis in AXIS_KEYS if axis.endswith(f".{key}")] if nested else []
            hint = f"; did you mean '{owners[0]}'?" if owners else suggestion(key, known)
            path = shown(prefix + key) if len(key) > 60 or not key.isprintable() else f"'{prefix}{key}'"
            raise ScenarioError(f"{where}: unknown key {path}{hint}")


def not_yet(key: str, value: object) -> str | None:
    """Why ``value`` of ``key`` (``train.dispatcher``, ...) is not built; None if it is."""
    if key not in _BUILT or value in _BUILT[key]:
        return None
    exists = either(_toml(item) for item in _BUILT[key])
    return f"not yet: {key} = {_toml(value)} (this version has {exists})"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and len(value) <= 40 and value.isprintable() else shown(value)


def canonical_mode(value: Any, *, where: str) -> Mode:
    """``eager`` or ``compiled``; ScenarioError otherwise."""
    if value not in get_args(Mode):
        raise ScenarioError(f"{where}: mode must be {either(get_args(Mode))}, got {shown(value)}")
    return "eager" if value == "eager" else "compiled"


def canonical_routing(value: Any, *, where: str) -> str:
    """The routing as printed, stored and matched (``zipf:1.20`` is ``zipf:1.2``), or ScenarioError."""
    match = _ROUTING.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ScenarioError(f"{where}: routing must be {either(_ROUTINGS)}, got {shown(value)}")
    if match[1] is None:
        return match[0]
    try:
        parameter = float(match[2])
    except ValueError:
        raise ScenarioError(f"{where}: routing {shown(value)} needs a number after the colon") from None
    if parameter <= 0 or (match[1] == "hot_rank" and parameter > 1):
        bound = "in (0, 1]" if match[1] == "hot_rank" else "above 0"
        raise ScenarioError(f"{where}: the number of routing {shown(value)} must be {bound}")
    return f"{match[1]}:{parameter:g}"


def build_model(values: dict[str, Any], *, where: str, root: Path) -> ModelSpec:
    """The model of a preset with ``values`` over it; without a preset ``values`` must give every size.

    With a checkpoint, a directory relative to ``root``, its config.json gives them. Overriding ``num_layers`` keeps
    the preset's or the checkpoint's ``total_layers``, so that reports can say "4 of 48 layers".
    """
    if "checkpoint" in values:
        return _checkpoint_model(values, where=where, root=root)
    given = {name: value for name, value in values.items() if name != "preset"}
    if "preset" not in values and given:
        return _custom_model(given, where=where)
    preset = values.get("preset", "tiny")
    if not isinstance(preset, str) or preset not in PRESETS:
        hint = suggestion(preset, tuple(PRESETS)) if isinstance(preset, str) else ""
        raise ScenarioError(f"{where}: model.preset must be {either(PRESETS)}, got {shown(preset)}{hint}")
    base = PRESETS[preset]
    model = _build(ModelSpec, base.model_dump() | given, where=where, prefix="model.")
    return model.model_copy(update={"total_layers": max(base.total_layers, model.num_layers)})


def _checkpoint_model(values: dict[str, Any], *, where: str, root: Path) -> ModelSpec:
    """The model of a checkpoint, whole or its first ``num_layers``; any other key must say what the file says."""
    directory = values["checkpoint"]
    if "preset" in values:
        raise ScenarioError(f"{where}: model.preset and model.checkpoint both give the sizes; leave one out")
    if not isinstance(directory, str) or not directory:
        raise ScenarioError(f"{where}: model.checkpoint must be a directory, got {shown(directory)}")
    try:
        published = model_spec(real_path(root / directory, error=CheckpointError))
    except CheckpointError as error:
        raise ScenarioError(f"{where}: model.checkpoint: {error}") from None
    given = {name: value for name, value in values.items() if name != "checkpoint"}
    model = _build(ModelSpec, published.model_dump() | given, where=where, prefix="model.")
    for name in given:
        wanted, found = getattr(model, name), getattr(published, name)
        if wanted != found and not (name == "num_layers" and wanted < found):
            raise ScenarioError(f"{where}: model.{name} = {shown(wanted)}, but the checkpoint has {shown(found)}")
    return model


def _custom_model(given: dict[str, Any], *, where: str) -> ModelSpec:
    missing = [name for name in _SIZES if name not in given]
    if missing:
        raise ScenarioError(f"{where}: model has no preset, so it must also give {', '.join(missing)}")
    model = _build(ModelSpec, {"preset": "custom", **given}, where=where, prefix="model.")
    if model.num_moe_layers < model.num_layers and "intermediate_size" not in given:
        raise ScenarioError(f"{where}: model has dense layers, so it must also give intermediate_size")
    return model.model_copy(update={"total_layers": model.num_layers})


def build_train(values: dict[str, Any], *, where: str) -> TrainSpec:
    """The training settings; ScenarioError names each wrong value."""
    return _build(TrainSpec, values, where=where, prefix="train.")


def build_measure(values: dict[str, Any], *, where: str) -> MeasureSpec:
    """How cells are measured; ScenarioError names each wrong value."""
    measure = _build(MeasureSpec, values, where=where, prefix="measure.")
    if measure.min_steps > measure.max_steps:
        raise ScenarioError(
            f"{where}: measure.min_steps = {measure.min_steps} exceeds measure.max_steps = {measure.max_steps}"
        )
    return measure


def build_gate(values: dict[str, Any], *, where: str) -> GateSpec:
    """The gate's thresholds; ScenarioError names each wrong value."""
    return _build(GateSpec, values, where=where, prefix="gate.")


def _build(spec: type[_Spec], values: dict[str, Any], *, where: str, prefix: str) -> _Spec:
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return spec.model_validate(frozen, strict=True)
    except ValidationError as error:
        raise ScenarioError(f"{where}: {_sentence(error, prefix=prefix)}") from None


def _sentence(error: ValidationError, *, prefix: str) -> str:
    """All errors of one table in one sentence: ``train.seq_len must be a valid integer, got 'x'``."""
    wanted: dict[str, list[str]] = {}
    got: dict[str, object] = {}
    for detail in error.errors(include_url=False):
        key = prefix + str(detail["loc"][0])
        wanted.setdefault(key, []).append(_requirement(detail["msg"]))
        got[key] = detail["input"]
    return "; ".join(f"{key} {' or '.join(texts)}, got {shown(got[key])}" for key, texts in wanted.items())


def _requirement(message: str) -> str:
    subject, found, rest = message.replace("a valid tuple", "a list").partition(" should ")
    return f"must {rest}" if found and " " not in subject else message[:1].lower() + message[1:]
