"""Where the names of points stand in a scatter chart, so that none covers a point or another name.

Plotly places every text at the same side of its point. Here each name takes the first of four sides that is
free inside the plot; a name that finds none is left out (the chart's table and the tooltips have them all).
"""

from collections.abc import Mapping, Sequence

__all__ = ["label_places"]

Box = tuple[float, float, float, float]  # left, low, right, high in shares of the plot's width and height

# What a name of some 20 characters covers around its point in a plot of 480 x 280 px.
_PLACES: Mapping[str, Box] = {
    "top center": (-0.14, 0.03, 0.14, 0.11),
    "bottom center": (-0.14, -0.11, 0.14, -0.03),
    "middle right": (0.02, -0.04, 0.30, 0.04),
    "middle left": (-0.30, -0.04, -0.02, 0.04),
}
_POINT: Box = (-0.015, -0.025, 0.015, 0.025)
_PLOT: Box = (0.0, 0.0, 1.0, 1.04)
_MARGIN = (0.06, 0.08)  # what plotly leaves between the outermost points and the plot's edges


def label_places(points: Mapping[str, tuple[float, float]], first: Sequence[str]) -> dict[str, str]:
    """Plotly's ``textposition`` of each (x, y) whose name finds a free place; ``first`` choose first."""
    at = _in_plot(points)
    taken = [_around(point, _POINT) for point in at.values()]
    found: dict[str, str] = {}
    for name in [*first, *(name for name in points if name not in first)]:
        for place, shape in _PLACES.items():
            box = _around(at[name], shape)
            if _inside(box, _PLOT) and not any(_overlap(box, other) for other in taken):
                found[name] = place
                taken.append(box)
                break
    return found


def _in_plot(points: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    xs, ys = zip(*points.values(), strict=True)
    (left, bottom) = _MARGIN
    return {name: (_share(x, xs, left), _share(y, ys, bottom)) for name, (x, y) in points.items()}


def _share(value: float, values: Sequence[float], margin: float) -> float:
    """Place of ``value`` on an axis that spans ``values``: 0 at its start, 1 at its end."""
    low, span = min(values), max(values) - min(values)
    return margin + (1 - 2 * margin) * (value - low) / span if span else 0.5


def _around(point: tuple[float, float], shape: Box) -> Box:
    x, y = point
    return x + shape[0], y + shape[1], x + shape[2], y + shape[3]


def _inside(box: Box, outer: Box) -> bool:
    return outer[0] <= box[0] and outer[1] <= box[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
