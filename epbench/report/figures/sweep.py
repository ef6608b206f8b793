"""The sweep of collectives alone: time and bus bandwidth against size, and where this run's own calls lie on it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from epbench.comm_records import OPS, WAYS, CommFit, CommPoint, Op, Swept, Way
from epbench.report.comm import size_text
from epbench.report.figures.base import GREY, SERIES, Figure, finished, rounded, safe
from epbench.report.figures.draft import Draft

__all__ = ["BANDWIDTH", "LATENCY", "OwnSize", "Quantity", "sweep_figure"]

_PANEL_PX, _STRIP_ROW_PX = 190, 20
_FEW_DECADES = 4.5
_MOST_LINES = 12  # of sizes; more of them are a curtain
_LOOKS: Mapping[str, tuple[str, str]] = dict(zip(OPS, SERIES, strict=True))


@dataclass(frozen=True)
class OwnSize:
    """Bytes that this run's steps pass to an op on the groups of a sweep, and what they are for."""

    op: str
    kind: str  # purpose and op in one name
    bytes: int
    layouts: tuple[str, ...]


@dataclass(frozen=True)
class Quantity:
    """What of a sweep is drawn against the bytes, and how a time becomes it."""

    title: str
    label: str
    is_log: bool
    of: Callable[[CommPoint, float], float]  # a point and seconds that its bytes may take


def _microseconds(_: CommPoint, seconds: float) -> float:
    return 1e6 * seconds


def _bus_gb_per_s(point: CommPoint, seconds: float) -> float:
    return 1e-9 * point.bus_bytes / seconds


LATENCY = Quantity("µs", "Time of a collective alone by size", True, _microseconds)
BANDWIDTH = Quantity("bus GB/s", "Bus bandwidth of a collective alone by size", False, _bus_gb_per_s)


def sweep_figure(swept: Swept, own: Sequence[OwnSize], quantity: Quantity) -> Figure:
    """A panel for each way of timing, and below them the sizes of this run's own collectives."""
    from plotly.subplots import make_subplots

    ways = [way for way in WAYS if any(point.way == way for point in swept.points)]
    kinds = list(dict.fromkeys(one.kind for one in own))
    heights = [_PANEL_PX] * len(ways) + [_STRIP_ROW_PX * (len(kinds) + 1)] * bool(kinds)
    panels = make_subplots(rows=len(heights), cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.03)
    figure = Draft(panels.to_dict()["layout"])
    for row, way in enumerate(ways, start=1):
        for op in OPS:
            for trace in _curve(swept, op, way, quantity):
                figure.add_trace(trace | {"showlegend": row == 1 and "markers" in trace["mode"]}, panel=row)
        values = [quantity.of(point, point.seconds.median) for point in swept.points if point.way == way]
        _panel_axis(figure, row, f"{way}, {quantity.title}", values if quantity.is_log else None)
    figure.add_trace(_fit_legend(), panel=1)
    ends = _ends([point.bytes for point in swept.points] + [one.bytes for one in own])
    if kinds:
        _own_sizes(figure, own, middle=10 ** fmean(ends), row=len(heights))
    _size_axis(figure, ends, row=len(heights))
    return finished(figure, rows=sum(heights), row_px=1, label=quantity.label)


def _curve(swept: Swept, op: Op, way: Way, quantity: Quantity) -> list[dict[str, Any]]:
    """The band of the quartiles, the fit if there is one, and the medians."""
    points = sorted((p for p in swept.points if (p.op, p.way) == (op, way)), key=lambda point: point.bytes)
    if not points:
        return []
    color, symbol = _LOOKS[op]
    shared = {"type": "scatter", "legendgroup": op, "name": op}
    sizes = [point.bytes for point in points]
    low, high = ([quantity.of(p, getattr(p.seconds, end)) for p in points] for end in ("low", "high"))
    band = {"fill": "toself", "fillcolor": f"rgba{_rgb(color, 0.2)}", "mode": "none", "hoverinfo": "skip"}
    medians = [quantity.of(point, point.seconds.median) for point in points]
    marker, line = {"color": color, "symbol": symbol, "size": 6}, {"color": color, "width": 1.5}
    return [
        shared | band | {"x": [*sizes, *reversed(sizes)], "y": _numbers([*low, *reversed(high)])},
        *(_fitted(points, fit, quantity) for fit in swept.fits if (fit.op, fit.way) == (op, way)),
        shared | {"x": sizes, "y": _numbers(medians), "mode": "lines+markers", "marker": marker, "line": line},
    ]


def _fitted(points: Sequence[CommPoint], fit: CommFit, quantity: Quantity) -> dict[str, Any]:
    slope = 1 / fit.bandwidth_bytes_per_s if fit.bandwidth_bytes_per_s else 0.0
    times = [fit.latency_s + slope * point.bytes for point in points]
    known = [(point.bytes, quantity.of(point, time_s)) for point, time_s in zip(points, times, strict=True) if time_s]
    return _fit_legend() | {
        "x": [size for size, _ in known],
        "y": _numbers([value for _, value in known]),
        "legendgroup": fit.op,
    }


def _fit_legend() -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "mode": "lines",
        "line": {"color": GREY, "dash": "dot", "width": 1.5},
        "name": "fit a + bytes / bw",
        "hoverinfo": "skip",
    }


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [rounded(value, 3) for value in values]


def _rgb(color: str, opacity: float) -> tuple[int | float, ...]:
    return (*(int(color[place : place + 2], 16) for place in (1, 3, 5)), opacity)


def _panel_axis(figure: Draft, row: int, title: str, logarithmic: Sequence[float] | None) -> None:
    """From zero, or logarithmic over some values: with ticks at 2 and 5 where powers of ten alone would be too few."""
    if logarithmic is None:
        figure.update_yaxes(title_text=title, rangemode="tozero", panel=row)
    else:
        dtick = 1 if max(logarithmic) > 100 * min(logarithmic) else "D2"
        figure.update_yaxes(title_text=title, type="log", dtick=dtick, panel=row)


def _own_sizes(figure: Draft, own: Sequence[OwnSize], *, middle: float, row: int) -> None:
    """A row of points for each kind of call, with its name on the side of the middle, and lines up to the panels."""
    sizes, kinds = {one.bytes for one in own}, list(dict.fromkeys(one.kind for one in own))
    for place, kind in enumerate(kinds):
        alike = sorted((one for one in own if one.kind == kind), key=lambda one: one.bytes)
        figure.add_trace(_own_points(alike, place, name_right=alike[0].bytes < middle), panel=row)
    figure.update_yaxes(range=[len(kinds) - 0.4, -0.6], showgrid=False, zeroline=False, showticklabels=False, panel=row)
    figure.update_yaxes(title_text="this run", panel=row)
    if len(sizes) <= _MOST_LINES:
        line = {"color": GREY, "dash": "dash", "width": 1}
        for size in sizes:
            figure.add_shape(type="line", xref="x", yref="paper", x0=size, x1=size, y0=0, y1=1, line=line, opacity=0.6)


def _own_points(own: Sequence[OwnSize], place: int, *, name_right: bool) -> dict[str, Any]:
    """Points of one kind by size; its name stands where there is room, after the largest or before the smallest."""
    color, symbol = _LOOKS.get(own[0].op, (GREY, "circle-open"))
    named = own[-1] if name_right else own[0]
    return {
        "type": "scatter",
        "x": [one.bytes for one in own],
        "y": [place] * len(own),
        "mode": "markers+text",
        "marker": {"color": color, "symbol": symbol, "size": 9},
        "text": [safe(one.kind) if one is named else "" for one in own],
        "textposition": "middle right" if name_right else "middle left",
        "hovertext": [safe(f"{one.kind}: {size_text(one.bytes)}, {', '.join(one.layouts)}") for one in own],
        "hoverinfo": "text",
        "cliponaxis": False,
        "showlegend": False,
    }


def _ends(sizes: Sequence[int]) -> list[float]:
    """Of a logarithmic axis, with some air."""
    return [math.log10(min(sizes)) - 0.1, math.log10(max(sizes)) + 0.1]


def _size_axis(figure: Draft, ends: list[float], *, row: int) -> None:
    """Of every panel down to the last: powers of 32 in words, of 8 where there would be few of them."""
    base = 32 if ends[1] - ends[0] > _FEW_DECADES else 8
    ticks = [tick for power in range(1, 14) if ends[0] <= math.log10(tick := base**power) <= ends[1]]
    texts = [size_text(tick) for tick in ticks]
    for panel in range(1, row + 1):
        figure.update_xaxes(type="log", tickmode="array", tickvals=ticks, ticktext=texts, range=ends, panel=panel)
    figure.update_xaxes(title_text="buffer of the rank that has most", panel=row)
