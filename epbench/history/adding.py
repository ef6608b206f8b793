"""What enters a history: runs, and results of pytest-benchmark. Each once, whoever adds them and how often.

A store may be shared by many jobs, so a file is read and appended to under a lock (filelock; on a network file system
without locks, one job at a time must add). A night is one cell of one run: adding a run again adds what is new in it,
of a run that was resumed or of an addition that was cut off, and nothing else.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from epbench.analysis.arms import arm_of
from epbench.analysis.noise import machine_starts
from epbench.cell_content import with_defaults
from epbench.cells import digest
from epbench.errors import RunError
from epbench.files import read_text
from epbench.history.lines import (
    CellLine,
    EnvironmentLine,
    HistoryFile,
    HistoryLine,
    Line,
    NightLine,
    append_lines,
    history_path,
    read_history,
)
from epbench.records import CellResult, EnvironmentRecord, RunView
from epbench.wording import place, shown
from epbench.writing import writing

__all__ = ["BENCHMARKS", "Added", "Night", "add_nights", "benchmark_nights", "run_nights"]

BENCHMARKS = "pytest-benchmark"  # the scenario that benchmarks are nights of
SECONDS = "seconds"  # their metric
_KEY = 12  # characters of a digest that a line is known by
_GPU = 12  # characters that tell one GPU from another
_WAIT_S = 60.0
_MOST_MIB = 256


@dataclass(frozen=True)
class Night:
    """A night with what its line refers to."""

    cell: CellLine
    environment: EnvironmentLine
    line: NightLine


@dataclass(frozen=True)
class Added:
    """What an addition did to one file."""

    path: Path
    added: int
    present: int  # nights that were there


def add_nights(store: Path, scenario: str, nights: Sequence[Night]) -> Added:
    """Append the nights that the scenario's file does not have yet.

    Raises RunError if the file is no history, or if another job holds it for a minute, StorageError if it cannot be
    written.
    """
    from filelock import FileLock, Timeout

    path = history_path(store, scenario)
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path), FileLock(path.with_name(f".{path.name}.lock"), timeout=_WAIT_S):
            known = read_history(path) if path.exists() and path.stat().st_size else None
            lines = list(_missing(known, scenario, nights))
            if lines:
                append_lines(path, lines)
    except Timeout:
        raise RunError(
            f"'{place(path)}' has been in use for {_WAIT_S:.0f} s: see what adds to it, then try again"
        ) from None
    added = sum(isinstance(line, NightLine) for line in lines)
    return Added(path, added, len(nights) - added)


def _missing(known: HistoryFile | None, scenario: str, nights: Iterable[Night]) -> Iterator[Line]:
    """Lines to append, what a night refers to before it."""
    found = known or HistoryFile(scenario)
    if known is None:
        yield HistoryLine(scenario)
    cells, environments, seen = set(found.cells), set(found.environments), set(found.nights)
    for night in nights:
        if night.line.night in seen:
            continue
        if night.cell.key not in cells:
            yield night.cell
        if night.environment.key not in environments:
            yield night.environment
        yield night.line
        cells.add(night.cell.key)
        environments.add(night.environment.key)
        seen.add(night.line.night)


# ---------------------------------------------------------------- runs


def run_nights(view: RunView, name: str) -> list[Night]:
    """A night for each cell that has an outcome and was not skipped; ``name`` is that of the run directory."""
    environment = _environment(view)
    return [
        _night(cell, environment, run=name, started=_utc(view.run.started))
        for cell in map(with_defaults, view.cells)
        if cell.outcome not in (None, "skipped", "interrupted")
    ]


def _night(cell: CellResult, environment: EnvironmentLine, *, run: str, started: str) -> Night:
    settings = {"layout": cell.layout, "mode": cell.mode, "routing": cell.routing, "world_size": cell.world_size}
    content = settings | {"model": cell.model, "train": cell.train}
    described = CellLine(key=digest(content)[:_KEY], cell=cell.cell, **content)  # type: ignore[arg-type]
    found = next(iter(arm_of(cell, source=run).nights), None)
    line = NightLine(
        run=run,
        started=started,
        cell=described.key,
        environment=environment.key,
        outcome=str(cell.outcome),
        reason=cell.reason,
        timings={} if found is None else {name: _short(values.values()) for name, values in found.timings.items()},
        counters={} if found is None else dict(found.counters),
    )
    return Night(described, environment, line)


def _short(values: Iterable[float]) -> list[float]:
    """Seven digits: well below any noise, and half of the space."""
    return [float(f"{value:.7g}") for value in values]


def _environment(view: RunView) -> EnvironmentLine:
    machine: EnvironmentRecord = view.environment
    kept = machine.model_dump(
        include={"device", "device_name", "world_size", "torch", "cuda", "nccl", "driver", "python"}
    )
    kept |= {"code": machine.code[:_KEY], "protocol": view.protocol, "machine": machines(view)}
    return EnvironmentLine(key=digest(kept)[:_KEY], **kept)


def machines(view: RunView) -> list[str]:
    """Hosts and GPUs that launches of a run name: ``host-a GPU-1a2b3c4d``, a text for each machine start."""
    launches = [launch for cell in view.cells for launch in cell.launch_values]
    starts = dict.fromkeys(wide for wide in machine_starts(launches).values() if any(wide))
    return [" ".join([*names, *(gpu[:_GPU] for gpu in gpus)]) for names, gpus in starts]


def _utc(started: str) -> str:
    """Times in one form, so that they sort; what is no time stays as it is."""
    try:
        return datetime.fromisoformat(started).astimezone(UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return started


# ---------------------------------------------------------------- benchmarks


def benchmark_nights(path: Path) -> list[Night]:
    """A night for each benchmark in the JSON that pytest-benchmark writes; its value is the median over rounds.

    Device and torch are read from ``extra_info`` (``device``, ``torch``), else the machine's processor stands for the
    device. Raises RunError if the file cannot be read or is no such file.
    """
    found = _benchmark_json(path)
    machine, commit = found.get("machine_info") or {}, found.get("commit_info") or {}
    started = _utc(str(found.get("datetime", "")))
    run = f"{str(commit.get('id') or 'no commit')[:_KEY]} {started}"
    known = [one for one in found["benchmarks"] if _median(one) is not None]
    names = [str(one["name"]) for one in known]
    wholes = [str(one.get("fullname", name)) for name, one in zip(names, known, strict=True)]
    unique = [name if names.count(name) == 1 else whole for name, whole in zip(names, wholes, strict=True)]
    code = str(commit.get("id") or "")[:_KEY]
    return [
        _benchmark(name, one, machine, code=code, run=run, started=started)
        for name, one in zip(unique, known, strict=True)
    ]


def _benchmark_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, most_mib=_MOST_MIB, error=RunError))
    except (ValueError, RecursionError):
        raise RunError(f"'{place(path)}' is no whole JSON: write it anew with --benchmark-json") from None
    benchmarks = found.get("benchmarks") if isinstance(found, dict) else None
    is_known = isinstance(benchmarks, list) and all(isinstance(one, dict) and "name" in one for one in benchmarks)
    if not is_known or not isinstance(found.get("datetime"), str):
        raise RunError(f"'{place(path)}' is not what pytest-benchmark writes: give the file of --benchmark-json")
    if not all(isinstance(found.get(key) or {}, dict) for key in ("machine_info", "commit_info")):
        raise RunError(
            f"'{place(path)}' is not what pytest-benchmark writes: machine or commit is {shown('no object')}"
        )
    return dict(found)


def _benchmark(name: str, one: dict[str, Any], machine: dict[str, Any], *, code: str, run: str, started: str) -> Night:
    extra = one.get("extra_info") if isinstance(one.get("extra_info"), dict) else {}
    processor = machine.get("cpu") if isinstance(machine.get("cpu"), dict) else {}
    told = (extra or {}).get("device")
    kept: dict[str, Any] = {
        "device": "cuda" if told and "cpu" not in str(told).lower() else "cpu",
        "device_name": str(told or (processor or {}).get("brand_raw") or machine.get("processor") or "cpu"),
        "protocol": 0,
        "torch": str((extra or {}).get("torch") or ""),
        "python": str(machine.get("python_version") or ""),
        "code": code,
        "machine": [str(machine["node"])] if machine.get("node") else [],
    }
    cell = CellLine(key=digest(name)[:_KEY], cell=name, layout=name)
    value = _median(one)
    assert value is not None, "a benchmark without a median is no night"
    line = NightLine(run, started, cell.key, digest(kept)[:_KEY], "ok", timings={SECONDS: [value]})
    return Night(cell, EnvironmentLine(key=digest(kept)[:_KEY], **kept), line)


def _median(one: dict[str, Any]) -> float | None:
    stats = one.get("stats")
    value = stats.get("median") if isinstance(stats, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < float("inf") else None
