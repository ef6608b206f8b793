"""One metric of one cell, night after night: medians with intervals, levels, alarms, and where something changed."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from epbench.analysis.statistics import Interval
from epbench.history.series import Trend
from epbench.report.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Figure,
    finished,
    interval_points,
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft
from epbench.report.text import clean

__all__ = ["trend_figure"]

_LEAST_PX, _NIGHT_PX = 420, 9
_AXIS_PX, _CHARACTER_PX, _GAP_PX = 60, 7, 6
_MOST_TICKS = 10
_LOOKS = (("slower", "alarm: more", ORANGE, "triangle-up-open"), ("faster", "alarm: less", GREEN, "triangle-down-open"))


def trend_figure(trend: Trend, *, marks: Sequence[str], scale: float, axis: str) -> Figure:
    """Values times ``scale`` on ``axis``; ``marks`` say of each night what software changed, empty for nothing."""
    figure = Draft()
    _lines(figure, trend, marks)
    intervals = trend.series.intervals(trend.metric)
    figure.add_scatter(
        x=list(range(len(intervals))),
        y=[None if one is None else rounded(scale * one.value, 6) for one in intervals],
        error_y=_error(intervals, scale),
        text=[safe(f"{night.started[:16]} {clean(night.run, 60)}") for night in trend.series.nights],
        hovertemplate="%{text}<br>%{y}<extra></extra>",
        connectgaps=False,
        mode="lines+markers",
        name="night",
        marker={"color": BLUE, "size": 7},
        line={"color": GREY, "width": 1},
    )
    _levels(figure, trend, scale)
    _alarms(figure, trend, scale)
    _axes(figure, trend, axis)
    figure.update_layout(showlegend=True)
    drawn = finished(figure, rows=9, label=f"{axis} over the nights")
    return replace(drawn, min_width=_min_width(len(intervals)))


def _min_width(nights: int) -> int:
    return max(_LEAST_PX, _NIGHT_PX * nights)


def _lines(figure: Draft, trend: Trend, marks: Sequence[str]) -> None:
    """A dashed line where the level changed, a dotted one where the software did; texts in two rows above the plot."""
    for change in trend.changes:
        figure.add_vline(x=change.index - 0.5, line={"color": PURPLE, "dash": "dash", "width": 2})
    for at, mark in enumerate(marks):
        if mark:
            figure.add_vline(x=at - 0.5, line={"color": GREY, "dash": "dot", "width": 2})
    largest = sorted(trend.changes, key=lambda change: -abs(math.log(change.ratio)))
    newest = [(at, mark) for at, mark in reversed(list(enumerate(marks))) if mark]
    newest.sort(key=lambda found: found[1] == "code")  # which may change every night
    sizes = [(change.index, f"{100 * (change.ratio - 1):+.1f} %") for change in largest]
    for y, texts in ((1.0, sizes), (0.94, newest)):
        for at, text in _apart(texts, len(trend.values)):
            _text(figure, at - 0.5, text, y=y)


def _apart(texts: Iterable[tuple[int, str]], nights: int) -> Iterator[tuple[int, str]]:
    """Those that fit into one row beside the ones before them, where the chart is as narrow as it gets."""
    night_px = (_min_width(nights) - _AXIS_PX) / (nights + 1)
    placed: list[tuple[int, str]] = []
    for at, text in texts:
        widths = ((other, _CHARACTER_PX * (len(text) + len(found)) / 2 + _GAP_PX) for other, found in placed)
        if all(abs(at - other) * night_px >= width for other, width in widths):
            placed.append((at, text))
            yield at, text


def _text(figure: Draft, x: float, text: str, *, y: float) -> None:
    place = {"x": x, "y": y, "yref": "paper", "yanchor": "top", "xanchor": "center", "showarrow": False}
    figure.add_annotation(text=safe(text), **place)


def _levels(figure: Draft, trend: Trend, scale: float) -> None:
    """The median of the nights between two changes, as a line over them."""
    edges = [0, *(change.index for change in trend.changes), len(trend.values)]
    x: list[float | None] = []
    y: list[float | None] = []
    for start, end in pairwise(edges):
        known = [value for value in trend.values[start:end] if value is not None]
        if known:
            level = rounded(scale * median(known), 6)
            x += [start - 0.5, end - 0.5, None]
            y += [level, level, None]
    line = {"color": PURPLE, "width": 2}
    figure.add_scatter(x=x, y=y, mode="lines", name="level", line=line, hoverinfo="skip")


def _alarms(figure: Draft, trend: Trend, scale: float) -> None:
    for word, name, color, symbol in _LOOKS:
        places = [at for at, found in trend.alarms.items() if found == word]
        if places:
            values = [rounded(scale * (trend.values[at] or 0.0), 6) for at in places]
            marker = {"color": color, "symbol": symbol, "size": 15, "line": {"width": 2, "color": color}}
            figure.add_scatter(x=places, y=values, mode="markers", name=name, marker=marker, hoverinfo="skip")


def _axes(figure: Draft, trend: Trend, axis: str) -> None:
    count = len(trend.values)
    shown = list(range(0, count, max(1, -(-count // _MOST_TICKS))))
    dates = [safe(clean(trend.series.nights[at].started[:10])) for at in shown]
    figure.update_xaxes(tickmode="array", tickvals=shown, ticktext=dates, range=[-1, count])
    figure.update_xaxes(title_text="night")
    figure.update_yaxes(title_text=safe(axis), domain=[0.0, 0.86])


def _error(intervals: Sequence[Interval | None], scale: float) -> dict[str, object]:
    """Bars up and down from each night; 0 where there is none."""
    bars = interval_points(list(enumerate(intervals)), scale=scale)["error_x"]
    places = [at for at, one in enumerate(intervals) if one is not None]
    for side in ("array", "arrayminus"):
        found = dict(zip(places, bars[side], strict=True))
        bars[side] = [found.get(at, 0.0) for at in range(len(intervals))]
    return dict(bars)
