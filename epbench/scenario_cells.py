"""From the settings of a scenario document to its rows: cells, and why some of them will not run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.errors import CheckpointError, LayoutError, ScenarioError
from epbench.files import real_path
from epbench.hf_config import weight_files
from epbench.layout import Layout, legal_layouts, parse_slug, violations
from epbench.routing_file import check_routing_file
from epbench.routing_kinds import impossible_routing, routing_kind
from epbench.scenario_file import Document
from epbench.scenario_matrix import (
    MAX_CELLS,
    Setting,
    flat,
    include_settings,
    matches,
    matrix_settings,
    slug_without_dp,
)
from epbench.scenario_schema import build_model, build_train, canonical_mode, canonical_routing, not_yet
from epbench.stack_support import check_stack, unsupported
from epbench.token_file import check_token_file
from epbench.wording import either, shown

__all__ = ["PlannedCell", "plan_cells", "replan_cells"]

_MAX_WORLD_SIZE = 65_536
_EXPECTATIONS: dict[str, Literal["ok", "oom", "any"]] = {"ok": "ok", "oom": "oom", "any": "any"}


@dataclass(frozen=True)
class PlannedCell:
    """One row of a run. ``skip_reason`` is None for what will run.

    ``world_size`` is what was asked; it differs from the cell's own when the layout's degrees do not fit. ``setting``
    is what the axes said of it, with the one layout that it has.
    """

    cell: Cell
    skip_reason: str | None
    world_size: int
    setting: Setting = field(default_factory=dict, compare=False, repr=False)


def plan_cells(document: Document) -> tuple[PlannedCell, ...]:
    """All rows of a scenario in order; raises ScenarioError for what cannot be a row."""
    where, tables = document.where, document.tables
    rows = _limited(
        (row for setting in matrix_settings(tables, where=where) for row in _rows(document, setting, where=where)),
        where=where,
    )
    for index, block in enumerate(tables.get("exclude", [])):
        place = f"{where}: exclude[{index}]"
        rows = [row for row in rows if not matches(block, row.cell, world_size=row.world_size, where=place)]
    for index, block in enumerate(tables.get("include", [])):
        place = f"{where}: include[{index}]"
        settings = include_settings(block, where=place)
        rows += _limited((row for setting in settings for row in _rows(document, setting, where=place)), where=where)
    _check_files(rows, where=where)
    _check_routings(rows, where=where)
    return tuple(_one_row_a_cell(rows, where=where))


def replan_cells(
    document: Document, rows: Sequence[PlannedCell], options: Mapping[str, Any], *, where: str
) -> tuple[PlannedCell, ...]:
    """The same rows in the same places, each with ``options`` over what its axes say; no duplicate is refused.

    Raises ScenarioError, which begins with ``where``, for values that no cell can have.
    """
    changed = [row for old in rows for row in _rows(document, old.setting | dict(options), where=where)]
    assert len(changed) == len(rows), "each row has one layout"
    _check_files(changed, where=where)
    _check_routings(changed, where=where)
    return tuple(changed)


def _check_files(rows: list[PlannedCell], *, where: str) -> None:
    """Raise ScenarioError for weights or tokens that no launch could use; what many cells share is looked at once."""
    cells = [row.cell for row in rows]
    try:
        for directory in {cell.model.checkpoint: None for cell in cells if cell.model.checkpoint is not None}:
            weight_files(directory)
    except CheckpointError as error:
        raise ScenarioError(f"{where}: model.checkpoint: {error}") from None
    used = {
        (cell.train.data, cell.train.seq_len, cell.train.global_batch_size, cell.model.vocab_size) for cell in cells
    }
    try:
        for data, seq_len, batch, vocab_size in sorted(used):
            if data != "random":
                check_token_file(Path(data), seq_len=seq_len, global_batch_size=batch, vocab_size=vocab_size)
    except ScenarioError as error:
        raise ScenarioError(f"{where}: train.data: {error}") from None


def _check_routings(rows: list[PlannedCell], *, where: str) -> None:
    """Raise ScenarioError for a file of expert ids that cannot be replayed; each is read once a model and batch."""
    models = {}
    for cell in (row.cell for row in rows):
        sizes = (cell.model.num_moe_layers, cell.model.num_experts, cell.model.num_experts_per_tok)
        models[cell.routing, sizes, cell.train.global_batch_size, cell.train.seq_len] = cell
    for cell in models.values():
        kind, path = routing_kind(cell.routing)
        if kind == "replay":
            try:
                check_routing_file(Path(path), cell.model, cell.train)
            except ScenarioError as error:
                raise ScenarioError(f"{where}: routing: {error}") from None


def _limited(rows: Iterable[PlannedCell], *, where: str) -> list[PlannedCell]:
    kept: list[PlannedCell] = []
    for row in rows:
        kept.append(row)
        if len(kept) > MAX_CELLS:
            raise ScenarioError(f"{where}: more than {MAX_CELLS} cells; split the scenario")
    return kept


def _one_row_a_cell(rows: list[PlannedCell], *, where: str) -> list[PlannedCell]:
    """Refuse duplicates; where the world size varies, a layout that fits no or one world is one row."""
    unique: dict[str, PlannedCell] = {}
    seen: set[tuple[str, int]] = set()
    for row in rows:
        key = row.cell.digest
        if (key, row.world_size) in seen:
            raise ScenarioError(f"{where}: cell {row.cell.id} is planned twice; remove one")
        seen.add((key, row.world_size))
        if key not in unique or unique[key].skip_reason is not None:
            unique[key] = row
    return list(unique.values())


def _rows(document: Document, setting: Setting, *, where: str) -> Iterator[PlannedCell]:
    """The cells of one setting: one, or with ``layout = "auto"`` one for each legal layout."""
    base = flat({key: document.tables.get(key, {}) for key in ("model", "train")})
    explicit = any(key.startswith("model.") for key in base) or "model.checkpoint" in setting
    merged = ({} if explicit else {"model.preset": "tiny"}) | base | setting
    world_size = _world_size(merged.get("world_size", document.tables.get("world_size")), where=where)
    model = build_model(_part(merged, "model"), where=where, root=document.path.parent)
    train = _with_tokens(build_train(_part(merged, "train"), where=where), document)
    check_stack(train.stack, where=where)
    _refuse_fixed(base, setting, where=where)
    train, reasons = _on_device(train, setting, device=document.device)
    routing = _with_file(canonical_routing(merged.get("routing", "natural"), where=where), document)
    later = (not_yet(key, value) for key, value in setting.items())
    reasons += [reason for reason in later if reason]
    mode = canonical_mode(merged.get("mode", "eager"), where=where)
    fixed = "world_size" not in setting and document.fixed_world
    for layout in _layouts(merged["layout"], world_size, model, train, fixed=fixed, where=where):
        cell = Cell(
            layout=layout,
            mode=mode,
            routing=routing,
            model=model,
            train=train,
            expect=_expect(merged.get("expect", "ok"), where=where),
        )
        broken = violations(layout, world_size=world_size, model=model, train=train)
        broken += impossible_routing(cell) + unsupported(cell)
        single = setting if merged["layout"] != "auto" else setting | {"layout": layout.slug}
        yield PlannedCell(cell, "; ".join(reasons + broken) or None, world_size, single)


def _with_tokens(train: TrainSpec, document: Document) -> TrainSpec:
    """``train.data`` as a path that ranks can open, wherever they are started."""
    if train.data == "random":
        return train
    try:
        path = real_path(document.path.parent / train.data, error=ScenarioError)
    except ScenarioError as error:
        raise ScenarioError(f"{document.where}: train.data: {error}") from None
    return train.model_copy(update={"data": str(path)})


def _with_file(routing: str, document: Document) -> str:
    """``routing``, a file to be replayed as a path that ranks can open, wherever they are started."""
    kind, file = routing_kind(routing)
    if kind != "replay":
        return routing
    try:
        return f"replay:{real_path(document.path.parent / file, error=ScenarioError)}"
    except ScenarioError as error:
        raise ScenarioError(f"{document.where}: routing: {error}") from None


def _part(setting: Setting, table: str) -> dict[str, Any]:
    prefix = f"{table}."
    return {key.removeprefix(prefix): value for key, value in setting.items() if key.startswith(prefix)}


def _refuse_fixed(base: Setting, setting: Setting, *, where: str) -> None:
    """What is not built yet can be a row among others, but not what every row shares."""
    for key, value in base.items():
        reason = None if key in setting else not_yet(key, value)
        if reason:
            raise ScenarioError(f"{where}: {reason}")


def _on_device(train: TrainSpec, setting: Setting, *, device: str) -> tuple[TrainSpec, list[str]]:
    """On cpu all is fp32; a lower precision that an axis asks for is not measured there."""
    if device != "cpu":
        return train, _narrow_masters(train)
    lower = [key for key in ("compute_dtype", "master_dtype") if getattr(train, key) != "fp32"]
    asked = [key for key in lower if f"train.{key}" in setting]
    if asked:
        reasons = [f"train.{key} = {getattr(train, key)} is not measured on cpu, which runs fp32" for key in asked]
        return train, reasons
    return train.model_copy(update=dict.fromkeys(lower, "fp32")), []


def _narrow_masters(train: TrainSpec) -> list[str]:
    if train.master_dtype == "bf16" and train.compute_dtype == "fp32":
        return ["train.master_dtype = bf16 is narrower than train.compute_dtype = fp32"]
    return []


def _layouts(
    value: Any, world_size: int, model: ModelSpec, train: TrainSpec, *, fixed: bool, where: str
) -> list[Layout]:
    """The layouts that one value of ``layout`` names.

    Where nothing is legal, ``auto`` is plain dp, whose violations say why. A left-out dp that would not be
    whole is an error on a fixed world, and dp = 1, a skipped row, where the world varies or is overridden.
    """
    if not isinstance(value, str):
        raise ScenarioError(f"{where}: layout must be a slug such as dp2-ep2, or auto; got {shown(value)}")
    if value == "auto":
        return legal_layouts(world_size, model, train) or [Layout(dp_shard=world_size)]
    try:
        return [parse_slug(value, world_size=world_size)]
    except LayoutError as error:
        partial = None if fixed else slug_without_dp(value)
        if partial is None:
            raise LayoutError(f"{where}: {error}") from None
        return [partial]


def _world_size(value: Any, *, where: str) -> int:
    if value is None:
        raise ScenarioError(f"{where}: world_size is missing; write world_size = N, or give --world N")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_WORLD_SIZE:
        raise ScenarioError(
            f"{where}: world_size must be a whole number from 1 to {_MAX_WORLD_SIZE}, got {shown(value)}"
        )
    return value


def _expect(value: Any, *, where: str) -> Literal["ok", "oom", "any"]:
    if not isinstance(value, str) or value not in _EXPECTATIONS:
        raise ScenarioError(f"{where}: expect must be {either(_EXPECTATIONS)}, got {shown(value)}")
    return _EXPECTATIONS[value]
