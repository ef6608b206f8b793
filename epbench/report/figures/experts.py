"""How evenly tokens fall on experts, and what a layout's throughput owes to that."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from epbench.records import CellResult, ExpertCopies
from epbench.report.comparison import throughput
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
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft

__all__ = ["color_span", "imbalance_figure", "load_figure"]

# Blue is less than the fair share, orange more. The middle is the paper itself, light or dark, so that only what
# is uneven stands out of it.
_SCALE = ((0.0, "rgba(0,114,178,1)"), (0.5, "rgba(0,114,178,0)"), (0.5, "rgba(213,94,0,0)"), (1.0, "rgba(213,94,0,1)"))
_UNUSED = PURPLE
_HEIGHT_PX, _LEAST_PX, _MOST_PX = 400, 9, 40  # of all rows together, and of one
_SCALE_PX, _AXIS_PX = 60, 70  # of the scale with its texts, and what the plot has beyond its rows
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
_SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x", "star", "hexagon", "triangle-down")
Curve = tuple[str, str, Sequence[CellResult]]  # layout, mode, cells that differ in routing only


def color_span(copies: ExpertCopies) -> int:
    """Powers of two on either side of the fair share that the colours span: 2 is from a quarter to four times.

    The heaviest expert sets it; one that has even less than the scale's lower end has that end's colour.
    """
    heaviest = max(max(row) * len(row) / sum(row) for row in copies.experts)
    return max(1, math.ceil(math.log2(heaviest)))


def load_figure(copies: ExpertCopies) -> Figure:
    """Base-2 logarithm of load over fair share: a row a MoE layer, a column an expert, lines between ep ranks."""
    logs = _logs(copies)
    row_px = min(_MOST_PX, max(_LEAST_PX, _HEIGHT_PX // len(logs)))
    rows = len(logs) + math.ceil(_SCALE_PX / row_px)
    figure = Draft()
    figure.add_heatmap(**_shares(copies, logs))
    if any(value is None for row in logs for value in row):
        figure.add_heatmap(**_unused(copies, logs))
    _rank_columns(figure, copies)
    figure.update_yaxes(
        title_text="MoE layer",
        type="category",
        autorange="reversed",
        showgrid=False,
        ticks="",
        domain=[0, round(1 - _SCALE_PX / (row_px * rows + _AXIS_PX), 3)],  # the colours' scale is above
    )
    return finished(figure, rows=rows, row_px=row_px, label="Load of each expert over its fair share, by layer")


def _logs(copies: ExpertCopies) -> list[list[float | None]]:
    """Of each layer and expert log2(copies / fair share), two decimals; None of an expert without any."""
    rows = []
    for row in copies.experts:
        fair = sum(row) / len(row)
        rows.append([round(math.log2(count / fair), 2) if count else None for count in row])
    return rows


def _shares(copies: ExpertCopies, logs: list[list[float | None]]) -> dict[str, Any]:
    span = color_span(copies)
    return {
        "z": logs,
        "y": [str(layer) for layer in copies.layers],
        "zmin": -span,
        "zmax": span,
        "colorscale": _SCALE,
        "colorbar": _ticks(span),
        "hovertemplate": "layer %{y}, expert %{x}: 2<sup>%{z:.2f}</sup> of its fair share<extra></extra>",
    }


def _ticks(span: int) -> dict[str, Any]:
    """A tick at each power of two; where there are many, at every second or third."""
    step = math.ceil(span / 4)
    powers = [power for power in range(-span, span + 1) if power % step == 0]
    texts = [f"{2**power}x" if power >= 0 else f"1/{2**-power}x" for power in powers]
    if powers[0] == -span:
        texts[0] = f"{texts[0]} or less"
    return {
        "tickmode": "array",
        "tickvals": powers,
        "ticktext": texts,
        "orientation": "h",
        "y": 1.0,
        "yanchor": "top",
        "ypad": 0,
        "thickness": 12,
        "outlinewidth": 1,
        "outlinecolor": GREY,
        "title": {"text": "load over fair share", "side": "top"},
    }


def _unused(copies: ExpertCopies, logs: list[list[float | None]]) -> dict[str, Any]:
    """Experts that no token chose, which have no logarithm: in one colour that the scale has not."""
    return {
        "z": [[1 if value is None else None for value in row] for row in logs],
        "y": [str(layer) for layer in copies.layers],
        "colorscale": ((0.0, _UNUSED), (1.0, _UNUSED)),
        "showscale": False,
        "hovertemplate": "layer %{y}, expert %{x}: no token<extra></extra>",
    }


def _rank_columns(figure: Draft, copies: ExpertCopies) -> None:
    """Lines between the blocks of experts that ep ranks hold, with the ranks' numbers below."""
    experts, ranks = len(copies.experts[0]), len(copies.ranks[0])
    if ranks < 2 or experts % ranks:
        figure.update_xaxes(title_text="expert", showgrid=False)
        return
    block = experts // ranks
    figure.update_layout(shapes=[_between(rank * block - 0.5) for rank in range(1, ranks)])
    shown = range(0, ranks, math.ceil(ranks / 16))
    figure.update_xaxes(
        title_text=f"ep rank, each with {block} of {experts} experts",
        tickmode="array",
        tickvals=[rank * block + (block - 1) / 2 for rank in shown],
        ticktext=[str(rank) for rank in shown],
        showgrid=False,
    )


def _between(x: float) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "y domain",
        "line": {"color": GREY, "width": 1.5},
    }


def imbalance_figure(curves: Sequence[Curve], loads: Mapping[str, float], *, load_title: str, rank_word: str) -> Figure:
    """Throughput over load imbalance, a curve for each layout and mode; ``loads`` has the imbalance by cell id."""
    figure = Draft()
    layouts = list(dict.fromkeys(layout for layout, _, _ in curves))
    for layout, mode, cells in curves:
        known = sorted((cell for cell in cells if cell.cell in loads), key=lambda cell: loads[cell.cell])
        figure.add_scatter(
            **_points(known, loads),
            **_style(layouts.index(layout), mode),
            name=safe(f"{layout} {mode}"),
            hovertemplate="%{text}: %{y:,.0f} at %{x:.2f}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title_text=load_title)
    figure.update_yaxes(title_text=f"tokens/s/{rank_word}")
    return finished(figure, rows=9 + len(curves) // 3, label=f"Throughput over {load_title}")


def _points(cells: Sequence[CellResult], loads: Mapping[str, float]) -> dict[str, Any]:
    found = [(cell, speed) for cell in cells if (speed := throughput(cell)) is not None]
    return {
        "x": [rounded(loads[cell.cell]) for cell, _ in found],
        "y": [rounded(speed.value) for _, speed in found],
        "text": [safe(cell.routing) for cell, _ in found],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [rounded((speed.high or speed.value) - speed.value) for _, speed in found],
            "arrayminus": [rounded(speed.value - (speed.low or speed.value)) for _, speed in found],
            "thickness": 1.5,
            "width": 4,
        },
    }


def _style(layout: int, mode: str) -> dict[str, Any]:
    """A colour and a symbol for each layout, an open symbol and a dashed line for what is not compiled."""
    color, symbol = _COLORS[layout % len(_COLORS)], _SYMBOLS[layout % len(_SYMBOLS)]
    compiled = mode == "compiled"
    return {
        "mode": "lines+markers",
        "line": {"color": color, "width": 2, "dash": "solid" if compiled else "dot"},
        "marker": {
            "color": color,
            "symbol": symbol if compiled else f"{symbol}-open",
            "size": 10,
            "line": {"width": 2, "color": color},
        },
    }
