"""Hand-made cells and arms for the tests of the gate."""

from collections.abc import Hashable, Sequence
from typing import Any

from epbench.analysis.arms import Arm, Night, arm_of
from epbench.analysis.gate import Pair, judge
from epbench.cells import Cell
from epbench.gate_records import CellVerdict, GateSpec, MetricChange
from epbench.layout import Layout
from epbench.records import CellResult, LaunchValue
from epbench.store import CellEntry, result_of

__all__ = ["CELL", "QUIET", "SPEC", "arm_like", "cell_of", "launches_of", "metric", "night_of", "pair_of", "verdict_of"]

CELL = result_of(CellEntry(order=0, cell=Cell(layout=Layout(dp_shard=2))))

SPEC = GateSpec()
QUIET = (0.2, 0.2002, 0.1998, 0.2001, 0.1999)


def launches_of(steps_s: Sequence[float], *, scale: float = 1.0, start: str = "a") -> list[LaunchValue]:
    """Device work is nine tenths of the step."""
    return [
        LaunchValue(
            index=at, order=at, step_s=scale * step_s, device_work_s=0.9 * scale * step_s, host={"names": [start]}
        )
        for at, step_s in enumerate(steps_s)
    ]


def cell_of(*steps_s: float, scale: float = 1.0, **changes: Any) -> CellResult:
    """An ok cell of such launches."""
    known = {"outcome": "ok", "launch_values": launches_of(steps_s, scale=scale), "peak_allocated_bytes": 10**9}
    return CELL.model_copy(update=known | changes)


def night_of(*steps_s: float, **counters: float) -> Night:
    """Launches that no other arm can be paired with."""
    rounds: dict[Hashable, float] = {object(): step_s for step_s in steps_s}
    work_s = {place: 0.9 * step_s for place, step_s in rounds.items()}
    return Night(timings={"step_s": rounds, "device_work_s": work_s}, counters=counters)


def arm_like(outcome: str | None, *, expected: bool = False, reason: str | None = None) -> Arm:
    """An arm of which only the end is known."""
    return Arm(outcome=outcome, reason=reason, expected=expected, nights=(Night(),))


def pair_of(base: CellResult | Arm | None, head: CellResult | Arm | None, *, interleaved: bool = True) -> Pair:
    """Cells become arms: of one source, or of two."""
    sources = ("ab", "ab") if interleaved else ("base", "head")
    arms = [
        arm_of(side, source=source) if isinstance(side, CellResult) else side
        for side, source in zip((base, head), sources, strict=True)
    ]
    return Pair(cell=CELL, name="dp2", base=arms[0], head=arms[1])


def verdict_of(base: Any, head: Any, spec: GateSpec = SPEC, **how: Any) -> CellVerdict:
    return judge([pair_of(base, head, **how)], spec).cells[0]


def metric(verdict: CellVerdict, name: str) -> MetricChange:
    return next(change for change in verdict.metrics if change.metric == name)
