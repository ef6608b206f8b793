"""From the axes of a scenario file to flat settings, and which cells an ``[[exclude]]`` block matches.

A setting is a flat mapping of the keys of ``scenario_schema.AXIS_KEYS``: ``{"layout": "dp4", "train.seq_len":
128}``. An axis is a list of settings; the product of all axes is what ``[matrix]`` and ``[[zip]]`` say.
"""

import itertools
import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from epbench.cells import Cell
from epbench.errors import LayoutError, ScenarioError
from epbench.layout import Layout, parse_slug
from epbench.wording import shown

__all__ = [
    "MAX_CELLS",
    "Setting",
    "cell_value",
    "flat",
    "include_settings",
    "matches",
    "matrix_settings",
    "slug_without_dp",
]

MAX_CELLS = 10_000

Setting = dict[str, Any]


def flat(table: dict[str, Any]) -> Setting:
    """``{"mode": .., "model": {"num_layers": ..}}`` as ``{"mode": .., "model.num_layers": ..}``."""
    setting: Setting = {}
    for key, value in table.items():
        if key in ("model", "train"):
            setting |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            setting[key] = value
    return setting


def matrix_settings(tables: dict[str, Any], *, where: str) -> Iterator[Setting]:
    """The product of the ``[matrix]`` keys and the ``[[zip]]`` blocks, the last key varying fastest.

    Empty when the file has neither. Raises ScenarioError for uneven zips, a key on two axes, and products of
    more than ``MAX_CELLS``.
    """
    axes = [
        [{key: value} for value in _values(values, where=where, key=f"matrix.{key}")]
        for key, values in flat(tables.get("matrix", {})).items()
    ]
    axes += [_zip_axis(block, where=f"{where}: zip[{i}]") for i, block in enumerate(tables.get("zip", []))]
    keys = [key for axis in axes for key in axis[0]]
    for key in keys:
        if keys.count(key) > 1:
            raise ScenarioError(f"{where}: '{key}' is on two axes; give it once in [matrix] and [[zip]]")
    if axes and "layout" not in keys:
        raise ScenarioError(f'{where}: matrix.layout is missing; give a list of layouts, or "auto"')
    return _product(axes, where=where) if axes else iter(())


def include_settings(block: dict[str, Any], *, where: str) -> Iterator[Setting]:
    """The product of one ``[[include]]`` block's own lists; single values stand for themselves."""
    settings = flat(block)
    if "layout" not in settings:
        raise ScenarioError(f"{where}: layout is missing")
    axes = [[{key: value} for value in _values(values, where=where, key=key)] for key, values in settings.items()]
    return _product(axes, where=where)


def _zip_axis(block: dict[str, Any], *, where: str) -> list[Setting]:
    columns = flat(block)
    for key, values in columns.items():
        if not isinstance(values, list) or not values:
            raise ScenarioError(f"{where}: {key} must be a list of at least one value, got {shown(values)}")
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {count}" for key, count in lengths.items())
        raise ScenarioError(f"{where}: lists of one block have one length, and {counts}")
    if not columns:
        raise ScenarioError(f"{where}: the block is empty")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(values: Any, *, where: str, key: str) -> list[Any]:
    if values == []:
        raise ScenarioError(f"{where}: {key} is an empty list; leave it out or give it a value")
    return values if isinstance(values, list) else [values]


def _product(axes: list[list[Setting]], *, where: str) -> Iterator[Setting]:
    count = math.prod(len(axis) for axis in axes)
    if count > MAX_CELLS:
        raise ScenarioError(f"{where}: {count} combinations are more than the {MAX_CELLS} that a run may have")
    for parts in itertools.product(*axes):
        yield {key: value for part in parts for key, value in part.items()}


def cell_value(cell: Cell, key: str, *, world_size: int) -> Any:
    """What ``key`` of ``AXIS_KEYS`` is in ``cell``, canonical: the layout as its slug."""
    table, _, name = key.rpartition(".")
    if table:
        return getattr(cell.model if table == "model" else cell.train, name)
    return {
        "layout": cell.layout.slug,
        "mode": cell.mode,
        "routing": cell.routing,
        "world_size": world_size,
    }[key]


def matches(block: dict[str, Any], cell: Cell, *, world_size: int, where: str) -> bool:
    """Whether every key of an ``[[exclude]]`` block matches ``cell``: a list is any of, strings are globs."""
    conditions = flat(block)
    if not conditions:
        raise ScenarioError(f"{where}: the block is empty and would exclude everything")
    return all(
        any(
            _equal(key, pattern, cell_value(cell, key, world_size=world_size), world_size=world_size, where=where)
            for pattern in _values(patterns, where=where, key=key)
        )
        for key, patterns in conditions.items()
    )


def _equal(key: str, pattern: Any, value: Any, *, world_size: int, where: str) -> bool:
    if isinstance(pattern, str):
        if key == "layout" and not any(char in pattern for char in "*?["):
            return bool(_canonical_slug(pattern, world_size, where=where) == value)
        return fnmatchcase(str(value), pattern)
    return isinstance(pattern, bool) is isinstance(value, bool) and bool(pattern == value)


def _canonical_slug(slug: str, world_size: int, *, where: str) -> str | None:
    """The slug as printed; None if it is well-formed but its left-out dp is not whole on this world."""
    try:
        return parse_slug(slug, world_size=world_size).slug
    except LayoutError as error:
        if slug_without_dp(slug) is None:
            raise LayoutError(f"{where}: {error}") from None
        return None


def slug_without_dp(slug: str) -> Layout | None:
    """The layout of a slug that leaves dp out, at dp = 1; None if the slug names dp or is malformed."""
    try:
        return parse_slug(f"{slug}-dp1", world_size=1)
    except LayoutError:
        return None
