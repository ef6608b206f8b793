"""Eager beside compiled: the step of both on one line, the ratio of their speeds, and when compiling has paid."""

from collections.abc import Sequence
from typing import Any

from epbench.analysis.statistics import Interval
from epbench.records import CellResult
from epbench.report.comparison import step_interval
from epbench.report.compiling import BreakEven, Pair
from epbench.report.figures.base import (
    BLUE,
    GREY,
    ORANGE,
    Figure,
    finished,
    interval_points,
    mode_marker,
    name_rows,
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft

__all__ = ["break_even_figure", "speed_up_figure", "steps_figure"]

_FAR_APART = 30


def steps_figure(rows: Sequence[tuple[str, Sequence[CellResult]]]) -> Figure:
    """Step time of every cell, eager and compiled of one layout on one line; bars are 95 % intervals."""
    figure = Draft()
    figure.add_scatter(
        **_lines(rows), mode="lines", line={"color": GREY, "width": 3}, hoverinfo="skip", showlegend=False
    )
    for mode in sorted({cell.mode for _, cells in rows for cell in cells}, reverse=True):
        points = [
            (at, step_interval(cell)) for at, (_, cells) in enumerate(rows) for cell in cells if cell.mode == mode
        ]
        figure.add_scatter(
            **interval_points(points, scale=1e3), name=safe(mode), mode="markers", marker=mode_marker(mode)
        )
    name_rows(figure, [name for name, _ in rows])
    figure.update_xaxes(title_text="step, ms", rangemode="tozero")
    return finished(figure, rows=len(rows), label="Step time of each layout, eager and compiled")


def _lines(rows: Sequence[tuple[str, Sequence[CellResult]]]) -> dict[str, list[float | None]]:
    """A line in each row from its fastest to its slowest cell, a gap after each."""
    x: list[float | None] = []
    y: list[float | None] = []
    for at, (_, cells) in enumerate(rows):
        steps = [1e3 * cell.step_s for cell in cells if cell.step_s is not None]
        x += [rounded(min(steps), 6), rounded(max(steps), 6), None]
        y += [at, at, None]
    return {"x": x, "y": y}


def speed_up_figure(pairs: Sequence[Pair]) -> Figure:
    """Compiled over eager in speed, with the 95 % interval of the ratio."""
    figure = Draft()
    figure.add_scatter(
        **interval_points([(at, pair.speed) for at, pair in enumerate(pairs)], scale=1.0),
        mode="markers",
        showlegend=False,
        marker={"color": BLUE, "symbol": "diamond", "size": 10},
    )
    figure.add_vline(x=1.0, line={"color": GREY, "dash": "dot", "width": 2})
    name_rows(figure, [pair.name for pair in pairs])
    bounds = [bound for pair in pairs for bound in _bounds(pair.speed)]
    figure.update_xaxes(title_text="speed of compiled over eager", range=_range_around(1.0, bounds))
    return finished(figure, rows=len(pairs), label="Speed-up of torch.compile for each layout")


def break_even_figure(rows: Sequence[tuple[str, BreakEven, BreakEven]]) -> Figure:
    """Steps until compiling has paid, from the compile time of the first launch and of the median one."""
    figure = Draft()
    series = (
        ("first launch", ORANGE, "diamond", -0.14, [first for _, first, _ in rows]),
        ("median launch", BLUE, "circle", 0.14, [median for _, _, median in rows]),
    )
    for name, color, symbol, shift, found in series:
        points = interval_points([(at, one.steps) for at, one in enumerate(found)], scale=1.0)
        if points["x"]:
            points["y"] = [at + shift for at in points["y"]]
            figure.add_scatter(
                **points, name=name, mode="markers", marker={"color": color, "symbol": symbol, "size": 10}
            )
    name_rows(figure, [name for name, _, _ in rows])
    figure.update_xaxes(**_steps_axis([one.steps for _, *both in rows for one in both if one.steps is not None]))
    figure.update_layout(showlegend=True)
    return finished(figure, rows=len(rows), label="Steps after which compiling has paid for itself")


def _steps_axis(found: Sequence[Interval]) -> dict[str, Any]:
    """From zero, unless the counts are too far apart to be seen so."""
    bounds = [bound for one in found for bound in _bounds(one)]
    title = "steps until compiling has paid for itself"
    if max(bounds) > _FAR_APART * min(bounds):
        return {"title_text": f"{title}, log scale", "type": "log", "dtick": 1}
    return {"title_text": title, "rangemode": "tozero", "tickformat": ","}


def _bounds(found: Interval) -> tuple[float, float]:
    return found.low or found.value, found.high or found.value


def _range_around(point: float, values: Sequence[float]) -> list[float]:
    """An axis range that holds ``point`` and ``values`` with some air on both sides."""
    low, high = min([point, *values]), max([point, *values])
    air = 0.06 * (high - low) or 0.01
    return [low - air, high + air]
