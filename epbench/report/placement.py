"""Where the names of points stand in a scatter chart, so that none covers a point or another name.

Plotly places every text at the same side of its point. Here each name takes the first of six places that is
free inside the plot; a name that finds none is left out (the chart's table and the tooltips have them all).
"""

from collections.abc import Mapping, Sequence

__all__ = ["label_places"]

Box = tuple[float, float, float, float]  # left, low, right, high in shares of the plot's width and height

_CHARACTER, _LINE = 0.0135, 0.055  # size of a character in a plot of 480 x 280 px
# The left and low corner of a name around its point: (shares of its own width, fixed shift), (low edge).
_PLACES: Mapping[str, tuple[float, float, float]] = {
    "top right": (0.0, 0.005, 0.03),
    "bottom right": (0.0, 0.005, -0.03 - _LINE),
    "top left": (-1.0, -0.005, 0.03),
    "bottom left": (-1.0, -0.005, -0.03 - _LINE),
    "top center": (-0.5, 0.0, 0.03),
    "bottom center": (-0.5, 0.0, -0.03 - _LINE),
}
_POINT: Box = (-0.015, -0.025, 0.015, 0.025)
_PLOT: Box = (0.0, 0.0, 1.0, 1.04)
_MARGIN = (0.06, 0.08)  # what plotly leaves between the outermost points and the plot's edges


def label_places(points: Mapping[str, tuple[float, float]], names: Mapping[str, str]) -> dict[str, str]:
    """Plotly's ``textposition`` of each (x, y) whose name finds a free place; earlier names choose first."""
    at = _in_plot(points)
    taken = [_around(point, _POINT) for point in at.values()]
    found: dict[str, str] = {}
    for key, name in names.items():
        for place in _PLACES:
            box = _around(at[key], _shape(name, place))
            if _inside(box, _PLOT) and not any(_overlap(box, other) for other in taken):
                found[key] = place
                taken.append(box)
                break
    return found


def _shape(name: str, place: str) -> Box:
    """What a name at a place covers, relative to its point."""
    width = _CHARACTER * len(name)
    share, shift, low = _PLACES[place]
    left = share * width + shift
    return left, low, left + width, low + _LINE


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
