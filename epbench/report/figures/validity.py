"""How far the launches of each cell lie from their median."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from epbench.analysis.noise import MachineStart, machine_start, machine_starts
from epbench.records import CellResult, LaunchValue
from epbench.report.comparison import step_launches
from epbench.report.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    YELLOW,
    Figure,
    finished,
    name_rows,
    rounded,
    safe,
)
from epbench.report.figures.draft import Draft
from epbench.report.text import ms

__all__ = ["noise_figure", "numbered_starts"]

_STARTS = (
    (BLUE, "circle"),
    (ORANGE, "diamond"),
    (GREEN, "square"),
    (PURPLE, "triangle-up"),
    (YELLOW, "cross"),
)
Point = tuple[int, float, LaunchValue]  # row, per cent from the median, launch


def numbered_starts(cells: Sequence[CellResult]) -> dict[MachineStart, int]:
    """What launches name as their machine start, with its number from 1 in the order in which they ran.

    Launches with fewer ranks have the number of those that used their GPUs and others; where none is named it is 0.
    """
    launches = sorted((launch for cell in cells for launch in cell.launch_values), key=lambda one: one.order)
    part_of = machine_starts(launches)
    named = dict.fromkeys(wide for wide in part_of.values() if any(wide))
    numbers = {wide: number for number, wide in enumerate(named, start=1)}
    return {start: numbers.get(wide, 0) for start, wide in part_of.items()}


def noise_figure(rows: Sequence[tuple[str, CellResult]], starts: Mapping[MachineStart, int]) -> Figure:
    """Every launch of each cell, in per cent of the median of its valid ones; ``starts`` numbers machine starts."""
    figure = Draft()
    points = [point for at, (_, cell) in enumerate(rows) for point in _points(at, cell)]
    several = max(starts.values(), default=0) > 1
    for number in sorted(set(starts.values())) if several else [1]:
        for valid in (True, False):
            of_start = (one for one in points if not several or starts[machine_start(one[2])] == number)
            own = [one for one in of_start if one[2].valid is valid]
            if own:
                figure.add_scatter(**_series(own, number, valid=valid, several=several))
    figure.add_vline(x=0.0, line={"color": GREY, "dash": "dot", "width": 2})
    name_rows(figure, [name for name, _ in rows])
    figure.update_xaxes(title_text="step of a launch, % from the median of the cell's valid launches", ticksuffix=" %")
    return finished(figure, rows=len(rows), label="Launches of each cell around their median")


def _points(at: int, cell: CellResult) -> Iterator[Point]:
    valid = step_launches(cell)
    if valid:
        middle = median(valid.values())
        for launch in cell.launch_values:
            if launch.step_s is not None and launch.step_s > 0:
                yield at, 100 * (launch.step_s / middle - 1), launch


def _series(points: Sequence[Point], number: int, *, valid: bool, several: bool) -> dict[str, Any]:
    color, symbol = _STARTS[(number - 1) % len(_STARTS)]
    kind = "valid" if valid else "invalid"
    return {
        "x": [rounded(percent) for _, percent, _ in points],
        "y": [at for at, _, _ in points],
        "mode": "markers",
        "name": f"{kind}, machine start {number or 'not recorded'}" if several else f"{kind} launch",
        "text": [_hover(launch) for _, _, launch in points],
        "hovertemplate": "%{text}: %{x:+.2f} %<extra></extra>",
        "marker": {
            "color": color,
            "symbol": symbol if valid else f"{symbol}-open",
            "size": 9,
            "opacity": 0.9 if valid else 1.0,
            "line": {"width": 0 if valid else 2, "color": color},
        },
        "showlegend": True,
    }


def _hover(launch: LaunchValue) -> str:
    text = f"launch {launch.index}, {ms(launch.step_s)} ms"
    return text if launch.valid else f"{text}, invalid: {safe(launch.invalid_reason or 'no reason recorded')}"
