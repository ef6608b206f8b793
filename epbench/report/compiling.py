"""What torch.compile gains over eager for one layout, what it costs at the start, and when it has paid for itself.

**Compile time** is what Dynamo counts on the slowest rank. The first launch of a cell pays for what the compile cache
does not hold: all of it on a machine that never compiled these shapes (cold), little where another run or layout did.
The launches after it find the cache (warm), so the median of three or more launches is a warm one's.

**Break-even** is the number of steps after which the seconds saved make up for the seconds spent:
``compile / (step of compiled x (speed-up - 1))``. Its interval is that of the speed-up, for next to it the scatter of
the compiled step itself is small; the compile time is one number and brings none.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from epbench.analysis.statistics import MIN_LAUNCHES, Interval
from epbench.records import CellResult
from epbench.report.comparison import Compared, Group, speed_ratio
from epbench.report.selection import mode_pairs, mode_rows
from epbench.report.text import UNKNOWN, join
from epbench.report.verdict import NOT_RUN

__all__ = [
    "BreakEven",
    "Pair",
    "break_even",
    "break_evens",
    "gain_sentence",
    "geometric_mean",
    "median_compile_s",
    "pairs_of",
]


@dataclass(frozen=True)
class BreakEven:
    """``after`` some steps, ``never`` (compiled is slower), or ``unknown``: untold by launches, or no compile time."""

    kind: Literal["after", "never", "unknown"]
    steps: Interval | None = None

    @property
    def text(self) -> str:
        """``201 [200, 203]``: whole steps, the next one up."""
        if self.steps is None:
            return "never" if self.kind == "never" else UNKNOWN
        texts = [f"{math.ceil(x):,}" for x in (self.steps.value, self.steps.low, self.steps.high) if x is not None]
        return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else texts[0]


@dataclass(frozen=True)
class Pair:
    """One layout that has a number in both modes."""

    name: str
    eager: CellResult
    compiled: CellResult
    speed: Interval  # of compiled over eager

    @property
    def saved_s(self) -> Interval:
        """Seconds a step; negative where compiled is slower."""
        low, high = (None if bound is None else self._saved_s(bound) for bound in (self.speed.low, self.speed.high))
        return Interval(self._saved_s(self.speed.value), low, high)

    def _saved_s(self, speed: float) -> float:
        return (self.compiled.step_s or 0.0) * (speed - 1)

    @property
    def is_told(self) -> bool:
        """Whether launches tell the modes apart; below three, the medians alone must differ in favour of compiled."""
        return self.speed.excludes(1.0) if self.speed.known else self.speed.value > 1.0


def median_compile_s(cell: CellResult) -> float | None:
    """Of all launches of a cell; None below three, where a cold one would weigh in, and in records without phases."""
    return cell.phases_s.get("measure", {}).get("compile") if cell.launches >= MIN_LAUNCHES else None


def pairs_of(compared: Compared, group: Group) -> list[Pair]:
    """The layouts of a group with a number in both modes, the fastest first."""
    found = mode_pairs(mode_rows(compared, group))
    speeds = [(name, eager, compiled, speed_ratio(compiled, eager)) for name, eager, compiled in found]
    return [Pair(name, eager, compiled, speed) for name, eager, compiled, speed in speeds if speed is not None]


def break_even(pair: Pair, compile_s: float | None) -> BreakEven:
    """When ``compile_s`` seconds have paid for themselves."""
    if pair.is_told and pair.speed.value < 1.0:
        return BreakEven("never")
    if compile_s is None or not pair.is_told:
        return BreakEven("unknown")
    saved = pair.saved_s
    few, many = (None if bound is None else compile_s / bound for bound in (saved.high, saved.low))
    return BreakEven("after", Interval(compile_s / saved.value, few, many))


def break_evens(pair: Pair) -> tuple[BreakEven, BreakEven]:
    """From the compile time of the first launch, and from the median launch's."""
    compiled = pair.compiled
    return break_even(pair, compiled.compile.seconds), break_even(pair, median_compile_s(compiled))


def geometric_mean(pairs: Iterable[Pair]) -> float:
    """Of the speed-ups; there is one at least."""
    return math.exp(fmean(math.log(pair.speed.value) for pair in pairs))


def gain_sentence(compared: Compared, group: Group, pairs: Sequence[Pair]) -> str:
    """The mean gain, over how many of the layouts that might have run, and why the others are left out."""
    layouts: dict[str, list[CellResult]] = {}
    for cell in group.cells:
        if cell.outcome != "skipped":
            layouts.setdefault(compared.naming.layout(cell), []).append(cell)
    paired = {pair.name for pair in pairs}
    left_out = [f"{name} ({_why(cells)})" for name, cells in layouts.items() if name not in paired]
    over = "the only layout" if len(layouts) == 1 else f"{len(pairs)} of {len(layouts)} layouts"
    sentence = f"{geometric_mean(pairs):.2f}x over {over}, the geometric mean of those with a number in both modes."
    return f"{sentence} Left out: {join(left_out)}." if left_out else sentence


def _why(cells: Sequence[CellResult]) -> str:
    """``eager oom, compiled ok``; a layout of one mode says which."""
    if len({cell.mode for cell in cells}) == 1:
        return f"{cells[0].mode} only"
    return ", ".join(f"{cell.mode} {cell.outcome or NOT_RUN}" for cell in cells)
