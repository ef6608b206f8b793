"""Where a step goes: its exclusive parts as stacked bars, its kernels by kind, and device work beside wall time."""

from collections.abc import Mapping, Sequence
from typing import Any

from epbench.analysis.kinds import KINDS
from epbench.analysis.statistics import Interval
from epbench.records import Breakdown
from epbench.report.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    Figure,
    finished,
    interval_points,
    name_rows,
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft
from epbench.report.step_parts import PARTS

__all__ = ["device_work_figure", "kernels_figure", "parts_figure"]

# Colour and hatching of each part, in their order: what is computed is filled, what is waited for is open.
_PART_LOOKS = ((BLUE, ""), (SKY, "\\"), (ORANGE, "/"), (GREY, "."), (GREY, "-"))
_KIND_LOOKS = tuple(
    (color, shape) for shape in ("", "/", "x", ".") for color in (BLUE, ORANGE, GREEN, SKY, YELLOW, PURPLE)
)
_MANY_ROWS, _THIN_PX = 16, 18
_TIMED = {"color": YELLOW, "symbol": "diamond", "size": 10, "line": {"color": "#000000", "width": 1}}


def parts_figure(
    rows: Sequence[tuple[str, Breakdown]], *, label: str, timed: Sequence[Interval | None] | None = None
) -> Figure:
    """One bar a row of its exclusive parts in ms; ``timed``, of the same rows, are the steps without the tracer."""
    figure = Draft()
    for (name, part_of), (color, shape) in zip(PARTS.items(), _PART_LOOKS, strict=True):
        parts = [part_of(parts) for _, parts in rows]
        if any(parts):
            figure.add_bar(**_lengths([1e3 * (part or 0.0) for part in parts]), name=name, marker=_look(color, shape))
    if timed is not None and any(step is not None for step in timed):
        points = interval_points(list(enumerate(timed)), scale=1e3)
        points["error_x"]["color"] = YELLOW
        figure.add_scatter(**points, name="timed step", mode="markers", marker=_TIMED)
    name_rows(figure, [name for name, _ in rows])
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(title_text="ms of the traced step", rangemode="tozero")
    return _finished(figure, len(rows), label)


def kernels_figure(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Figure:
    """One bar a row of its kernel time by kind in ms, the kind that takes most in all rows first."""
    totals: dict[str, float] = {}
    for _, kernels_s in rows:
        for kind, seconds in kernels_s.items():
            totals[kind] = totals.get(kind, 0.0) + seconds
    looks = dict(zip(dict.fromkeys([*KINDS, *sorted(totals)]), _KIND_LOOKS * (1 + len(totals)), strict=False))
    figure = Draft()
    for kind in sorted(totals, key=lambda name: -totals[name]):
        lengths = _lengths([1e3 * kernels_s.get(kind, 0.0) for _, kernels_s in rows])
        figure.add_bar(**lengths, name=safe(kind.replace("_", " ")), marker=_look(*looks[kind]))
    name_rows(figure, [name for name, _ in rows])
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(title_text="kernel time of the critical rank, ms/step", rangemode="tozero")
    return _finished(figure, len(rows), "Kernel time by kind")


def device_work_figure(rows: Sequence[tuple[str, Interval | None, Interval | None]]) -> Figure:
    """Device work and step time of each row with their intervals, joined by a line."""
    figure = Draft()
    series = (
        ("device work", GREEN, "square", [work for _, work, _ in rows]),
        ("step", BLUE, "circle", [step for _, _, step in rows]),
    )
    for name, color, symbol, found in series:
        marker = {"color": color, "symbol": symbol, "size": 10}
        figure.add_scatter(
            **interval_points(list(enumerate(found)), scale=1e3), name=name, mode="markers", marker=marker
        )
    for at, (_, work, step) in enumerate(rows):
        if work is not None and step is not None:
            ends = [rounded(1e3 * work.value, 6), rounded(1e3 * step.value, 6)]
            figure.add_shape(
                type="line", x0=ends[0], x1=ends[1], y0=at, y1=at, line={"color": GREY, "width": 3}, layer="below"
            )
    name_rows(figure, [name for name, _, _ in rows])
    figure.update_xaxes(title_text="ms/step")
    return _finished(figure, len(rows), "Device work beside step time")


def _lengths(lengths: Sequence[float]) -> dict[str, Any]:
    """Bars in rows 0, 1, 2, ...; one of no length is left out."""
    return {"x": [rounded(length) or None for length in lengths], "y": list(range(len(lengths))), "orientation": "h"}


def _look(color: str, shape: str) -> dict[str, Any]:
    """Filled with a colour, or hatched with it."""
    if not shape:
        return {"color": color}
    pattern = {"shape": shape, "fgcolor": color, "bgcolor": "rgba(0,0,0,0)", "size": 6, "solidity": 0.4}
    return {"color": color, "pattern": pattern, "line": {"color": color, "width": 1}}


def _finished(figure: Draft, rows: int, label: str) -> Figure:
    thin = {"row_px": _THIN_PX} if rows > _MANY_ROWS else {}
    return finished(figure, rows=rows, label=label, **thin)
