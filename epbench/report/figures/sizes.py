"""Throughput of the model sizes, layout by layout."""

from collections.abc import Sequence

from epbench.analysis.statistics import Interval
from epbench.records import CellResult
from epbench.report.comparison import Compared, step_interval
from epbench.report.figures.base import SERIES, Figure, finished, interval_points, name_rows, safe

__all__ = ["sizes_figure"]


def sizes_figure(compared: Compared, rows: Sequence[tuple[str, Sequence[CellResult]]]) -> Figure:
    """Throughput of each model size, one line of points for each layout and mode; bars are 95 % intervals."""
    import plotly.graph_objects as go

    naming = compared.naming
    figure = go.Figure()
    for index, size in enumerate(dict.fromkeys(naming.size(cell) for _, cells in rows for cell in cells)):
        color, symbol = SERIES[index % len(SERIES)]
        points = [
            (at, _throughput(cell)) for at, (_, cells) in enumerate(rows) for cell in cells if naming.size(cell) == size
        ]
        figure.add_scatter(
            **interval_points(points, scale=1.0),
            name=safe(size),
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 11},
        )
    name_rows(figure, [name for name, _ in rows])
    figure.update_layout(legend_title_text="experts / top-k / width")
    figure.update_xaxes(title_text=f"tokens/s/{compared.rank_word}", rangemode="tozero")
    return finished(figure, rows=len(rows), label="Throughput of the model sizes by layout and mode")


def _throughput(cell: CellResult) -> Interval | None:
    """Tokens/s a rank with the interval of the step turned over."""
    step, tokens = step_interval(cell), cell.tokens_per_s_per_rank
    if step is None or tokens is None:
        return None
    if step.low is None or step.high is None:
        return Interval(tokens)
    return Interval(tokens, tokens * step.value / step.high, tokens * step.value / step.low)
