"""Collectives of a step: what they take by purpose and phase, beside the same bytes alone, and bytes per mesh axis."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from epbench.labels import PHASES
from epbench.records import CellResult, CollectiveRow
from epbench.report.comparison import Compared
from epbench.report.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    Figure,
    filled,
    finished,
    joining_lines,
    name_rows,
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft
from epbench.report.figures.units import Unit

__all__ = [
    "KINDS",
    "MESH_AXES",
    "OTHER",
    "Look",
    "Looks",
    "axis_bytes_figure",
    "beside_alone_figure",
    "collectives_figure",
    "kind_of",
]

OTHER = "other kinds"


class Look(NamedTuple):
    """Colour tells the purpose, hatching the op; so every two series can be told apart without colour."""

    color: str
    shape: str
    size: int = 7


KINDS: Mapping[str, Look] = {
    "dispatch": Look(ORANGE, "-"),
    "combine": Look(YELLOW, "|"),
    "count_exchange": Look(GREEN, "."),
    "all_gather fsdp": Look(BLUE, "/"),
    "reduce_scatter fsdp": Look(BLUE, "\\"),
    "all_reduce fsdp": Look(BLUE, "x"),
    "all_gather tp": Look(PURPLE, "/", 12),
    "reduce_scatter tp": Look(PURPLE, "\\", 12),
    "all_reduce tp": Look(PURPLE, "x", 12),
    "ulysses_in": Look(SKY, "-", 12),
    "ulysses_out": Look(SKY, "|", 12),
}
MESH_AXES: Mapping[str, Look] = {
    "ep": Look(ORANGE, "-"),
    "fsdp": Look(BLUE, "/"),
    "efsdp": Look(SKY, "\\"),
    "tp": Look(PURPLE, "x"),
    "cp": Look(GREEN, "|"),
    "dp_replicate": Look(YELLOW, "+"),
}
_UNKNOWN_LOOKS = (Look(GREY, "+"), Look(GREY, "+", 12))
_OTHER_LOOK = Look(GREY, ".", 12)
_CHARACTER_PX = 7
_SMALL = 0.05  # of the largest kind: an unknown one below has no colour of its own


def kind_of(row: CollectiveRow) -> str:
    """Purpose and op in one name: ``dispatch``, which is an all-to-all always, but ``all_gather fsdp``."""
    is_told = row.op == "all_to_all" and row.purpose != "other"
    return row.purpose if is_told else f"{row.op} {row.purpose}"


@dataclass(frozen=True)
class Looks:
    """How the series of a run are drawn, the same in all its charts; small ones that are not known are folded."""

    looks: Mapping[str, Look]
    folded: tuple[str, ...]

    @classmethod
    def of(cls, shares: Iterable[tuple[str, float]], known: Mapping[str, Look]) -> "Looks":
        """Known series have their own look, and so have the largest that are not, if they are not small."""
        largest: dict[str, float] = defaultdict(float)
        for name, share in shares:
            largest[name] = max(largest[name], share)
        unknown = sorted((name for name in largest if name not in known), key=lambda name: (-largest[name], name))
        least = _SMALL * max(largest.values(), default=0.0)
        large = [name for name in unknown if largest[name] >= least][: len(_UNKNOWN_LOOKS)]
        looks = {name: look for name, look in known.items() if name in largest}
        looks |= dict(zip(large, _UNKNOWN_LOOKS, strict=False))
        return cls(looks, tuple(name for name in unknown if name not in looks))

    def name(self, series: str) -> str:
        """The series, or the one that it is folded into."""
        assert series in self.looks or series in self.folded, f"{series} was not there when the looks were chosen"
        return series if series in self.looks else OTHER

    def all(self) -> list[tuple[str, Look]]:
        """Every series with its look, in the order of their bars."""
        return [*self.looks.items(), *([(OTHER, _OTHER_LOOK)] if self.folded else [])]


def collectives_figure(compared: Compared, cells: Sequence[CellResult], looks: Looks) -> Figure:
    """Milliseconds a step by cell and phase: first the transfers, solid, then the waits, hatched; exposed is marked.

    The name of a cell stands in a row of its own above its phases, so that long names leave the bars their width.
    """
    rows = [row for cell in cells for row in _rows_of(cell)]
    figure = Draft()
    for name, look in looks.all():
        transfers = [_ms(_calls(row, name, looks), lambda one: one.transfer_s) for row in rows]
        if any(transfers):
            figure.add_bar(**_bars(transfers), name=safe(name), marker=_separate(filled(*look)))
    for name, look in looks.all():
        waits = [_ms(_calls(row, name, looks), lambda one: one.wait_s) for row in rows]
        if any(waits):
            marker = _outlined(look)
            figure.add_bar(**_bars(waits), name=safe(f"{name}, wait"), showlegend=False, marker=marker)
    figure.add_bar(x=[None], y=[0], orientation="h", name="wait", marker=_outlined(Look(GREY, "/")))
    figure.add_scatter(**_marks([_exposed_ms(row) for row in rows]))
    names = [compared.naming.arm(cell) for cell in cells]
    figure.add_scatter(**_headings([at for at, row in enumerate(rows) if not row.phase], names))
    name_rows(figure, [row.phase for row in rows])
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(title_text="in collectives, ms/step", rangemode="tozero")
    label = "Time in collectives by purpose, transfer and wait"
    drawn = finished(figure, rows=len(rows) + 2, row_px=20, label=label)
    return replace(drawn, min_width=80 + _CHARACTER_PX * max(map(len, names)))


@dataclass(frozen=True)
class _Row:
    """The collectives of one phase of a cell; without a phase: the cell's heading."""

    phase: str = ""
    calls: tuple[CollectiveRow, ...] = ()


def _rows_of(cell: CellResult) -> list[_Row]:
    phases = sorted(dict.fromkeys(row.phase for row in cell.collectives), key=_phase_order)
    return [_Row(), *(_Row(phase, tuple(row for row in cell.collectives if row.phase == phase)) for phase in phases)]


def _phase_order(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _calls(row: _Row, name: str, looks: Looks) -> list[CollectiveRow]:
    return [call for call in row.calls if looks.name(kind_of(call)) == name]


def _ms(rows: Iterable[CollectiveRow], seconds: Callable[[CollectiveRow], float]) -> float | None:
    return rounded(1e3 * sum(map(seconds, rows))) or None


def _exposed_ms(row: _Row) -> float | None:
    """The sum of what is known; None if it is of no call."""
    known = [call.exposed_s for call in row.calls if call.exposed_s is not None]
    return rounded(1e3 * sum(known)) if known else None


def _bars(lengths: Sequence[float | None]) -> dict[str, Any]:
    """Horizontal bars; those of no length are left out of the figure altogether."""
    found = [(at, length) for at, length in enumerate(lengths) if length]
    return {"x": [length for _, length in found], "y": [at for at, _ in found], "orientation": "h"}


def _separate(marker: dict[str, Any]) -> dict[str, Any]:
    """Two ops of one purpose have one colour: a line between their bars."""
    return marker | {"line": {"color": "#fff", "width": 1}}


def _outlined(look: Look) -> dict[str, Any]:
    """The hatching alone."""
    color, shape, size = look
    pattern = {"shape": shape, "fgcolor": color, "bgcolor": "rgba(0,0,0,0)", "size": size, "solidity": 0.3}
    return {"color": color, "pattern": pattern, "line": {"color": color, "width": 1}}


def _marks(values: Sequence[float | None]) -> dict[str, Any]:
    points = [(at, value) for at, value in enumerate(values) if value is not None]
    return {
        "x": [value for _, value in points],
        "y": [at for at, _ in points],
        "mode": "markers",
        "name": "exposed transfer",
        "showlegend": bool(points),
        "marker": {"symbol": "diamond", "size": 10, "color": "#fff", "line": {"color": "#000", "width": 2}},
    }


def _headings(places: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    return {
        "x": [0] * len(places),
        "y": list(places),
        "text": [f"<b>{safe(name)}</b>" for name in names],
        "mode": "text",
        "textposition": "middle right",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def beside_alone_figure(rows: Sequence[CollectiveRow]) -> Figure:
    """Microseconds of one call in the step and of the same bytes alone, on one line; the bar ends at the step's p95."""
    figure = Draft()
    in_step = [rounded(1e6 * row.p50_s) or 0.0 for row in rows]
    alone = [rounded(1e6 * (row.isolated_s or 0.0)) or 0.0 for row in rows]
    figure.add_scatter(**joining_lines(list(zip(alone, in_step, strict=True))))
    places = list(range(len(rows)))
    late = [rounded(1e6 * max(0.0, row.p95_s - row.p50_s)) for row in rows]
    bars = {"type": "data", "symmetric": False, "array": late, "arrayminus": [0] * len(rows), "thickness": 2}
    full = {"color": ORANGE, "symbol": "diamond", "size": 11}
    hollow = {"color": BLUE, "symbol": "circle-open", "size": 11, "line": {"width": 2, "color": BLUE}}
    figure.add_scatter(x=alone, y=places, name="the same bytes alone", mode="markers", marker=hollow)
    figure.add_scatter(x=in_step, y=places, error_x=bars, name="in the step", mode="markers", marker=full)
    name_rows(figure, [f"{kind_of(row)}, {row.phase}, {row.axis}" for row in rows])
    figure.update_xaxes(title_text="transfer of one call, µs", type="log", nticks=6)
    return finished(figure, rows=len(rows), label="One call in the step beside the same bytes alone")


def axis_bytes_figure(rows: Sequence[tuple[str, dict[str, float]]], looks: Looks) -> Figure:
    """Bytes a step and rank that each layout passes to collectives over each mesh axis."""
    unit = Unit.of(max(sum(sizes.values()) for _, sizes in rows))
    figure = Draft()
    for name, look in looks.all():
        totals = [sum(size for axis, size in sizes.items() if looks.name(axis) == name) for _, sizes in rows]
        if any(totals):
            lengths = [unit.of_bytes(total) for total in totals]
            figure.add_bar(**_bars(lengths), name=safe(name), marker=filled(*look))
    name_rows(figure, [name for name, _ in rows])
    figure.update_layout(barmode="stack", bargap=0.3)
    figure.update_xaxes(title_text=f"buffers of collectives, {unit.name} a step and rank", rangemode="tozero")
    return finished(figure, rows=len(rows), label="Bytes of collectives over each mesh axis")
