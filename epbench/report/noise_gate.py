"""What the gate would find in each cell of known noise: what `epbench baseline noise --gate` adds.

The columns of `epbench baseline noise` are of one comparison of one cell. A gate compares many, must not raise an alarm
in any of them, and lets pass what is not worth a stop: so it finds less, and this says how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epbench.analysis.differences import POWER
from epbench.analysis.gate import is_gated, limits
from epbench.analysis.noise import Noise, smallest_gated_change
from epbench.gate_records import GateSpec
from epbench.report.tables import Table, Value
from epbench.report.terminal import drawn
from epbench.report.text import UNKNOWN, clean

__all__ = ["GATE_ARMS", "Gated", "gated_json", "gated_of", "render_gated"]

GATE_ARMS = (3, 5, 8, 10)  # launches an arm
_NAMES = {"step_s": "step", "device_work_s": "device work"}


@dataclass(frozen=True)
class Gated:
    """One timing that the gate judges; ``family`` such share ``alpha``, the false alarms of one look."""

    cell: str
    noise: Noise
    limit: float  # relative growth
    floor_s: float
    family: int
    alpha: float

    def finds(self, launches: int) -> float | None:
        """The relative slowdown that so many interleaved launches an arm find; None where noise is too rough."""
        return smallest_gated_change(
            self.noise, launches, family=self.family, limit=self.limit, alpha=self.alpha, floor_s=self.floor_s
        )


def gated_of(found: Sequence[tuple[str, Noise]], spec: GateSpec) -> list[Gated]:
    """Of cell ids with the noise of one metric each, those that the gate judges."""
    known: dict[str, dict[str, Noise]] = {}
    for cell, noise in found:
        if is_gated(cell, spec):
            known.setdefault(cell, {})[noise.metric] = noise
    rows = [
        (cell, noises[metric], limit)
        for cell, noises in known.items()
        for metric, limit in limits(spec, base=noises, head=noises).items()
        if metric in noises
    ]
    alpha = spec.alpha / max(1, len(spec.looks))
    return [Gated(cell, noise, limit, spec.absolute_floor_s, len(rows), alpha) for cell, noise, limit in rows]


def render_gated(rows: Sequence[Gated]) -> str:
    """A row per cell and timing, and what its numbers mean."""
    if not rows:
        return "The gate of this scenario judges none of these cells."
    titles = ("cell", "of", "allowed", *(f"gate finds at {count}" for count in GATE_ARMS))
    table = drawn(Table.of(titles, [_row(one) for one in rows], texts=2))
    return f"{table}\n\n{_legend(rows[0])}"


def _row(one: Gated) -> tuple[Value, ...]:
    allowed = max(one.limit, one.floor_s / one.noise.median)
    return (
        Value(clean(one.cell)),
        Value(_NAMES[one.noise.metric]),
        _percent(allowed),
        *(_percent(one.finds(count)) for count in GATE_ARMS),
    )


def _percent(share: float | None) -> Value:
    return Value(UNKNOWN if share is None else f"{100 * share:.2f} %", share)


def _legend(one: Gated) -> str:
    return (
        "'gate finds at K': the slowdown, with what is allowed in it, that K launches an arm, interleaved (epbench ab),"
        f"\nfind in {100 * POWER:.0f} % of nights, at {100 * one.alpha:g} % false alarms a look over all {one.family} "
        "rows together (Holm). Runs of\ndifferent nights differ by their machine starts too, and find less."
    )


def gated_json(rows: Sequence[Gated]) -> list[dict[str, Any]]:
    """The same for machines: relative changes, by launches an arm."""
    return [
        {
            "cell": one.cell,
            "metric": one.noise.metric,
            "limit": max(one.limit, one.floor_s / one.noise.median),
            "family": one.family,
            "alpha": one.alpha,
            "smallest_detectable_change": {count: one.finds(count) for count in GATE_ARMS},
        }
        for one in rows
    ]
