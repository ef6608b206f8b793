"""Memory: what a peak is made of, one step on a timeline, and what was predicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epbench.memory_records import MemoryTimeline
from epbench.report.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    Figure,
    filled,
    finished,
    hatched,
    joining_lines,
    name_rows,
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft
from epbench.report.figures.units import Unit

__all__ = [
    "PARTS",
    "Envelope",
    "PeakRow",
    "parts_figure",
    "predicted_figure",
    "thinned",
    "timeline_figure",
]

PARTS = ("params", "grads", "optimizer", "activations", "other")
UNTOLD, UNUSED = "not told apart", "reserved, not allocated"
_LOOKS = {
    "params": (BLUE, ""),
    "grads": (GREEN, "\\"),
    "optimizer": (SKY, "-"),
    "activations": (ORANGE, "x"),
    "other": (PURPLE, "."),
    UNTOLD: (GREY, ""),
}
_TIMES = 240  # a chart is hardly wider in pixels than three times this
_FAR = 4.0  # times the largest bar; a capacity further out would press the bars to one side
_FAR_ABOVE = 1.5  # times a timeline's peak, whose small changes are what it is drawn for


@dataclass(frozen=True)
class PeakRow:
    """One cell's worst rank at its peak, in bytes; parts that are not known are not in ``parts``."""

    name: str
    parts: dict[str, int]
    allocated: int
    reserved: int | None

    @property
    def unused(self) -> int:
        """Reserved by the allocator beyond what was allocated at the peak."""
        return max(0, (self.reserved or 0) - self.allocated)

    @property
    def total(self) -> int:
        """What the rank takes from its device, as far as torch knows."""
        return self.allocated + self.unused

    def bar(self, name: str) -> int:
        """Length of one series in this row."""
        if name == UNTOLD:
            return max(0, self.allocated - sum(self.parts.values()))
        return self.unused if name == UNUSED else self.parts.get(name, 0)


def parts_figure(rows: Sequence[PeakRow], unit: Unit, *, capacity: int | None) -> Figure:
    """The worst rank's memory at its peak, by what it holds; the capacity as a line where it is near."""
    figure = Draft()
    for name in (*_LOOKS, UNUSED):
        lengths = [(at, row.bar(name)) for at, row in enumerate(rows) if row.bar(name) > 0.001 * row.total]
        if lengths:
            figure.add_bar(
                x=[unit.of_bytes(length) for _, length in lengths],
                y=[at for at, _ in lengths],
                orientation="h",
                name=name,
                marker=hatched(YELLOW) if name == UNUSED else filled(*_LOOKS[name]),
            )
    name_rows(figure, [row.name for row in rows])
    largest = max(row.total for row in rows)
    if capacity is not None and capacity <= _FAR * largest:
        _capacity_line(figure, unit, capacity, is_vertical=True)
    figure.update_layout(barmode="stack", bargap=0.3)
    figure.update_xaxes(title_text=f"at the peak of the worst rank, {unit.name}", rangemode="tozero")
    return finished(figure, rows=len(rows) + 1, row_px=26, label="Memory at the peak by what it holds")


def _capacity_line(figure: Draft, unit: Unit, capacity: int, *, is_vertical: bool) -> None:
    """The device's memory."""
    style: dict[str, Any] = {"line": {"color": ORANGE, "dash": "dash", "width": 2}}
    at, text = unit.of_bytes(capacity), f"capacity {capacity / unit.bytes:.4g} {unit.name}"
    if is_vertical:
        figure.add_vline(x=at, **style, text=text)
    else:
        figure.add_hline(y=at, **style, text=text)


# ---------------------------------------------------------------- timeline


@dataclass(frozen=True)
class Envelope:
    """From ``time_s[i]`` to the next, the last to ``step_s``, allocated bytes lay between ``low`` and ``high``."""

    step_s: float
    time_s: tuple[float, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]


def thinned(timeline: MemoryTimeline, times: int = _TIMES) -> Envelope:
    """At most ``times`` intervals with the exact extremes of each: lowest of the lows, highest of the highs."""
    starts: list[int] = []
    slot = -1
    for at, time_s in enumerate(timeline.time_s):
        own = min(times - 1, int(times * time_s / timeline.step_s)) if timeline.step_s > 0 else at
        if own != slot:
            starts.append(at)
            slot = own
    spans = list(zip(starts, [*starts[1:], len(timeline.time_s)], strict=True))
    return Envelope(
        step_s=timeline.step_s,
        time_s=tuple(timeline.time_s[first] for first, _ in spans),
        low=tuple(min(timeline.low_bytes[first:end]) for first, end in spans),
        high=tuple(max(timeline.high_bytes[first:end]) for first, end in spans),
    )


def timeline_figure(timeline: MemoryTimeline, unit: Unit, *, phase: str | None, capacity: int | None) -> Figure:
    """Lowest and highest allocated memory over one step, the backward shaded, the peak marked with its phase."""
    found = thinned(timeline)
    top = 1.12 * max(found.high)
    figure = Draft()
    if timeline.backward_s:
        figure.add_scatter(**_shaded(timeline, unit.of_bytes(top)))
    times = [rounded(1e3 * time_s) for time_s in (*found.time_s, found.step_s)]
    line = {"shape": "hv", "color": BLUE, "width": 1}
    low, high = ([unit.of_bytes(count) for count in (*ends, ends[-1])] for ends in (found.low, found.high))
    figure.add_scatter(x=times, y=low, mode="lines", line=line, showlegend=False, name="lowest")
    fill = {"fill": "tonexty", "fillcolor": "rgba(0,114,178,0.35)"}
    figure.add_scatter(x=times, y=high, mode="lines", line=line, **fill, name="allocated, lowest to highest")
    figure.add_scatter(**_peak(found, unit, phase))
    if capacity is not None and capacity <= _FAR_ABOVE * max(found.high):
        _capacity_line(figure, unit, capacity, is_vertical=False)
        top = max(top, 1.05 * capacity)
    figure.update_xaxes(title_text="ms from the beginning of the step", range=[0, times[-1]])
    figure.update_yaxes(title_text=f"allocated, {unit.name}", range=[0, unit.of_bytes(top)], zeroline=False)
    return finished(figure, rows=8, label="Allocated memory of the worst rank over one step")


def _shaded(timeline: MemoryTimeline, top: float) -> dict[str, Any]:
    """A box for each backward; those that no eye could tell apart are one."""
    corners = [
        corner
        for begin, end in _joined(timeline.backward_s, gap_s=timeline.step_s / _TIMES)
        for corner in ((begin, 0.0), (begin, top), (end, top), (end, 0.0), (None, None))
    ]
    return {
        "x": [None if time_s is None else rounded(1e3 * time_s) for time_s, _ in corners],
        "y": [height for _, height in corners],
        "fill": "toself",
        "fillcolor": "rgba(138,143,152,0.22)",
        "mode": "none",
        "name": "backward",
        "hoverinfo": "skip",
    }


def _joined(spans: Sequence[tuple[float, float]], *, gap_s: float) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin - found[-1][1] <= gap_s:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def _peak(found: Envelope, unit: Unit, phase: str | None) -> dict[str, Any]:
    """The highest point, its text on the side where there is room."""
    at = found.high.index(max(found.high))
    text = f"peak {found.high[at] / unit.bytes:.4g} {unit.name}" + (f", {phase}" if phase else "")
    is_late = found.time_s[at] > 0.6 * found.step_s
    return {
        "x": [rounded(1e3 * found.time_s[at])],
        "y": [unit.of_bytes(found.high[at])],
        "mode": "markers+text",
        "text": [safe(text)],
        "textposition": "top left" if is_late else "top right",
        "marker": {"symbol": "diamond", "size": 10, "color": ORANGE},
        "name": "peak",
        "showlegend": False,
        "cliponaxis": False,
    }


# ---------------------------------------------------------------- predictions


def predicted_figure(rows: Sequence[tuple[str, int, int]], unit: Unit) -> Figure:
    """Of each (name, predicted, measured) both peaks on one line."""
    figure = Draft()
    hollow = {"color": BLUE, "symbol": "circle-open", "size": 11, "line": {"width": 2, "color": BLUE}}
    full = {"color": ORANGE, "symbol": "diamond", "size": 11}
    places = list(range(len(rows)))
    expected = [unit.of_bytes(predicted) for _, predicted, _ in rows]
    found = [unit.of_bytes(measured) for _, _, measured in rows]
    figure.add_scatter(**joining_lines(list(zip(expected, found, strict=True))))
    figure.add_scatter(x=expected, y=places, mode="markers", name="predicted", marker=hollow)
    figure.add_scatter(x=found, y=places, mode="markers", name="measured", marker=full)
    name_rows(figure, [name for name, _, _ in rows])
    figure.update_xaxes(title_text=f"peak allocated of the worst rank, {unit.name}", rangemode="tozero")
    return finished(figure, rows=len(rows), label="Predicted beside measured peak of memory")
