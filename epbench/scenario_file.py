"""Reading a scenario file: TOML in, one merged document out, with every key known and every number finite.

``extends`` names one more file, relative to this one: tables merge by key, lists and ``[[...]]`` blocks
replace.
"""

import json
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epbench.errors import ScenarioError
from epbench.files import read_text
from epbench.scenario_schema import check_keys
from epbench.wording import place, shown

__all__ = ["Document", "read_document", "to_toml"]

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,64}", re.ASCII)
_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Document:
    """One scenario as written, ``extends`` resolved: nested tables of plain values, keys known.

    ``source`` is the file's own text, None if it extends another and so is not the whole scenario.
    ``fixed_world`` is false when the world size was overridden from outside the file.
    """

    path: Path
    name: str
    description: str
    device: str
    tables: dict[str, Any]
    source: str | None
    fixed_world: bool = True

    @property
    def where(self) -> str:
        """How messages name this scenario."""
        return place(self.path)


def read_document(path: Path) -> Document:
    """Read, merge and check the keys of a scenario file; raises ScenarioError in one sentence."""
    source: str | None
    source, tables = _read(path)
    if "extends" in tables:
        tables = _merge(_parent(path, tables["extends"]), tables)
        del tables["extends"]
        source = None
    where = place(path)
    if tables.get("schema") != 1:
        raise ScenarioError(f"{where}: 'schema = 1' is missing or of another number; this version reads schema 1")
    device = tables.get("device", "auto")
    if device not in _DEVICES:
        raise ScenarioError(f"{where}: device must be auto, cpu or cuda, got {shown(device)}")
    return Document(path, _name(tables, where), _description(tables, where), device, tables, source)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    where = place(path)
    text = read_text(path, most_mib=1, error=ScenarioError).replace("\r\n", "\n")
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else _one_line(error)
        raise ScenarioError(f"{where}: not valid TOML: {reason}") from None
    check_keys(tables, where=where)
    for key in _unfit_values(tables):
        raise ScenarioError(f"{where}: {shown(key)} is a date, an infinite number, or one beyond 64 bits")
    return text, tables


def _one_line(error: ValueError) -> str:
    text = str(error)
    return text if len(text) <= 200 and text.isprintable() else shown(text, limit=100)


def _parent(path: Path, extends: Any) -> dict[str, Any]:
    if not isinstance(extends, str) or not extends:
        raise ScenarioError(f"{place(path)}: extends must be a file name, got {shown(extends)}")
    parent = path.parent / extends
    _, tables = _read(parent)
    if "extends" in tables:
        raise ScenarioError(f"{place(path)}: extends {place(extends)}, which extends another: one level is allowed")
    return tables


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _name(tables: dict[str, Any], where: str) -> str:
    name = tables.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or set(name) == {"."}:
        got = "it is missing" if name is None else f"got {shown(name)}"
        raise ScenarioError(f"{where}: name must be 1 to 64 letters, digits, '.', '_' or '-'; {got}")
    return name


def _description(tables: dict[str, Any], where: str) -> str:
    description = tables.get("description", "")
    if not isinstance(description, str) or len(description) > 1000:
        raise ScenarioError(f"{where}: description must be text of at most 1000 characters, got {shown(description)}")
    return description


def _unfit_values(value: Any, key: str = "") -> Iterator[str]:
    """Keys of values that TOML allows and JSON, or a 64-bit count, does not."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _unfit_values(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for item in value:
            yield from _unfit_values(item, key)
    elif not (_fits(value) or isinstance(value, str)):
        yield key


def _fits(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 2**63


def to_toml(tables: dict[str, Any]) -> str:
    """``tables`` as TOML text that reads back equal: the self-contained copy that a run keeps."""
    return "\n".join(_lines(tables, "")) + "\n"


def _lines(table: dict[str, Any], prefix: str) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not _is_table(value)}
    yield from (f"{_string(key)} = {_literal(value)}" for key, value in plain.items())
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ("", f"[{prefix}{_string(key)}]", *_lines(value, f"{prefix}{_string(key)}."))
        elif _is_table(value):
            for block in value:
                yield from ("", f"[[{prefix}{_string(key)}]]", *_lines(block, f"{prefix}{_string(key)}."))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return _string(value, bare=False) if isinstance(value, str) else json.dumps(value)


def _string(text: str, *, bare: bool = True) -> str:
    if bare and re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
