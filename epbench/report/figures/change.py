"""What changed between runs: one row a cell, or one cell over the runs."""

from collections.abc import Sequence
from dataclasses import replace

from epbench.analysis.statistics import Interval
from epbench.report.comparison import is_measured, step_interval
from epbench.report.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Figure,
    finished,
    interval_points,
    name_rows,
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft
from epbench.report.runs import Change, Word

__all__ = ["change_figure", "history_figure"]

_RUN_PX = 70
_LOOKS: tuple[tuple[Word, str, str], ...] = (
    ("slower", ORANGE, "triangle-left"),
    ("faster", GREEN, "triangle-right"),
    ("no difference", GREY, "circle-open"),
    ("unknown", GREY, "x-thin"),
)


def change_figure(changes: Sequence[Change]) -> Figure:
    """Difference of tokens/s in per cent, a row for each change in the order given; bars are 95 % intervals."""
    figure = Draft()
    for word, color, symbol in _LOOKS:
        points = [(at, _percent(change.speed)) for at, change in enumerate(changes) if change.word == word]
        if points:
            marker = {"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}}
            figure.add_scatter(**interval_points(points, scale=1.0), name=word, mode="markers", marker=marker)
    figure.add_vline(x=0.0, line={"color": GREY, "dash": "dot", "width": 2})
    name_rows(figure, [change.name for change in changes])
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="tokens/s, last run against first, %")
    return finished(figure, rows=len(changes) + 1, label="Difference of speed of each cell between the runs")


def _percent(speed: Interval | None) -> Interval | None:
    """A ratio as a difference in per cent."""
    if speed is None:
        return None
    value, low, high = (None if x is None else rounded(100 * (x - 1)) for x in (speed.value, speed.low, speed.high))
    assert value is not None, "an interval has a value"
    return Interval(value, low, high)


def history_figure(change: Change, *, runs: Sequence[str], marks: Sequence[str]) -> Figure:
    """Step of one cell over ``runs``; ``marks`` say of each run in what it differs from the one before it."""
    steps = [step_interval(cell) if cell is not None and is_measured(cell) else None for cell in change.cells]
    points = [(at, step) for at, step in enumerate(steps) if step is not None]
    figure = Draft()
    figure.add_scatter(
        x=list(range(len(steps))),
        y=[None if step is None else rounded(1e3 * step.value) for step in steps],
        error_y=_error(points, count=len(steps)),
        connectgaps=False,
        mode="lines+markers",
        showlegend=False,
        marker={"color": BLUE, "size": 10},
        line={"color": GREY, "width": 2},
    )
    for at, mark in enumerate(marks):
        if mark:
            figure.add_vline(x=at - 0.5, line={"color": ORANGE, "dash": "dash", "width": 2})
            place = {"x": at - 0.5, "y": 1.0, "yref": "paper", "yanchor": "top", "showarrow": False}
            figure.add_annotation(text=safe(mark), **place)
    names = [safe(name) for name in runs]
    figure.update_xaxes(
        tickmode="array", tickvals=list(range(len(runs))), ticktext=names, range=[-0.7, len(runs) - 0.3]
    )
    figure.update_yaxes(title_text="step, ms", domain=[0.0, 0.92 if any(marks) else 1.0])
    figure.update_xaxes(title_text="run")
    drawn = finished(figure, rows=8, label="Step over the runs")
    return replace(drawn, min_width=80 + _RUN_PX * len(runs))


def _error(points: Sequence[tuple[int, Interval]], *, count: int) -> dict[str, object]:
    """Bars up and down from each of ``count`` places; 0 where there is no point."""
    bars = interval_points(points, scale=1e3)["error_x"]
    places = [at for at, _ in points]
    for side in ("array", "arrayminus"):
        found = dict(zip(places, map(rounded, bars[side]), strict=True))
        bars[side] = [found.get(at, 0.0) for at in range(count)]
    return dict(bars)
