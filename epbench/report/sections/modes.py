"""Eager and compiled: what torch.compile gains, per layout, and what it costs at the start."""

from collections.abc import Sequence

from epbench.report.comparison import Compared, Group
from epbench.report.compiling import Pair, break_evens, gain_sentence, pairs_of
from epbench.report.figures.modes import break_even_figure, speed_up_figure, steps_figure
from epbench.report.sections.model import INTERVALS, Chart, Section, TitledTable, Variant
from epbench.report.sections.modes_tables import break_even_table, costs_table, speed_up_table, steps_table
from epbench.report.selection import absent_note, mode_rows
from epbench.report.text import join

__all__ = ["modes_section"]

_COSTS = (
    "Compile seconds are the slowest rank's. The first launch pays for what the compile cache does not hold: all of it "
    "on a machine that never compiled these shapes (cold), little where another run or layout did. Later launches find "
    "it there (warm). Graph breaks and recompiles are of the first launch; recompiles count from the end of the "
    "warm-up, and a launch with any is not valid."
)
_BREAK_EVEN = (
    "Compile seconds over seconds saved a step: a training run shorter than this is faster in eager mode. The first "
    "launch compiles cold if nothing had compiled these shapes before, the median of three or more finds them in the "
    "cache. Bars are the speed-up's 95 % interval carried over."
)


def modes_section(compared: Compared) -> Section:
    """Steps of both modes, the ratio where a layout has both, and when compiling has paid for itself."""
    key, title = "modes", "Eager and compiled"
    steps = tuple(_steps(compared, group) for group in compared.groups if group.measured)
    if not steps:
        return Section(key, title, missing="No cell has a step time.")
    charts = [Chart("steps", "Step time", f"Lower is better. {INTERVALS}", steps)]
    pairs = [(group, found) for group in compared.groups if (found := pairs_of(compared, group))]
    if pairs:
        ratios = tuple(_ratios(compared, group, found) for group, found in pairs)
        caption = "Speed of compiled over eager; an interval that contains 1 is no difference."
        charts.append(Chart("speed-up", "Compiled over eager", caption, ratios))
    if paid := tuple(made for group, found in pairs if (made := _break_even(group, found))):
        charts.append(Chart("break-even", "When compiling has paid for itself", _BREAK_EVEN, paid))
    return Section(
        key,
        title,
        tuple(charts),
        note=_note([pair for _, found in pairs for pair in found], bool(paid)),
        tables=_costs(compared),
    )


def _note(pairs: Sequence[Pair], has_break_even: bool) -> str:
    if not pairs:
        return "No layout was measured both eager and compiled, so there is no speed-up to show."
    return "" if has_break_even else _without(pairs)


def _steps(compared: Compared, group: Group) -> Variant:
    rows = mode_rows(compared, group)
    absent = absent_note(compared, group, {cell.cell for cell in group.measured})
    return Variant(group.work, steps_figure(rows), steps_table(rows), absent)


def _ratios(compared: Compared, group: Group, pairs: Sequence[Pair]) -> Variant:
    return Variant(group.work, speed_up_figure(pairs), speed_up_table(pairs), gain_sentence(compared, group, pairs))


def _break_even(group: Group, pairs: Sequence[Pair]) -> Variant | None:
    """None where no layout is known to have gained, or none says how long it compiled."""
    found = [(pair, *break_evens(pair)) for pair in pairs]
    rows = [(pair.name, first, median) for pair, first, median in found if "after" in (first.kind, median.kind)]
    if not rows:
        return None
    shown = {name for name, _, _ in rows}
    others = _without([pair for pair in pairs if pair.name not in shown])
    return Variant(group.work, break_even_figure(rows), break_even_table(pairs), others)


def _without(pairs: Sequence[Pair]) -> str:
    """Why these have no break-even."""
    slower = [pair.name for pair in pairs if pair.is_told and pair.speed.value < 1.0]
    untold = [pair.name for pair in pairs if not pair.is_told]
    unknown = [pair.name for pair in pairs if pair.is_told and pair.speed.value > 1.0]
    words = (
        (slower, "Compiling never pays for {}: slower compiled."),
        (untold, "No break-even for {}: the launches do not tell the modes apart."),
        (unknown, "No break-even for {}: how long compiling took was not recorded."),
    )
    return " ".join(text.format(join(names)) for names, text in words if names)


def _costs(compared: Compared) -> tuple[TitledTable, ...]:
    """What compiling costs, of all compiled cells with a number; nothing where there is none."""
    table = costs_table(compared)
    return (TitledTable("What compiling costs", table, _COSTS),) if table else ()
