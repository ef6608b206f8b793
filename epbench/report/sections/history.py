"""The nights before this run: each metric of each cell over a history, with changes of level, alarms and versions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from epbench.analysis.rolling import LIMIT, WINDOW, K, Word
from epbench.cell_content import content_key
from epbench.history.adding import run_nights
from epbench.history.lines import HistoryFile, history_files, history_path, read_history
from epbench.history.series import RECENT, Series, Trend, changes_since, damage_text, series_of, trend_of
from epbench.report.comparison import Naming
from epbench.report.data import RunData
from epbench.report.figures.history import trend_figure
from epbench.report.history_table import change_text, nights_table, titled, unit
from epbench.report.sections.model import Chart, Section, Variant
from epbench.report.text import clean
from epbench.store import RunDirectory

__all__ = ["history_section"]

Named = list[tuple[str, Series]]  # by the cell's name on the page
Trends = list[tuple[str, Trend]]

_LEAST_NIGHTS = 3
_MOST_CELLS = 40
_SIDES: Mapping[Word, str] = {"slower": "more", "faster": "less"}
_SCALES = {"ms": 1e3, "GiB": 2.0**-30, "": 1.0}
_METRICS = {
    "device_work_s": "Device work over the nights",
    "step_s": "Step over the nights",
    "exposed_s": "Exposed communication over the nights",
    "compile_s": "Compiling over the nights",
    "peak_allocated_bytes": "Peak memory over the nights",
}


def history_section(run: RunData, store: Path) -> Section:
    """The cells of a run over the history of its scenario in ``store``, this run as the last night if it is not there.

    Raises RunError if the history cannot be read.
    """
    found = _history(run, store)
    named = _series(run, found)
    trends = {metric: _trends(metric, named) for metric in _METRICS}
    charts = tuple(_chart(metric, found) for metric, found in trends.items() if found)
    missing = "" if charts else f"The history in {clean(str(store), 120)} has no cell of this run in three nights."
    cut = f" The first {_MOST_CELLS} cells are drawn." if len(named) > _MOST_CELLS else ""
    note = (
        f"An alarm is two nights running on one side of the median of up to {WINDOW} nights before them, by more than "
        f"{K:g} robust standard deviations and {100 * LIMIT:g} %. A level changes where the nights before and after "
        f"differ by more than all but 1 % of random orders do; the last {RECENT} nights are searched and drawn.{cut}"
    )
    damage = f"{damage_text(history_path(store, run.view.run.name), found)}." if found.damaged else ""
    lead = " ".join(part for part in (_lead(trends), clean(damage, 300)) if part)
    return Section("nights", "Over the nights", charts, missing=missing, note=note if charts else "", lead=lead)


def _history(run: RunData, store: Path) -> HistoryFile:
    history_files(store)  # a directory that is not there is a mistake, a scenario without nights is none
    path = history_path(store, run.view.run.name)
    return read_history(path) if path.exists() else HistoryFile(run.view.run.name)


def _series(run: RunData, found: HistoryFile) -> Named:
    """The run's cells by their names on the page, with their nights."""
    view = run.view
    name = RunDirectory(run.path).name if run.path is not None else view.run.name
    for night in run_nights(view, name):
        found.cells.setdefault(night.cell.key, night.cell)
        found.environments.setdefault(night.environment.key, night.environment)
        found.nights.setdefault(night.line.night, night.line)
    machine, naming = view.environment, Naming.of(view)
    by_content = {
        content_key(one.cell): one
        for one in series_of(found)
        if one.environments[-1].device_name == machine.device_name and one.environments[-1].protocol == view.protocol
    }
    pairs = ((naming.full(cell), by_content.get(content_key(cell))) for cell in view.cells)
    return [(name, series.recent()) for name, series in pairs if series is not None]


def _trends(metric: str, named: Named) -> Trends:
    counts = [(name, one, sum(value is not None for value in one.values(metric))) for name, one in named[:_MOST_CELLS]]
    return [(name, trend_of(one, metric)) for name, one, nights in counts if nights >= _LEAST_NIGHTS]


def _chart(metric: str, trends: Trends) -> Chart:
    variants = tuple(_variant(name, trend) for name, trend in trends)
    caption = (
        "Median over launches with its 95 % interval, night by night; the horizontal line is the level. A dashed line "
        "is a change of level, with its size; a dotted one says what software changed that night; a triangle is an "
        "alarm. Where lines are close, the table has what there is no room to write."
    )
    return Chart(f"trend-{metric}", _METRICS[metric], caption, variants, picker="cell")


def _variant(name: str, trend: Trend) -> Variant:
    kind = unit(trend.metric)
    marks = [_mark(found) for found in changes_since(trend.series)]
    figure = trend_figure(trend, marks=marks, scale=_SCALES[kind], axis=titled(trend.metric))
    return Variant(name, figure, nights_table(trend, count=RECENT))


def _mark(found: Sequence[str]) -> str:
    """What changed, in the few words that fit above a chart."""
    if not found:
        return ""
    return clean(found[0].partition(" ")[0], 16) + (f" +{len(found) - 1}" if len(found) > 1 else "")


def _lead(found: Mapping[str, Trends]) -> str:
    """Alarms of this night, of every metric that is drawn, and the last change of level of each cell."""
    alarms, changes = _alarms(found), _changes(found)
    parts = [f"Two nights running, {'; '.join(alarms)}"] if alarms else ["No alarm"] if any(found.values()) else []
    if changes:
        more = f"; and {len(changes) - 5} more cells" if len(changes) > 5 else ""
        parts.append(f"The last change of level: {'; '.join(changes[:5])}{more}")
    return " ".join(f"{part}." for part in parts)


def _alarms(found: Mapping[str, Trends]) -> list[str]:
    """``dp4 eager takes more than in the nights before (device work, step)``."""
    metrics: dict[str, list[str]] = {}
    for name, trend in (pair for trends in found.values() for pair in trends):
        if trend.tonight is not None and trend.values[-1] is not None and trend.tonight.word in _SIDES:
            metrics.setdefault(f"{name} takes {_SIDES[trend.tonight.word]}", []).append(_what(trend))
    return [f"{said} than in the nights before ({', '.join(names)})" for said, names in metrics.items()]


def _changes(found: Mapping[str, Trends]) -> list[str]:
    """Of each cell the last one of any metric; of those of one night that of the first metric."""
    moved: dict[str, list[Trend]] = {}
    for name, trend in (pair for trends in found.values() for pair in trends):
        if trend.changes:
            moved.setdefault(name, []).append(trend)
    last = {name: max(trends, key=lambda trend: trend.changes[-1].index) for name, trends in moved.items()}
    return [f"{name} {_what(trend)} {change_text(trend, len(trend.changes) - 1)}" for name, trend in last.items()]


def _what(trend: Trend) -> str:
    """The metric's name without its unit."""
    return titled(trend.metric).partition(",")[0]
