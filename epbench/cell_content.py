"""What makes two cells of different runs the same: layout, mode, routing, ranks, model and training settings.

A setting that an older version did not know has its default, so that a new setting parts no cell from its past. The id
of a cell is a digest of all settings of its version, and so no such key.
"""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from epbench.cells import ModelSpec, TrainSpec
from epbench.records import CellResult

__all__ = ["HasContent", "content_key", "with_defaults"]


class HasContent(Protocol):
    """A record of a cell, whatever else it holds."""

    @property
    def layout(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def routing(self) -> str: ...  # noqa: D102
    @property
    def world_size(self) -> int: ...  # noqa: D102
    @property
    def model(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def train(self) -> dict[str, Any]: ...  # noqa: D102


def content_key(cell: HasContent) -> str:
    """Equal for equal cells, of whatever version; a canonical text."""
    settings = [_model(cell.model), _train(cell.train)]
    return json.dumps([cell.layout, cell.mode, cell.routing, cell.world_size, *settings], sort_keys=True)


def with_defaults(cell: CellResult) -> CellResult:
    """The cell with every setting of this version."""
    return cell.model_copy(update={"model": _model(cell.model), "train": _train(cell.train)})


def _model(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _filled(settings, {name: field.default for name, field in ModelSpec.model_fields.items()})


def _train(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _filled(settings, {name: field.default for name, field in TrainSpec.model_fields.items()})


def _filled(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in one form: as JSON has them, whether they were read or are defaults."""
    return dict(json.loads(json.dumps({**defaults, **settings}, default=str)))
