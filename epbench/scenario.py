"""A scenario: the cells that a file asks for, each with the reason why it will not run, if there is one.

Order of expansion: product of ``[matrix]`` and ``[[zip]]``, then ``[[exclude]]``, then legality (an illegal
layout stays as a skipped row), then ``[[include]]``. Nothing here reads the machine: the world size is in the
file or given by the caller, and what depends on the device waits for :meth:`Scenario.resolved`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from epbench.cells import Cell, MeasureSpec, digest
from epbench.errors import ScenarioError
from epbench.gate_records import GateSpec
from epbench.scenario_cells import PlannedCell, plan_cells, replan_cells
from epbench.scenario_file import Document, read_document, to_toml
from epbench.scenario_matrix import cell_value
from epbench.scenario_schema import AXIS_KEYS, build_gate, build_measure

__all__ = ["PlannedCell", "Scenario", "load_scenario", "preset_scenario"]


@dataclass(frozen=True)
class Scenario:
    """What one run measures. ``varied`` are the keys that differ between cells, in the schema's order.

    ``device`` is auto, cpu or cuda. ``text`` is the whole scenario as TOML, with ``extends`` and an
    overriding world size resolved; a run keeps it. ``document`` is what it was expanded from.
    """

    name: str
    description: str
    path: Path
    device: str
    measure: MeasureSpec
    gate: GateSpec
    planned: tuple[PlannedCell, ...]
    varied: list[str]
    text: str
    document: Document

    @property
    def cells(self) -> list[Cell]:
        """Only the cells that will run."""
        return [planned.cell for planned in self.planned if planned.skip_reason is None]

    @property
    def digest(self) -> str:
        """Digest of what is measured and how; names, words and the file's place are no part of it."""
        rows = [[it.cell.digest, it.cell.expect, it.world_size, it.skip_reason] for it in self.planned]
        return digest([rows, self.measure.model_dump(mode="json"), self.gate.model_dump(mode="json")])

    def resolved(self, device: Literal["cpu", "cuda"]) -> "Scenario":
        """This scenario on a known device: cpu computes in fp32, and cell ids say so."""
        return _expand(replace(self.document, device=device))

    def with_options(self, options: Mapping[str, Any], *, where: str) -> "Scenario":
        """This scenario with ``options`` (keys of cells) over every cell; what is illegal then is a skipped row.

        Row *n* is row *n* of this one, changed, so two rows may be the same cell. Raises ScenarioError.
        """
        if not options:
            return self
        planned = replan_cells(self.document, self.planned, options, where=where)
        return replace(self, planned=planned, varied=_varied(planned))


def load_scenario(path: Path | str, *, world_size: int | None = None, device: str | None = None) -> Scenario:
    """Read a scenario file and expand it; ``world_size`` and ``device`` override the file's.

    Raises ScenarioError (LayoutError for a slug): one sentence with the file, the key and what is legal.
    """
    document = read_document(Path(path))
    if world_size is not None:
        document = _on_world(document, world_size)
    return _expand(document if device is None else replace(document, device=device))


def preset_scenario(preset: str, *, world_size: int) -> Scenario:
    """Every legal layout of a preset on ``world_size`` ranks, one sequence of 4096 tokens a rank in bf16."""
    train = {"seq_len": 4096, "global_batch_size": world_size, "compute_dtype": "bf16"}
    tables: dict[str, Any] = {
        "schema": 1,
        "name": preset,
        "world_size": world_size,
        "model": {"preset": preset},
        "train": train,
        "matrix": {"layout": "auto"},
    }
    return _expand(Document(Path("--model"), preset, "", "auto", tables, source=None))


def _on_world(document: Document, world_size: int) -> Document:
    """The document with one world size: that of ``[matrix]``, ``[[zip]]`` and ``[[include]]`` goes."""
    tables = document.tables | {"world_size": world_size}
    if "matrix" in tables:
        tables["matrix"] = _without_world(tables["matrix"])
    for name in ("zip", "include"):
        if name in tables:
            blocks = [_without_world(block) for block in tables[name]]
            tables[name] = [block for block in blocks if block]
    return replace(document, tables=tables, source=None, fixed_world=False)


def _without_world(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "world_size"}


def _expand(document: Document) -> Scenario:
    measure = build_measure(document.tables.get("measure", {}), where=document.where)
    gate = build_gate(document.tables.get("gate", {}), where=document.where)
    planned = plan_cells(document)
    if not planned:
        raise ScenarioError(f"{document.where}: no cell is planned; give [matrix] or [[include]] a layout")
    return Scenario(
        name=document.name,
        description=document.description,
        path=document.path,
        device=document.device,
        measure=measure,
        gate=gate,
        planned=planned,
        varied=_varied(planned),
        text=document.source or to_toml(document.tables),
        document=document,
    )


def _varied(planned: tuple[PlannedCell, ...]) -> list[str]:
    def differs(key: str) -> bool:
        return len({cell_value(it.cell, key, world_size=it.world_size) for it in planned}) > 1

    return [key for key in AXIS_KEYS if differs(key)]
