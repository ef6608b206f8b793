"""What stands behind one row of the table of cells: configuration, the way to run it again, files, every launch."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from epbench.analysis.comm import above_ceiling
from epbench.memory_records import MemoryDetail
from epbench.records import CellResult, LaunchValue, OwnDtypeRecord, RunRecord, Spread
from epbench.report.data import RunData
from epbench.report.quantities import reserved_bytes
from epbench.report.text import UNKNOWN, clean, error, gib, join, ms, number, percent

__all__ = ["Details", "details_of"]

Rows = tuple[tuple[str, str], ...]  # (what, text)
_OF_ONE_TIME = ("--only", "--resume", "--budget")  # options of a command that another run of one cell has no use for
_FILES = ("result.json", "memory.json", "routing.json", "routing.npy", "trace.json.gz", "*/trace", "*/stderr.log")


@dataclass(frozen=True)
class Details:
    """One cell in full: its id, why it ended as it did, and its records as (what, text)."""

    cell: str
    reason: str
    expected: bool
    rows: Rows


def details_of(cell: CellResult, run: RunData | None = None) -> Details:
    """Everything about a cell that its row has no place for; of its ``run``, how to run it again and its files."""
    rows = (
        ("cell", clean(cell.cell, 300)),
        *(_run_rows(cell, run) if run else ()),
        ("model", _settings(cell.model)),
        ("train", _settings(cell.train)),
        ("verify", _verify(cell)),
        ("launches", "; ".join(map(_launch, cell.launch_values)) or UNKNOWN),
        ("memory, GiB", _memory(cell)),
        ("expert load", _load(cell)),
        *_doubts(cell),
        ("GPUs while timed", _gpus(cell)),
        ("compile", _settings(cell.compile.model_dump())),
        ("first losses", ", ".join(number(loss, 6) for loss in cell.loss) or UNKNOWN),
    )
    reason = clean(cell.reason, 1000) if cell.reason else ""
    return Details(cell.cell, reason, cell.expected, rows)


def _run_rows(cell: CellResult, run: RunData) -> Rows:
    files = _files(cell, run)
    return (
        ("command", clean(shlex.join(_command(cell, run.view.run)), 1000)),
        ("files", clean(f"cells/{cell.cell}/ has {join(files)}", 2000) if files else UNKNOWN),
    )


def _command(cell: CellResult, run: RunRecord) -> list[str]:
    """What ran the scenario, for this cell only; without the options that belonged to that one time."""
    words, kept = iter(run.command), list[str]()
    for word in words:
        if word in _OF_ONE_TIME:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in _OF_ONE_TIME)):
            kept.append(word)
    known = kept if run.scenario_path in kept else ["epbench", "run", run.scenario_path]
    return [*known, "--only", cell.cell]


def _files(cell: CellResult, run: RunData) -> list[str]:
    """What is in the cell's directory, or of a view without one, the files that its records came from."""
    if run.path is not None:
        place = run.path / "cells" / cell.cell
        found = sorted({path for pattern in _FILES for path in place.glob(pattern)})
        return [f"{path.relative_to(place)}{'/' if path.is_dir() else ''}" for path in found]
    known = {
        "result.json": cell.outcome,
        "memory.json": run.timelines.get(cell.cell),
        "routing.json": run.copies.get(cell.cell),
    }
    return [name for name, record in known.items() if record is not None]


def _settings(table: dict[str, Any]) -> str:
    known = [f"{clean(key, 60)} {clean(str(value), 120)}" for key, value in table.items() if value is not None]
    return ", ".join(known) or UNKNOWN


def _own_dtype(own: OwnDtypeRecord) -> str:
    passed = "passed" if own.passed else "FAILED"
    return (
        f"in {clean(own.dtype, 20)} with the same routing {passed}: loss {error(own.loss_error)}, gradients "
        f"{error(own.grad_error)} by norm (bound {error(own.grad_bound)}), gradient norm {error(own.norm_error)}"
    )


def _verify(cell: CellResult) -> str:
    found = cell.verify
    if found.scope == "none":
        return "not verified"
    parts = [
        f"scope {found.scope}",
        {True: "passed", False: "FAILED", None: "unfinished"}[found.passed],
        f"loss {error(found.loss_error)}",
        f"gradients {error(found.grad_error)} (worst: {clean(found.worst_parameter or UNKNOWN)})",
        f"gradient norm {error(found.norm_error)}",
        f"loss after one step {error(found.step_error)}",
        f"tolerance {error(found.tolerance)}",
    ]
    if found.own_dtype is not None:
        parts.append(_own_dtype(found.own_dtype))
    return ", ".join(parts)


def _launch(launch: LaunchValue) -> str:
    head = f"launch {launch.index} (number {launch.order + 1} of the run): "
    if not launch.valid:
        return f"{head}invalid, {clean(launch.invalid_reason or 'no reason recorded')}"
    steps = UNKNOWN if launch.steps is None else str(launch.steps)
    return f"{head}{ms(launch.step_s)} ms over {steps} steps, sd {ms(launch.step_sd_s)} ms"


def _memory(cell: CellResult) -> str:
    parts = {"peak allocated": cell.peak_allocated_bytes, "peak reserved": reserved_bytes(cell)}
    parts |= cell.memory_bytes.model_dump()
    text = ", ".join(f"{name} {gib(count)}" for name, count in parts.items())
    return "; ".join([text, *_memory_facts(cell.memory)])


def _memory_facts(found: MemoryDetail) -> Iterator[str]:
    """What is known beyond bytes of parts, each where a device or a stack tells it."""
    if found.peak_phase is not None:
        yield f"the peak is in {found.peak_phase}, on rank {found.rank}"
    if found.parts_of == "residents":
        yield "parts are what stays between steps"
    if found.fragmentation is not None:
        yield f"{percent(found.fragmentation)} of reserved free and not returnable at the peak"
    if found.alloc_retries:
        yield f"{found.alloc_retries} allocations had to be retried"
    if found.outside_torch_bytes is not None:
        yield f"outside of torch {gib(found.outside_torch_bytes)}"
    if found.note is not None:
        yield clean(found.note, 400)


def _load(cell: CellResult) -> str:
    load = cell.expert_load
    return (
        f"heaviest expert {number(load.max_over_mean)} of the mean, heaviest ep rank "
        f"{number(load.rank_max_over_mean)}, fan-out {number(load.fan_out)} ranks a token"
    )


def _doubts(cell: CellResult) -> Rows:
    """A row for collectives that seem faster than the wires; none without any."""
    found = above_ceiling(cell.collectives)
    return (("doubtful collectives", clean("; ".join(found), 1000)),) if found else ()


def _gpus(cell: CellResult) -> str:
    """Over the valid launches and their GPUs: the range of clock, heat and power, and the energy of a token."""
    gpus = [gpu for one in cell.launch_values if one.valid and one.telemetry for gpu in one.telemetry.gpus]
    ranges = (
        ("SM clock", "MHz", [gpu.sm_clock_mhz for gpu in gpus]),
        ("temperature", "C", [gpu.temperature_c for gpu in gpus]),
        ("power", "W", [gpu.power_w for gpu in gpus]),
    )
    parts = [f"{name} {_range(known)} {unit}" for name, unit, spreads in ranges if (known := [s for s in spreads if s])]
    if cell.energy_j_per_token is not None:
        parts.append(f"{number(cell.energy_j_per_token * 1e3)} mJ a token")
    reasons = sorted({name for gpu in gpus for name in gpu.clock_reasons or ()} - {"idle"})
    return ", ".join([*parts, *(f"held back by {clean(name, 60)}" for name in reasons)]) or UNKNOWN


def _range(spreads: Sequence[Spread]) -> str:
    return f"{min(spread.low for spread in spreads):.0f} to {max(spread.high for spread in spreads):.0f}"
