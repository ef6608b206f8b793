"""A figure in the making: traces and a layout as plain dictionaries, the JSON that plotly.js takes.

The names are those of ``plotly.graph_objects.Figure``, which would check each setting whenever one is added, and copy
all that it has: with many cells that took ten times as long as everything else. Tests let it check whole figures.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["Draft"]


class Draft:
    """Collects what ``plotly.graph_objects.Figure`` takes. A panel is a row of subplots, from 1."""

    def __init__(self, layout: Mapping[str, Any] | None = None) -> None:
        self.traces: list[dict[str, Any]] = []
        self.layout: dict[str, Any] = dict(layout or {})

    def add_trace(self, trace: Mapping[str, Any], *, panel: int = 1) -> None:
        """A trace with its ``type``."""
        axes = {} if panel == 1 else {"xaxis": f"x{panel}", "yaxis": f"y{panel}"}
        self.traces.append({**trace, **axes})

    def add_scatter(self, **trace: Any) -> None:
        """Points or lines."""
        self.add_trace({"type": "scatter", **trace})

    def add_bar(self, **trace: Any) -> None:
        """Bars."""
        self.add_trace({"type": "bar", **trace})

    def add_heatmap(self, **trace: Any) -> None:
        """A grid of colours."""
        self.add_trace({"type": "heatmap", **trace})

    def add_shape(self, **shape: Any) -> None:
        """A line or a box, over data or over the plot."""
        self.layout["shapes"] = [*self.layout.get("shapes", ()), shape]

    def add_annotation(self, **annotation: Any) -> None:
        """A text at a place."""
        self.layout["annotations"] = [*self.layout.get("annotations", ()), annotation]

    def add_vline(self, x: float, *, text: str = "", **style: Any) -> None:
        """A line from bottom to top; ``text`` stands left of its upper end."""
        self.add_shape(type="line", xref="x", yref="y domain", x0=x, x1=x, y0=0, y1=1, **style)
        if text:
            place = {"xref": "x", "x": x, "xanchor": "right", "yref": "y domain", "y": 1, "yanchor": "top"}
            self.add_annotation(text=text, showarrow=False, **place)

    def add_hline(self, y: float, *, text: str = "", **style: Any) -> None:
        """A line from left to right; ``text`` stands below its left end."""
        self.add_shape(type="line", xref="x domain", yref="y", x0=0, x1=1, y0=y, y1=y, **style)
        if text:
            place = {"xref": "x domain", "x": 0, "xanchor": "left", "yref": "y", "y": y, "yanchor": "top"}
            self.add_annotation(text=text, showarrow=False, **place)

    def update_layout(self, **settings: Any) -> None:
        """Settings of the whole figure; ``legend_title_text`` is ``{"legend": {"title": {"text": ...}}}``."""
        _merge(self.layout, _nested(settings))

    def update_xaxes(self, *, panel: int = 1, **settings: Any) -> None:
        """Settings of a panel's x axis."""
        _merge(self.layout, {_axis("x", panel): _nested(settings)})

    def update_yaxes(self, *, panel: int = 1, **settings: Any) -> None:
        """Settings of a panel's y axis."""
        _merge(self.layout, {_axis("y", panel): _nested(settings)})

    def made(self) -> dict[str, Any]:
        """The figure as plotly.js takes it."""
        return {"data": self.traces, "layout": self.layout}


def _axis(letter: str, panel: int) -> str:
    return f"{letter}axis" if panel == 1 else f"{letter}axis{panel}"


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``title_text`` as ``{"title": {"text": ...}}``, as plotly reads an underscore."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        head, _, rest = key.partition("_")
        _merge(nested, {head: _nested({rest: value}) if rest else value})
    return nested


def _merge(into: dict[str, Any], settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        known = into.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            into[key] = dict(known)
            _merge(into[key], value)
        else:
            into[key] = value
