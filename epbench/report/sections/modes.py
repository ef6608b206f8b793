"""Eager and compiled: what torch.compile gains, per layout."""

from epbench.report.comparison import Compared, Group
from epbench.report.figures.modes import speed_up_figure, steps_figure
from epbench.report.sections.model import INTERVALS, Chart, Section, Variant
from epbench.report.selection import mode_pairs, mode_rows
from epbench.report.tables import modes_table

__all__ = ["modes_section"]


def modes_section(compared: Compared) -> Section:
    """Steps of both modes, and the ratio where a layout has both."""
    key, title = "modes", "Eager and compiled"
    steps = tuple(_steps(compared, group) for group in compared.groups if group.measured)
    if not steps:
        return Section(key, title, missing="No cell has a step time.")
    charts = [Chart("steps", "Step time", f"Lower is better. {INTERVALS}", steps)]
    ratios = tuple(found for group in compared.groups if (found := _ratios(compared, group)))
    if not ratios:
        note = "No layout was measured both eager and compiled, so there is no speed-up to show."
        return Section(key, title, tuple(charts), note=note)
    caption = "Speed of compiled over eager; an interval that contains 1 is no difference."
    charts.append(Chart("speed-up", "Compiled over eager", caption, ratios))
    return Section(key, title, tuple(charts))


def _steps(compared: Compared, group: Group) -> Variant:
    rows = mode_rows(compared, group)
    return Variant(group.work, steps_figure(rows), modes_table(rows))


def _ratios(compared: Compared, group: Group) -> Variant | None:
    pairs = mode_pairs(mode_rows(compared, group))
    return Variant(group.work, speed_up_figure(pairs)) if pairs else None
