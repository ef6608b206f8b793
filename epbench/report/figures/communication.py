"""Time a step in all-to-all, by cell, purpose and phase."""

from collections.abc import Sequence

from epbench.records import CellResult, CollectiveRow
from epbench.report.comparison import Compared
from epbench.report.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SERIES,
    YELLOW,
    Figure,
    bars,
    finished,
    hatched,
    name_rows,
    safe,
)

__all__ = ["all_to_all_figure"]


_PURPOSES = {
    "dispatch": BLUE,
    "combine": ORANGE,
    "count_exchange": PURPLE,
    "ulysses_in": GREEN,
    "ulysses_out": YELLOW,
}


def all_to_all_figure(compared: Compared, cells: Sequence[CellResult]) -> Figure:
    """Seconds a step in all-to-all by cell and phase: transfer solid, waiting hatched, stacked by purpose."""
    import plotly.graph_objects as go

    rows = [(cell, phase) for cell in cells for phase in dict.fromkeys(row.phase for row in cell.all_to_all)]
    purposes = dict.fromkeys(row.purpose for cell in cells for row in cell.all_to_all)
    figure = go.Figure()
    for index, purpose in enumerate(sorted(purposes, key=_purpose_order)):
        color = _PURPOSES.get(purpose, SERIES[index % len(SERIES)][0])
        calls = [_calls(cell, purpose, phase) for cell, phase in rows]
        transfer_ms = [1e3 * sum(row.transfer_s for row in found) for found in calls]
        wait_ms = [1e3 * sum(row.wait_s for row in found) for found in calls]
        figure.add_bar(**bars(transfer_ms), name=safe(purpose), marker={"color": color})
        figure.add_bar(**bars(wait_ms), name=safe(f"{purpose}, waiting"), showlegend=False, marker=hatched(color))
    figure.add_bar(x=[None], y=[0], orientation="h", name="waiting", marker=hatched(GREY))
    name_rows(figure, [_phase_name(compared, rows, at) for at in range(len(rows))])
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(title_text="all-to-all, ms/step")
    label = "Time in all-to-all by purpose, transfer and waiting"
    return finished(figure, rows=len(rows), row_px=22, label=label)


def _calls(cell: CellResult, purpose: str, phase: str) -> list[CollectiveRow]:
    return [row for row in cell.all_to_all if (row.purpose, row.phase) == (purpose, phase)]


def _phase_name(compared: Compared, rows: Sequence[tuple[CellResult, str]], at: int) -> str:
    """The phase, after the cell's name where the cell's rows begin."""
    cell, phase = rows[at]
    is_first = at == 0 or rows[at - 1][0] is not cell
    return f"{compared.naming.arm(cell)}, {phase}" if is_first else phase


def _purpose_order(purpose: str) -> int:
    known = list(_PURPOSES)
    return known.index(purpose) if purpose in known else len(known)
