"""What all charts of a report share; each is plotly JSON, drawn by ``script/charts.js`` when it comes into view.

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
from epbench.report.figures.draft import Draft
from epbench.report.text import shortened

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "MODES",
    "ORANGE",
    "PURPLE",
    "SERIES",
    "SKY",
    "YELLOW",
    "Figure",
    "filled",
    "finished",
    "hatched",
    "interval_points",
    "joining_lines",
    "mode_marker",
    "name_rows",
    "rounded",
    "safe",
]

BLUE, ORANGE, GREEN, SKY, YELLOW, PURPLE = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#E69F00", "#CC79A7"
GREY = "#8a8f98"
MODES = {"eager": (ORANGE, "circle-open"), "compiled": (BLUE, "circle")}
SERIES = (
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


def interval_points(points: Sequence[tuple[int, Interval | None]], *, scale: float) -> dict[str, Any]:
    """x, y and asymmetric error bars of the known intervals."""
    known = [(at, found) for at, found in points if found is not None]
    above = [rounded(scale * ((found.high or found.value) - found.value)) for _, found in known]
    below = [rounded(scale * (found.value - (found.low or found.value))) for _, found in known]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 2,
        "width": 5,
    }
    return {"x": [rounded(scale * found.value, 6) for _, found in known], "y": [at for at, _ in known], "error_x": bars}


def filled(color: str, shape: str, size: int = 7) -> dict[str, Any]:
    """A bar's marker that is solid to the eye, with a faint hatching that no other series of its chart has."""
    faint = {"fillmode": "overlay", "fgcolor": "#fff", "fgopacity": 0.35, "solidity": 0.12}
    return {"color": color, "pattern": {"shape": shape, "size": size, **faint}, "line": {"color": color, "width": 1}}


def hatched(color: str) -> dict[str, Any]:
    """A marker that is told from the plain one of the same colour without colour."""
    pattern = {"shape": "/", "fgcolor": color, "bgcolor": "rgba(0,0,0,0)", "size": 6, "solidity": 0.35}
    return {"color": color, "pattern": pattern, "line": {"color": color, "width": 1}}


def joining_lines(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """In rows 0, 1, 2, ... a grey line from one value to the other, all in one series."""
    ends = [(x, at) for at, pair in enumerate(pairs) for x in (*pair, None)]
    line = {"color": GREY, "width": 3}
    places = {"x": [x for x, _ in ends], "y": [at for _, at in ends]}
    return places | {"mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False}


def mode_marker(mode: str) -> dict[str, Any]:
    """Colour and symbol of a mode, the same in every chart."""
    color, symbol = MODES.get(mode, (GREEN, "square"))
    return {"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}}


def name_rows(figure: Draft, names: Sequence[str]) -> None:
    """Rows from top to bottom at 0, 1, 2, ... with their names."""
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[safe(name) for name in names],
        range=[len(names) - 0.4, -0.6],
        zeroline=False,
        showgrid=False,
    )


def safe(text: str) -> str:
    """A name as plotly text, which reads some HTML: escaped, so that it stays a name."""
    return html.escape(shortened(text, 160), quote=False)


def rounded(value: float | None, digits: int = 4) -> float | None:
    """A number with so many significant digits: a chart needs no more, and the page has a size to keep."""
    return None if value is None else float(f"{value:.{digits}g}")


def finished(figure: Draft, *, rows: int, label: str, row_px: int = _ROW_PX) -> Figure:
    """The figure with what all charts share; ``rows`` give the height, row names the least width."""
    from plotly.io.json import to_json_plotly

    made = figure.made()
    height = 130 + row_px * rows
    made["layout"] = layout = _framed(made["layout"], height)
    names = layout["yaxis"].get("ticktext") or ("",)
    min_width = _PLOT_PX + _CHARACTER_PX * max(map(len, names))
    return Figure(str(to_json_plotly(made)), height, min_width, label)


def _framed(layout: dict[str, Any], height: int) -> dict[str, Any]:
    """A layout with the margins, legend and axes of all charts; without a template, which is plotly's ``none``."""
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    framed = {key: value for key, value in layout.items() if key != "template"} | {
        "height": height,
        "margin": {"l": 8, "r": 24, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": layout.get("hoverlabel", {}) | {"align": "left"},
        "legend": layout.get("legend", {}) | legend,
    }
    for key in dict.fromkeys(["xaxis", "yaxis", *(key for key in layout if key[1:5] == "axis")]):
        axis = layout.get(key, {}) | {"automargin": True}
        if key.startswith("x"):
            axis |= {"zeroline": False, "title": axis.get("title", {}) | {"standoff": 8}}
        framed[key] = axis
    return framed
