"""The charts of a report as plotly JSON, drawn by ``page.js`` when they come into view.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every pair of series also differs in
shape or hatching. Titles and captions live in the page. Text and grid colours follow the page's theme and are
set when a chart is drawn; what has a colour here can be read on white and on black. Rows sit at integer
positions with their names as tick texts, so that two equal names never merge into one row.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epbench.analysis.statistics import Interval
from epbench.records import CellResult, CollectiveRow
from epbench.report.comparison import Compared, pareto, speed_ratio, step_interval
from epbench.report.placement import label_places
from epbench.report.tables import peak_bytes, peak_word
from epbench.report.text import clean

__all__ = [
    "Figure",
    "all_to_all_figure",
    "memory_figure",
    "sizes_figure",
    "speed_up_figure",
    "steps_figure",
]

BLUE, ORANGE, GREEN, SKY, YELLOW, PURPLE = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#E69F00", "#CC79A7"
GREY = "#8a8f98"
_MODES = {"eager": (ORANGE, "circle-open"), "compiled": (BLUE, "circle")}
_PURPOSES = {
    "dispatch": BLUE,
    "combine": ORANGE,
    "count_exchange": PURPLE,
    "ulysses_in": GREEN,
    "ulysses_out": YELLOW,
}
_SERIES = (
    (BLUE, "circle"),
    (ORANGE, "diamond"),
    (GREEN, "square"),
    (PURPLE, "cross"),
    (YELLOW, "triangle-up"),
)
_ROW_PX, _CHARACTER_PX, _PLOT_PX = 30, 7, 180


@dataclass(frozen=True)
class Figure:
    """One chart: plotly's JSON, its size in pixels, and what a screen reader says instead."""

    json: str
    height: int
    min_width: int  # narrower screens scroll the chart sideways
    label: str


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
            **_interval_points(points, scale=1e3), name=_safe(mode), mode="markers", marker=_mode_marker(mode)
        )
    _name_rows(figure, [name for name, _ in rows])
    figure.update_xaxes(title_text="step, ms", rangemode="tozero")
    return _finished(figure, rows=len(rows), label="Step time of each layout, eager and compiled")


def speed_up_figure(pairs: Sequence[tuple[str, CellResult, CellResult]]) -> Figure:
    """Compiled over eager in speed, with the 95 % interval of the ratio."""
    import plotly.graph_objects as go

    points = [(at, speed_ratio(compiled, eager)) for at, (_, eager, compiled) in enumerate(pairs)]
    figure = go.Figure()
    figure.add_scatter(
        **_interval_points(points, scale=1.0),
        mode="markers",
        showlegend=False,
        marker={"color": BLUE, "symbol": "diamond", "size": 10},
    )
    figure.add_vline(x=1.0, line={"color": GREY, "dash": "dot", "width": 2})
    _name_rows(figure, [name for name, _, _ in pairs])
    bounds = [bound for _, ratio in points if ratio for bound in (ratio.low or ratio.value, ratio.high or ratio.value)]
    figure.update_xaxes(title_text="speed of compiled over eager", range=_range_around(1.0, bounds))
    return _finished(figure, rows=len(pairs), label="Speed-up of torch.compile for each layout")


def all_to_all_figure(compared: Compared, cells: Sequence[CellResult]) -> Figure:
    """Seconds a step in all-to-all by cell and phase: transfer solid, waiting hatched, stacked by purpose."""
    import plotly.graph_objects as go

    rows = [(cell, phase) for cell in cells for phase in dict.fromkeys(row.phase for row in cell.all_to_all)]
    purposes = dict.fromkeys(row.purpose for cell in cells for row in cell.all_to_all)
    figure = go.Figure()
    for index, purpose in enumerate(sorted(purposes, key=_purpose_order)):
        color = _PURPOSES.get(purpose, _SERIES[index % len(_SERIES)][0])
        calls = [_calls(cell, purpose, phase) for cell, phase in rows]
        transfer_ms = [1e3 * sum(row.transfer_s for row in found) for found in calls]
        wait_ms = [1e3 * sum(row.wait_s for row in found) for found in calls]
        figure.add_bar(**_bars(transfer_ms), name=_safe(purpose), marker={"color": color})
        figure.add_bar(**_bars(wait_ms), name=_safe(f"{purpose}, waiting"), showlegend=False, marker=_hatched(color))
    figure.add_bar(x=[None], y=[0], orientation="h", name="waiting", marker=_hatched(GREY))
    _name_rows(figure, [_phase_name(compared, rows, at) for at in range(len(rows))])
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(title_text="all-to-all, ms/step")
    label = "Time in all-to-all by purpose, transfer and waiting"
    return _finished(figure, rows=len(rows), row_px=22, label=label)


def _calls(cell: CellResult, purpose: str, phase: str) -> list[CollectiveRow]:
    return [row for row in cell.all_to_all if (row.purpose, row.phase) == (purpose, phase)]


def _phase_name(compared: Compared, rows: Sequence[tuple[CellResult, str]], at: int) -> str:
    """The phase, after the cell's name where the cell's rows begin."""
    cell, phase = rows[at]
    is_first = at == 0 or rows[at - 1][0] is not cell
    return f"{compared.naming.full(cell)}, {phase}" if is_first else phase


def memory_figure(compared: Compared, cells: Sequence[CellResult]) -> Figure:
    """Throughput over peak memory; the line joins the cells that no other beats in both."""
    import plotly.graph_objects as go

    points = {cell.cell: _memory_point(cell, compared) for cell in cells}
    frontier = pareto((name, *point) for name, point in points.items())
    figure = go.Figure()
    figure.add_scatter(
        x=[points[name][0] for name in frontier],
        y=[points[name][1] for name in frontier],
        mode="lines",
        line={"color": GREY, "shape": "hv", "width": 2},
        name="Pareto frontier",
        hoverinfo="skip",
    )
    names = {cell.cell: compared.naming.arm(cell) for cell in cells}
    labels = label_places(points, {name: names[name] for name in dict.fromkeys([*frontier, *names])})
    for mode in sorted({cell.mode for cell in cells}, reverse=True):
        own = [cell for cell in cells if cell.mode == mode]
        figure.add_scatter(
            **_labelled_points(compared, own, points, labels),
            name=_safe(mode),
            mode="markers+text",
            marker=_mode_marker(mode),
            cliponaxis=False,
        )
    figure.update_xaxes(title_text=f"peak GiB {peak_word(compared)}, worst rank")
    figure.update_yaxes(title_text=f"tokens/s/{compared.rank_word}")
    return _finished(figure, rows=10, label="Throughput over peak memory of each cell")


def sizes_figure(compared: Compared, rows: Sequence[tuple[str, Sequence[CellResult]]]) -> Figure:
    """Throughput of each model size, one line of points for each layout and mode; bars are 95 % intervals."""
    import plotly.graph_objects as go

    naming = compared.naming
    figure = go.Figure()
    for index, size in enumerate(dict.fromkeys(naming.size(cell) for _, cells in rows for cell in cells)):
        color, symbol = _SERIES[index % len(_SERIES)]
        points = [
            (at, _throughput(cell)) for at, (_, cells) in enumerate(rows) for cell in cells if naming.size(cell) == size
        ]
        figure.add_scatter(
            **_interval_points(points, scale=1.0),
            name=_safe(size),
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 11},
        )
    _name_rows(figure, [name for name, _ in rows])
    figure.update_layout(legend_title_text="experts / top-k / width")
    figure.update_xaxes(title_text=f"tokens/s/{compared.rank_word}", rangemode="tozero")
    return _finished(figure, rows=len(rows), label="Throughput of the model sizes by layout and mode")


def _throughput(cell: CellResult) -> Interval | None:
    """Tokens/s a rank with the interval of the step turned over."""
    step, tokens = step_interval(cell), cell.tokens_per_s_per_rank
    if step is None or tokens is None:
        return None
    if step.low is None or step.high is None:
        return Interval(tokens)
    return Interval(tokens, tokens * step.value / step.high, tokens * step.value / step.low)


def _interval_points(points: Sequence[tuple[int, Interval | None]], *, scale: float) -> dict[str, Any]:
    """x, y and asymmetric error bars of the known intervals."""
    known = [(at, found) for at, found in points if found is not None]
    above = [scale * ((found.high or found.value) - found.value) for _, found in known]
    below = [scale * (found.value - (found.low or found.value)) for _, found in known]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 2,
        "width": 5,
    }
    return {"x": [scale * found.value for _, found in known], "y": [at for at, _ in known], "error_x": bars}


def _bars(lengths: Sequence[float]) -> dict[str, Any]:
    return {"x": [length or None for length in lengths], "y": list(range(len(lengths))), "orientation": "h"}


def _range_around(point: float, values: Sequence[float]) -> list[float]:
    """An axis range that holds ``point`` and ``values`` with some air on both sides."""
    low, high = min([point, *values]), max([point, *values])
    air = 0.06 * (high - low) or 0.01
    return [low - air, high + air]


def _hatched(color: str) -> dict[str, Any]:
    pattern = {"shape": "/", "fgcolor": color, "bgcolor": "rgba(0,0,0,0)", "size": 6, "solidity": 0.35}
    return {"color": color, "pattern": pattern, "line": {"color": color, "width": 1}}


def _purpose_order(purpose: str) -> int:
    known = list(_PURPOSES)
    return known.index(purpose) if purpose in known else len(known)


def _mode_marker(mode: str) -> dict[str, Any]:
    color, symbol = _MODES.get(mode, (GREEN, "square"))
    return {"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}}


def _memory_point(cell: CellResult, compared: Compared) -> tuple[float, float]:
    peak = peak_bytes(cell, compared)
    assert peak is not None and cell.tokens_per_s_per_rank is not None, f"{cell.cell} has no memory or no speed"
    return peak / 2**30, cell.tokens_per_s_per_rank


def _labelled_points(
    compared: Compared,
    cells: Sequence[CellResult],
    points: dict[str, tuple[float, float]],
    labels: dict[str, str],
) -> dict[str, Any]:
    names = [_safe(compared.naming.arm(cell)) for cell in cells]
    return {
        "x": [points[cell.cell][0] for cell in cells],
        "y": [points[cell.cell][1] for cell in cells],
        "text": [name if cell.cell in labels else "" for name, cell in zip(names, cells, strict=True)],
        "textposition": [labels.get(cell.cell, "top center") for cell in cells],
        "hovertext": names,
        "hoverinfo": "text+x+y",
    }


def _name_rows(figure: Any, names: Sequence[str]) -> None:
    """Rows from top to bottom at 0, 1, 2, ... with their names."""
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[_safe(name) for name in names],
        range=[len(names) - 0.4, -0.6],
        zeroline=False,
        showgrid=False,
    )


def _safe(text: str) -> str:
    """A name as plotly text, which reads some HTML: escaped, so that it stays a name."""
    return html.escape(clean(text, 160), quote=False)


def _finished(figure: Any, *, rows: int, label: str, row_px: int = _ROW_PX) -> Figure:
    height = 130 + row_px * rows
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 24, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    )
    figure.update_xaxes(automargin=True, zeroline=False, title_standoff=8)
    figure.update_yaxes(automargin=True)
    names = figure.layout.yaxis.ticktext or ("",)
    min_width = _PLOT_PX + _CHARACTER_PX * max(map(len, names))
    return Figure(str(figure.to_json()), height, min_width, label)
