"""Eager beside compiled: the step of both on one line, and the ratio of their speeds."""

from collections.abc import Sequence

from epbench.records import CellResult
from epbench.report.comparison import speed_ratio, step_interval
from epbench.report.figures.base import BLUE, GREY, Figure, finished, interval_points, mode_marker, name_rows, safe

__all__ = ["speed_up_figure", "steps_figure"]


def steps_figure(rows: Sequence[tuple[str, Sequence[CellResult]]]) -> Figure:
    """Step time of every cell, eager and compiled of one layout on one line; bars are 95 % intervals."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for at, (_, cells) in enumerate(rows):
        if len(cells) > 1:
            steps = [1e3 * cell.step_s for cell in cells if cell.step_s is not None]
            figure.add_scatter(
                x=steps,
                y=[at] * len(steps),
                mode="lines",
                line={"color": GREY, "width": 3},
                hoverinfo="skip",
                showlegend=False,
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


def speed_up_figure(pairs: Sequence[tuple[str, CellResult, CellResult]]) -> Figure:
    """Compiled over eager in speed, with the 95 % interval of the ratio."""
    import plotly.graph_objects as go

    points = [(at, speed_ratio(compiled, eager)) for at, (_, eager, compiled) in enumerate(pairs)]
    figure = go.Figure()
    figure.add_scatter(
        **interval_points(points, scale=1.0),
        mode="markers",
        showlegend=False,
        marker={"color": BLUE, "symbol": "diamond", "size": 10},
    )
    figure.add_vline(x=1.0, line={"color": GREY, "dash": "dot", "width": 2})
    name_rows(figure, [name for name, _, _ in pairs])
    bounds = [bound for _, ratio in points if ratio for bound in (ratio.low or ratio.value, ratio.high or ratio.value)]
    figure.update_xaxes(title_text="speed of compiled over eager", range=_range_around(1.0, bounds))
    return finished(figure, rows=len(pairs), label="Speed-up of torch.compile for each layout")


def _range_around(point: float, values: Sequence[float]) -> list[float]:
    """An axis range that holds ``point`` and ``values`` with some air on both sides."""
    low, high = min([point, *values]), max([point, *values])
    air = 0.06 * (high - low) or 0.01
    return [low - air, high + air]
