"""Where the names of points stand in a scatter chart, so that none covers a point or another name.

Plotly places every text at the same side of its point. Here each name takes the first of six places that is
free inside the plot; a name that finds none is left out (the chart's table and the tooltips have them all).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Axes", "Box", "label_places", "text_box"]

Box = tuple[float, float, float, float]  # left, low, right, high in shares of the plot's width and height

_CHARACTER, _LINE = 0.0135, 0.055  # size of a character in a plot of 480 x 280 px
# The left and low corner of a name around its point: (shares of its own width, fixed shift), (low edge).
_PLACES: Mapping[str, tuple[float, float, float]] = {
    "top right": (0.0, 0.005, 0.026),
    "bottom right": (0.0, 0.005, -0.026 - _LINE),
    "middle right": (0.0, 0.02, -0.5 * _LINE),
    "top left": (-1.0, -0.005, 0.026),
    "bottom left": (-1.0, -0.005, -0.026 - _LINE),
    "middle left": (-1.0, -0.02, -0.5 * _LINE),
}
_POINT: Box = (-0.015, -0.025, 0.015, 0.025)
_PLOT: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Axes:
    """What the two axes of a chart reach from and to."""

    x: tuple[float, float]
    y: tuple[float, float]

    def share(self, x: float, y: float) -> tuple[float, float]:
        """Place of a point in the plot: 0 at the start of an axis, 1 at its end."""
        return (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])

    def y_at(self, share: float) -> float:
        """The value at a share of the height."""
        return self.y[0] + share * (self.y[1] - self.y[0])


def label_places(
    points: Mapping[str, tuple[float, float]],
    names: Mapping[str, str],
    *,
    axes: Axes,
    bars: Mapping[str, Box] | None = None,
    taken: Sequence[Box] = (),
) -> dict[str, str]:
    """Plotly's ``textposition`` of each (x, y) whose name finds a free place; earlier names choose first.

    ``bars`` are boxes of points' error bars, beside which the point's own name may stand; ``taken`` are boxes of what
    else is in the plot.
    """
    at = {key: axes.share(*point) for key, point in points.items()}
    bars = bars or {}
    occupied = [*taken, *(_around(point, _POINT) for point in at.values())]
    found: dict[str, str] = {}
    for key, name in names.items():
        others = [box for other, box in bars.items() if other != key]
        for place in _PLACES:
            box = text_box(at[key], name, place)
            if _inside(box, _PLOT) and not any(_overlap(box, other) for other in (*occupied, *others)):
                found[key] = place
                occupied.append(box)
                break
    return found


def text_box(point: tuple[float, float], name: str, place: str) -> Box:
    """What a name at a place of a point covers; the point is given in shares of the plot."""
    width = _CHARACTER * len(name)
    share, shift, low = _PLACES[place]
    left = share * width + shift
    return _around(point, (left, low, left + width, low + _LINE))


def _around(point: tuple[float, float], shape: Box) -> Box:
    x, y = point
    return x + shape[0], y + shape[1], x + shape[2], y + shape[3]


def _inside(box: Box, outer: Box) -> bool:
    return outer[0] <= box[0] and outer[1] <= box[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
