"""Throughput of the model sizes, layout by layout."""

from collections.abc import Sequence

from epbench.records import CellResult
from epbench.report.comparison import Compared, throughput
from epbench.report.figures.base import GREY, SERIES, Figure, finished, interval_points, name_rows, safe
from epbench.report.figures.draft import Draft

__all__ = ["sizes_figure"]

_ROOM = 0.56  # of a row, for the sizes below each other: equal throughputs of two sizes do not cover each other
_SIZE_PX = 11


def sizes_figure(compared: Compared, rows: Sequence[tuple[str, Sequence[CellResult]]]) -> Figure:
    """Throughput of each model size in rows of layouts and modes; bars are 95 % intervals."""
    sizes = sizes_of(compared, rows)
    figure = Draft()
    for index, size in enumerate(sizes):
        color, symbol = SERIES[index % len(SERIES)]
        points = interval_points(
            [(at, throughput(cell)) for at, (_, cells) in enumerate(rows) for cell in cells
             if compared.naming.size(cell) == size], scale=1.0
        )  # fmt: skip
        shift = _ROOM * (index / (len(sizes) - 1) - 0.5)
        points["y"] = [round(at + shift, 3) for at in points["y"]]
        marker = {"color": color, "symbol": symbol, "size": 9}
        figure.add_scatter(**points, name=safe(size), mode="markers", marker=marker)
    for at in range(1, len(rows)):
        figure.add_hline(y=at - 0.5, line={"color": GREY, "width": 0.5}, opacity=0.5)
    name_rows(figure, [name for name, _ in rows])
    figure.update_layout(legend_title_text="experts / top-k / width")
    figure.update_xaxes(title_text=f"tokens/s/{compared.rank_word}", rangemode="tozero", tickformat=",")
    label = "Throughput of the model sizes by layout and mode"
    return finished(figure, rows=len(rows), label=label, row_px=max(26, _SIZE_PX * len(sizes)))


def sizes_of(compared: Compared, rows: Sequence[tuple[str, Sequence[CellResult]]]) -> list[str]:
    """Names of the sizes, in order of first appearance."""
    return list(dict.fromkeys(compared.naming.size(cell) for _, cells in rows for cell in cells))
