"""How much the launches of each cell differ, as a table: what `epbench baseline noise` prints."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from epbench.analysis.differences import POWER
from epbench.analysis.noise import ALPHA, METRICS, MIN_DEGREES, Noise, noise_of
from epbench.errors import RunError
from epbench.gate_records import GateSpec
from epbench.records import CellResult, RunView
from epbench.report.noise_gate import gated_json, gated_of, render_gated
from epbench.report.tables import Table, Value
from epbench.report.terminal import drawn
from epbench.report.text import UNKNOWN, clean, ms

__all__ = ["ARMS", "noise_json", "noise_row", "noise_titles", "render_noise"]

ARMS = (3, 5, 8)  # launches an arm
_NAMES = {"step_s": "step", "device_work_s": "device work"}


def render_noise(views: Sequence[RunView], *, gate: bool = False) -> str:
    """A row per cell and metric, and with ``gate`` what the last run's gate would find.

    Raises RunError if the runs may not be pooled, or nothing has two launches.
    """
    found = list(_found(views))
    if not any(noise.between is not None for _, noise in found):
        raise RunError("no cell of these runs has two valid launches on one machine start: nothing tells its noise")
    table = drawn(Table.of(noise_titles(), [noise_row(cell, noise) for cell, noise in found], texts=2))
    judged = f"\n{render_gated(gated_of(found, _spec(views)))}\n" if gate else ""
    return f"{table}\n\n{_legend()}\n{judged}"


def _spec(views: Sequence[RunView]) -> GateSpec:
    """The thresholds of the last run; the defaults where it is older than they are."""
    return views[-1].run.gate or GateSpec()


def noise_json(views: Sequence[RunView], *, gate: bool = False) -> str:
    """The same as one JSON document."""
    found = list(_found(views))
    cells = [
        {"cell": cell, **asdict(noise), "smallest_detectable_change": {count: noise.finds(count) for count in ARMS}}
        for cell, noise in found
    ]
    judged = {"gate": gated_json(gated_of(found, _spec(views)))} if gate else {}
    return json.dumps({"alpha": ALPHA, "power": POWER, "cells": cells, **judged}, indent=2)


def _found(views: Sequence[RunView]) -> Iterator[tuple[str, Noise]]:
    _require_alike(views)
    by_cell: dict[str, list[CellResult]] = {}
    for view in views:
        for cell in view.cells:
            by_cell.setdefault(cell.cell, []).append(cell)
    for cell_id, cells in by_cell.items():
        for metric in METRICS:
            noise = noise_of(cells, metric)
            if noise is not None:
                yield cell_id, noise


def _require_alike(views: Sequence[RunView]) -> None:
    """Launches of two protocols or GPU models are no sample of one thing."""
    for what, kinds in (
        ("protocols", {str(view.protocol) for view in views}),
        ("devices", {view.environment.device_name for view in views}),
        ("versions of torch", {view.environment.torch for view in views}),
    ):
        if len(kinds) > 1:
            raise RunError(f"these runs are of different {what} ({', '.join(sorted(kinds))}): give runs of one only")


def noise_titles() -> tuple[str, ...]:
    """The columns of a table of noise; the first two are texts."""
    kinds = ("cell", "of", "median", "launches", "starts", "within", "between", "between starts")
    return (*kinds, *(f"finds at {count}" for count in ARMS))


def noise_row(cell: str, noise: Noise) -> tuple[Value, ...]:
    """One metric of one cell, with the smallest change that each number of launches finds."""
    return (
        Value(clean(cell)),
        Value(_NAMES[noise.metric]),
        Value(f"{ms(noise.median)} ms", noise.median),
        Value(str(noise.launches), noise.launches),
        Value(str(noise.starts), noise.starts),
        _percent(noise.within),
        _percent(noise.between),
        _percent(noise.between_starts),
        *(_percent(noise.finds(count)) for count in ARMS),
    )


def _percent(share: float | None) -> Value:
    return Value(UNKNOWN if share is None else f"{100 * share:.2f} %", share)


def _legend() -> str:
    return (
        "Standard deviations, relative: of the steps within a launch, between launches of one machine start, between\n"
        "starts. 'finds at K': the slowdown that K launches an arm, interleaved, find in\n"
        f"{100 * POWER:.0f} % of nights, at {100 * ALPHA:.0f} % false alarms; a dash where launches less starts are "
        f"fewer than {MIN_DEGREES}:\nthen the true scatter between launches may be more than 3 times this estimate."
    )
