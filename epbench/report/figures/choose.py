"""Throughput over peak memory: what a layout costs and what it gives."""

from collections.abc import Sequence
from typing import Any

from epbench.records import CellResult
from epbench.report.comparison import Compared, pareto
from epbench.report.figures.base import GREY, Figure, finished, mode_marker, safe
from epbench.report.placement import label_places
from epbench.report.tables import peak_bytes, peak_word

__all__ = ["frontier_figure"]


def frontier_figure(compared: Compared, cells: Sequence[CellResult]) -> Figure:
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
            name=safe(mode),
            mode="markers+text",
            marker=mode_marker(mode),
            cliponaxis=False,
        )
    figure.update_xaxes(title_text=f"peak GiB {peak_word(compared)}, worst rank")
    figure.update_yaxes(title_text=f"tokens/s/{compared.rank_word}")
    return finished(figure, rows=10, label="Throughput over peak memory of each cell")


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
    names = [safe(compared.naming.arm(cell)) for cell in cells]
    return {
        "x": [points[cell.cell][0] for cell in cells],
        "y": [points[cell.cell][1] for cell in cells],
        "text": [name if cell.cell in labels else "" for name, cell in zip(names, cells, strict=True)],
        "textposition": [labels.get(cell.cell, "top center") for cell in cells],
        "hovertext": names,
        "hoverinfo": "text+x+y",
    }
