"""The baseline file: read with a sentence for whatever is wrong with it, written so that its changes are few lines.

A file in git is merged, edited and cut off by people and machines, so it is read with suspicion. It is written with one
line a run: accepting a run adds a line to each of its cells, and drops one where there were twenty.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from epbench.baselines.records import BASELINE_SCHEMA, Baseline, Entry
from epbench.errors import RunError
from epbench.files import read_text
from epbench.records import RunRecord
from epbench.wording import place, shown
from epbench.writing import write_atomically

__all__ = ["SUFFIX", "baseline_path", "read_baseline", "rendered", "write_baseline"]

SUFFIX = ".baseline.json"
_MOST_MIB = 64
_MARKERS = ("<<<<<<< ", "=======", ">>>>>>> ", "||||||| ")
_DIGITS = 7  # significant, of a number that is no whole one: well below any noise
_OPEN = 3  # objects and lists so deep are written a line an item; what is deeper is one line


def baseline_path(record: RunRecord) -> Path:
    """Where the baseline of a run's scenario lies: ``NAME.baseline.json`` beside ``NAME.toml``."""
    scenario = Path(record.scenario_path)
    return scenario.with_name(scenario.stem + SUFFIX)


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file. Raises RunError in one sentence if there is none, or none that can be trusted."""
    text = read_text(path, most_mib=_MOST_MIB, error=RunError)
    _refuse_markers(path, text)
    found = _parsed(path, text)
    version = found.get("schema_version")
    if version != BASELINE_SCHEMA:
        raise RunError(f"'{place(path)}' is of schema {shown(version)}; this epbench reads schema {BASELINE_SCHEMA}")
    try:
        baseline = Baseline.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise RunError(f"{_damaged(path)} at {shown(where)}; take it from git again") from None
    _refuse_twins(path, baseline)
    return baseline


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write the file whole or not at all. Raises StorageError."""
    write_atomically(path, rendered(baseline))


def rendered(baseline: Baseline) -> str:
    """The text of the file, without its last newline: equal baselines have equal texts."""
    entries = sorted(baseline.entries, key=lambda entry: (entry.device_name, entry.torch, entry.protocol, entry.cell))
    content = baseline.model_dump(mode="json", exclude={"entries"})
    return _text(content | {"entries": [_entry(entry) for entry in entries]}, depth=0)


def _entry(entry: Entry) -> dict[str, Any]:
    """Settings as they are, for cells are matched by them; of the rest what is known, in short numbers."""
    content = entry.model_dump(mode="json")
    lists = {key: [_tidy(line) for line in content.pop(key)] for key in ("runs", "levels", "acknowledged")}
    return content | {key: lines for key, lines in lists.items() if lines}


def _tidy(value: Any) -> Any:
    """Short numbers, whole ones without a point; what is empty or unknown is left out."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items() if item is not None and item not in ({}, [])}
    return [_tidy(item) for item in value] if isinstance(value, list) else value


def _text(value: Any, *, depth: int) -> str:
    if not value or not isinstance(value, dict | list) or depth > _OPEN or _is_flat(value, depth):
        return json.dumps(value, allow_nan=False)
    inner, outer = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_text(item, depth=depth + 1)}" for key, item in value.items()]
    else:
        items = [_text(item, depth=depth + 1) for item in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    body = ",\n".join(inner + item for item in items)
    return f"{start}\n{body}\n{outer}{end}"


def _is_flat(value: Any, depth: int) -> bool:
    """Settings of a model or of training: they never change, and are one line."""
    return depth == _OPEN and isinstance(value, dict)


def _refuse_markers(path: Path, text: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(_MARKERS):
            raise RunError(
                f"'{place(path)}' has marks of an unsettled merge in line {number}: settle it in git, or take one side"
            )


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: _unique(path, pairs))
    except RecursionError:
        raise RunError(f"{_damaged(path)}: it is nested too deep to be one; take it from git again") from None
    except ValueError as error:
        line = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RunError(f"{_damaged(path)}{line}: it is no whole JSON; take it from git again") from None
    if not isinstance(found, dict):
        raise RunError(f"{_damaged(path)}: it is no JSON object; take it from git again")
    return found


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise RunError(f"{_damaged(path)}: it has {shown(twice[0])} twice in one place; take it from git again")
    return dict(pairs)


def _refuse_twins(path: Path, baseline: Baseline) -> None:
    twins = [key for key, count in Counter(entry.key for entry in baseline.entries).items() if count > 1]
    if twins:
        cells = " and ".join(shown(entry.cell) for entry in baseline.entries if entry.key == twins[0])
        raise RunError(
            f"'{place(path)}' has the same cell twice for one machine, torch and protocol ({cells}): "
            "remove one of the two entries"
        )


def _damaged(path: Path) -> str:
    return f"'{place(path)}' is damaged"
