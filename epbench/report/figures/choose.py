"""Throughput over peak memory: what a layout costs, what it gives, and what a device has room for.

``layout.meta`` holds what ``script/frontier.js`` needs to move the limit; the answers in it are sentences made here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from epbench.records import CellResult
from epbench.report.comparison import Compared
from epbench.report.figures.base import GREEN, GREY, MODES, ORANGE, Figure, finished, rounded, safe
from epbench.report.figures.draft import Draft
from epbench.report.frontier import Choice, Point, Room, Standing, answer_for
from epbench.report.placement import Axes, Box, label_places, text_box
from epbench.report.quantities import peak_word
from epbench.report.text import gib

__all__ = ["frontier_figure"]

_GIB = 2**30
_STANDINGS: dict[Standing, tuple[str, str]] = {
    "on": ("", "on the frontier"),
    "may be": ("-cross-open", "may be on it"),
    "dominated": ("-open", "dominated"),
}
_SHAPES = {"compiled": "circle", "eager": "square"}
_MIN_WIDTH = 480  # below this, names of points would cover each other
_CAPACITY_BOX: Box = (0.66, 0.93, 1.0, 1.0)  # what is said of the device's memory
_NAMED_OOMS = 6
_FAR = 1.5  # a capacity further than this many times the spread of the peaks is told, not drawn


def frontier_figure(compared: Compared, choice: Choice, ooms: Sequence[CellResult], room: Room | None) -> Figure:
    """Every point with its interval, the line of the best at each limit, and cells out of memory at the right edge."""
    axes = _axes(choice.points, bool(ooms), room)
    marks = _out_of_memory(compared, ooms, axes)
    figure = Draft()
    figure.add_scatter(**_line(choice), mode="lines", line={"color": GREY, "shape": "hv", "width": 2})
    figure.add_scatter(**_points(compared, choice, axes, marks["boxes"]))
    if ooms:
        figure.add_scatter(**marks["trace"])
    for trace in _legend(choice, ooms):
        figure.add_scatter(**trace)
    _add_limit(figure, room, axes)
    figure.update_xaxes(title_text=f"peak GiB {peak_word(compared)}, worst rank", range=_ends(axes.x))
    figure.update_yaxes(title_text=f"tokens/s/{compared.rank_word}", tickformat=",", range=_ends(axes.y))
    figure.update_layout(**_meta(choice, room, axes), legend_itemclick=False, legend_itemdoubleclick=False)
    made = finished(figure, rows=10, label="Throughput over peak memory of each cell")
    return replace(made, min_width=_MIN_WIDTH)


# ---------------------------------------------------------------- axes


def _axes(points: Sequence[Point], has_edge: bool, room: Room | None) -> Axes:
    """Around all intervals, and as far as the device's capacity if that is not far away."""
    peaks = [point.peak_bytes / _GIB for point in points]
    low, high = min(peaks), max(peaks)
    spread = (high - low) or 0.1 * high
    capacity = room.capacity_bytes / _GIB if room else high
    if capacity - high <= _FAR * spread:
        high = max(high, capacity)
    bounds = [bound for point in points for bound in _bounds(point)]
    air_x, air_y = 0.07 * max(high - low, spread), 0.12 * (max(bounds) - min(bounds) or 0.1 * max(bounds))
    edge = 2 * air_x if has_edge else air_x
    return Axes((low - air_x, high + edge), (min(bounds) - air_y, max(bounds) + air_y))


def _bounds(point: Point) -> tuple[float, float]:
    speed = point.tokens_per_s
    return speed.low or speed.value, speed.high or speed.value


def _ends(ends: tuple[float, float]) -> list[float]:
    return [_cut(ends[0]), _cut(ends[1])]


# ---------------------------------------------------------------- points


def _line(choice: Choice) -> dict[str, Any]:
    return {
        "x": [_x(point) for point in choice.line],
        "y": [_y(point) for point in choice.line],
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _points(compared: Compared, choice: Choice, axes: Axes, taken: Sequence[Box]) -> dict[str, Any]:
    """All measured cells as one trace, so that the script can fade those that do not fit."""
    points = choice.points
    at = {point.cell.cell: (_x(point), _y(point)) for point in points}
    rest = sorted(points, key=lambda point: point.standing == "dominated")
    first = [*reversed(choice.line), *rest]  # the fastest chooses its place first
    names = {point.cell.cell: compared.naming.layout(point.cell) for point in first}  # the marker tells the mode
    places = label_places(
        at, names, axes=axes, bars=_bar_boxes(points, axes), taken=[*taken, *_line_boxes(choice, axes), _CAPACITY_BOX]
    )
    return {
        "x": [x for x, _ in at.values()],
        "y": [y for _, y in at.values()],
        "error_y": _error_bars(points),
        "mode": "markers+text",
        "marker": {
            "color": [_color(point.cell) for point in points],
            "symbol": [_symbol(point.cell, point.standing) for point in points],
            "size": 11,
            "line": {"width": [0 if point.standing == "on" else 2 for point in points]},
        },
        "text": [safe(names[point.cell.cell]) if point.cell.cell in places else "" for point in points],
        "textposition": [places.get(point.cell.cell, "top center") for point in points],
        "hovertext": [_hover(compared, point) for point in points],
        "hoverinfo": "text",
        "showlegend": False,
        "cliponaxis": False,
    }


def _x(point: Point) -> float:
    return _cut(point.peak_bytes / _GIB)


def _y(point: Point) -> float:
    return _cut(point.tokens_per_s.value)


def _cut(value: float) -> float:
    """Six significant digits: a peak of a megabyte is told from the next, and the limit cuts where the answers do."""
    return float(f"{value:.6g}")


def _error_bars(points: Sequence[Point]) -> dict[str, Any]:
    above = [rounded(_bounds(point)[1] - point.tokens_per_s.value) for point in points]
    below = [rounded(point.tokens_per_s.value - _bounds(point)[0]) for point in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.5,
        "width": 4,
        "color": GREY,
    }


def _color(cell: CellResult) -> str:
    return MODES.get(cell.mode, (GREEN, ""))[0]


def _symbol(cell: CellResult, standing: Standing) -> str:
    return _SHAPES.get(cell.mode, "diamond") + _STANDINGS[standing][0]


def _hover(compared: Compared, point: Point) -> str:
    low, high = _bounds(point)
    bounds = f" [{low:,.0f}, {high:,.0f}]" if point.tokens_per_s.known else ""
    return "<br>".join(
        (
            safe(point.name),
            f"{point.tokens_per_s.value:,.0f}{bounds} tokens/s/{compared.rank_word}",
            f"peak {gib(point.peak_bytes)} GiB",
            _STANDINGS[point.standing][1] + (f" by {safe(point.rival[0])}" if point.rival else ""),
        )
    )


# ---------------------------------------------------------------- what names must not cover


def _line_boxes(choice: Choice, axes: Axes) -> Iterator[Box]:
    """The level and the upright piece of every step of the line."""
    at = [axes.share(_x(point), _y(point)) for point in choice.line]
    for (x0, y0), (x1, y1) in pairwise(at):
        yield x0, y0 - 0.005, x1, y0 + 0.005
        yield x1 - 0.004, y0, x1 + 0.004, y1


def _bar_boxes(points: Sequence[Point], axes: Axes) -> dict[str, Box]:
    found = {}
    for point in points:
        (x, low), (_, high) = (axes.share(_x(point), bound) for bound in _bounds(point))
        found[point.cell.cell] = (x - 0.012, low - 0.01, x + 0.012, high + 0.01)
    return found


# ---------------------------------------------------------------- memory of the device


def _out_of_memory(compared: Compared, ooms: Sequence[CellResult], axes: Axes) -> dict[str, Any]:
    """Marks at the right edge, one over the other: how fast these cells would be is not known."""
    shares = [0.06 + 0.85 * index / max(len(ooms), 10) for index in range(len(ooms))]
    x = axes.x[1] - 0.03 * (axes.x[1] - axes.x[0])
    names = [compared.naming.arm(cell) for cell in ooms]
    layouts = [compared.naming.layout(cell) for cell in ooms]
    shown = layouts if len(ooms) <= _NAMED_OOMS else [""] * len(ooms)
    places = [axes.share(x, axes.y_at(share)) for share in shares]
    trace = {
        "x": [_cut(x)] * len(ooms),
        "y": [_cut(axes.y_at(share)) for share in shares],
        "mode": "markers+text",
        "marker": {"symbol": "x", "size": 10, "color": [_color(cell) for cell in ooms]},
        "text": [f"{safe(name)}\N{NO-BREAK SPACE}" for name in shown],
        "textposition": "middle left",
        "hovertext": [f"{safe(name)}<br>{_asked_for(cell)}" for name, cell in zip(names, ooms, strict=True)],
        "hoverinfo": "text",
        "showlegend": False,
        "cliponaxis": False,
    }
    marks = [(left - 0.015, low - 0.025, left + 0.015, low + 0.025) for left, low in places]
    texts = [text_box(at, name, "middle left") for at, name in zip(places, shown, strict=True) if name]
    return {"trace": trace, "boxes": [*marks, *texts]}


def _asked_for(cell: CellResult) -> str:
    asked = cell.requested_bytes
    return "out of memory" + ("" if asked is None else f", asked for {gib(asked)} GiB more")


def _legend(choice: Choice, ooms: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    """What colours, shapes and fillings mean; these traces have no points."""
    nothing: dict[str, Any] = {"x": [None], "y": [None], "hoverinfo": "skip"}
    for mode in sorted({point.cell.mode for point in choice.points} | {cell.mode for cell in ooms}, reverse=True):
        color, shape = MODES.get(mode, (GREEN, ""))[0], _SHAPES.get(mode, "diamond")
        yield nothing | {"mode": "markers", "name": safe(mode), "marker": {"color": color, "symbol": shape, "size": 11}}
    for standing in [known for known in _STANDINGS if any(point.standing == known for point in choice.points)]:
        suffix, name = _STANDINGS[standing]
        marker = {"color": GREY, "symbol": f"circle{suffix}", "size": 11, "line": {"width": 2 if suffix else 0}}
        yield nothing | {"mode": "markers", "name": name, "marker": marker}
    if ooms:
        marker = {"color": GREY, "symbol": "x", "size": 10}
        yield nothing | {"mode": "markers", "name": "out of memory", "marker": marker}


def _add_limit(figure: Draft, room: Room | None, axes: Axes) -> None:
    """The shaded memory that stays free, up to the capacity; both lie at the edge if they are further away."""
    if room is None:
        return
    edge = axes.x[1]
    capacity, limit = (min(edge, size / _GIB) for size in (room.capacity_bytes, room.capacity_bytes - room.free_bytes))
    upright: dict[str, Any] = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    figure.add_shape(
        type="rect", x0=_cut(limit), x1=_cut(capacity), fillcolor=ORANGE, opacity=0.12, line={"width": 0}, **upright
    )
    figure.add_shape(
        type="line",
        x0=_cut(capacity),
        x1=_cut(capacity),
        line={"color": ORANGE, "dash": "dash", "width": 2},
        visible=capacity < edge,
        **upright,
    )
    where = "" if capacity < edge else " \N{RIGHTWARDS ARROW}"
    figure.add_annotation(
        text=f"device {gib(room.capacity_bytes)} GiB{where}",
        x=_cut(capacity),
        y=1,
        yref="paper",
        xanchor="right",
        yanchor="top",
        showarrow=False,
    )


def _meta(choice: Choice, room: Room | None, axes: Axes) -> dict[str, Any]:
    if room is None:
        return {}
    meta = {
        "kind": "frontier",
        "capacity_gib": room.capacity_bytes / _GIB,
        "capacity": gib(room.capacity_bytes),
        "free_gib": room.free_bytes / _GIB,
        "step_gib": room.step_bytes / _GIB,
        "reach_gib": _ends(axes.x),
        "answer": answer_for(choice, room, room.free_bytes),  # the one in the note below the chart
        "answers": [[_cut(answer.from_bytes / _GIB), answer.text] for answer in choice.answers],
    }
    return {"meta": meta}
