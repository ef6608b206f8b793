"""What ``epbench plan`` prints: cells that would run, cells that would not with every reason, and counts."""

import json
from collections.abc import Iterable, Sequence

from epbench.cells import Cell, ModelSpec
from epbench.scenario import PlannedCell, Scenario
from epbench.scenario_matrix import cell_value
from epbench.store import CellEntry, result_of
from epbench.wording import place

__all__ = ["plan_json", "render_plan"]

_HEADER = ("cell", "layout", "mode", "routing", "model", "tokens/step", "micro-batches")
_RIGHT_ALIGNED = ("tokens/step", "micro-batches")
_SAID_ALREADY = {  # in the columns above, or by the layout
    "layout",
    "mode",
    "routing",
    "world_size",
    "model.preset",
    "model.num_layers",
    "model.num_experts",
    "model.num_experts_per_tok",
    "model.moe_intermediate_size",
}


def plan_json(scenario: Scenario) -> str:
    """``{"cells": [...]}`` with those fields of ``show --json`` that are known before a run.

    ``outcome`` is null for what would run, and ``skipped`` with its reason for the rest.
    """
    results = (
        result_of(
            CellEntry(
                order=order, cell=it.cell, skip_reason=it.skip_reason, world_size=it.world_size, varied=scenario.varied
            )
        ).model_dump(mode="json")
        for order, it in enumerate(scenario.planned)
    )
    return json.dumps({"cells": list(results)}, indent=2, allow_nan=False)


def render_plan(scenario: Scenario) -> str:
    """The table of cells, the skipped ones with their reasons, and the counts, as plain text."""
    skipped = [it for it in scenario.planned if it.skip_reason is not None]
    lines = [_title(scenario), ""]
    if scenario.cells:
        extra = [key for key in scenario.varied if key not in _SAID_ALREADY]
        header = (*_HEADER, *(key.partition(".")[2] for key in extra))
        lines += [*_table([header, *(_row(cell, extra) for cell in scenario.cells)]), ""]
    if skipped:
        lines += ["skipped:", *(f"  {it.cell.id}: {it.skip_reason}" for it in skipped), ""]
    return "\n".join([*lines, _counts(scenario, skipped)])


def _title(scenario: Scenario) -> str:
    words = " ".join(scenario.description.split())
    printable = "".join(char for char in words if char.isprintable())
    return f"{scenario.name}: {printable}" if printable else scenario.name


def _counts(scenario: Scenario, skipped: Sequence[PlannedCell]) -> str:
    launches = scenario.measure.launches
    ranks = sorted({it.world_size for it in scenario.planned})
    cells = _count(len(scenario.planned), "cell")
    text = (
        f"{len(scenario.cells)} of {cells} would run, {len(skipped)} skipped; "
        f"{_count(launches, 'launch', 'launches')} each on {' or '.join(map(str, ranks))} "
        f"{'rank' if ranks == [1] else 'ranks'}; device {scenario.device}"
    )
    lower = {it.cell.train.compute_dtype for it in scenario.planned} - {"fp32"}
    return text + (" (on cpu: fp32, other cell ids)" if lower and scenario.device == "auto" else "")


def _row(cell: Cell, extra: Iterable[str]) -> tuple[str, ...]:
    return (
        cell.id,
        cell.layout.slug,
        cell.mode,
        cell.routing,
        _model_words(cell.model),
        f"{cell.train.global_batch_size * cell.train.seq_len:,}",
        f"{cell.num_micro_batches} x {cell.micro_batch_size}",
        *(place(cell_value(cell, key, world_size=cell.world_size)) for key in extra),
    )


def _model_words(model: ModelSpec) -> str:
    layers = f"{model.num_layers}"
    if model.num_layers != model.total_layers:
        layers += f" of {model.total_layers}"
    experts = f"{model.num_experts} experts x {model.moe_intermediate_size}, top-{model.num_experts_per_tok}"
    sizes = f"{_billions(model.total_parameters)}, {_billions(model.active_parameters)} active"
    return f"{place(model.preset)}: {layers} layers, {experts}; {sizes}"


def _billions(parameters: int) -> str:
    """Parameters in the unit that keeps three digits readable."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    header, *body = rows
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    return ["  ".join(_padded(row, header, widths)).rstrip() for row in (header, *body)]


def _padded(row: Sequence[str], header: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.rjust(width) if name in _RIGHT_ALIGNED else text.ljust(width)
        for text, name, width in zip(row, header, widths, strict=True)
    ]


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
