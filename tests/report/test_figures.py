"""Figures are plain dictionaries: plotly knows every setting in them, and none is short for another."""

import json
from typing import Any

import plotly.graph_objects as go
import pytest

from epbench.report.comparison import Compared
from epbench.report.figures.draft import Draft
from epbench.report.runs import compared_runs
from epbench.report.sections import sections_of
from epbench.report.sections.change import change_section
from epbench.report.sections.model import Section
from tests.report.sample_data import sample_data


def _sections() -> list[Section]:
    on_gpus, on_cpu = sample_data(), sample_data("cpu")
    others = [on_gpus.__class__(on_gpus.view, path=None) for _ in range(3)]
    return [
        *sections_of(Compared.of(on_gpus)),
        *sections_of(Compared.of(on_cpu)),
        change_section(compared_runs(others)),
    ]


def _as_plotly_has_it(figure: dict[str, Any]) -> dict[str, Any]:
    """The figure after plotly's checks, which write out what is short (``line_width``) and refuse what is unknown."""
    made = go.Figure(figure).to_dict()
    del made["layout"]["template"]
    found: dict[str, Any] = json.loads(json.dumps(made))
    return found


def test_plotly_takes_every_figure_as_it_is() -> None:
    seen = set()
    for section in _sections():
        for chart in section.charts:
            seen.add(chart.key)
            for variant in chart.variants[:3]:
                figure = json.loads(variant.figure.json)
                assert _as_plotly_has_it(figure) == figure, f"{chart.key}, {variant.label}"
    assert len(seen) >= 18, sorted(seen)


def test_what_is_short_or_unknown_is_noticed() -> None:
    short, unknown = Draft(), Draft()
    short.add_scatter(x=[1], y=[2], line_width=3)
    unknown.add_scatter(x=[1], y=[2], colour="red")
    assert _as_plotly_has_it(short.made()) != short.made()
    with pytest.raises(ValueError, match="colour"):
        _as_plotly_has_it(unknown.made())


def test_settings_of_an_axis_add_up() -> None:
    draft = Draft({"xaxis2": {"anchor": "y2"}})
    draft.update_xaxes(title_text="ms", panel=2)
    draft.update_xaxes(title_standoff=8, range=[0, 1], panel=2)
    draft.update_layout(legend_title_text="size", meta={"kind_of": "frontier"})
    title = {"text": "ms", "standoff": 8}
    assert draft.made()["layout"] == {
        "xaxis2": {"anchor": "y2", "title": title, "range": [0, 1]},
        "legend": {"title": {"text": "size"}},
        "meta": {"kind_of": "frontier"},
    }


def test_a_trace_of_a_lower_panel_has_its_axes() -> None:
    draft = Draft()
    draft.add_trace({"type": "bar"})
    draft.add_trace({"type": "bar"}, panel=3)
    assert draft.made()["data"] == [{"type": "bar"}, {"type": "bar", "xaxis": "x3", "yaxis": "y3"}]
