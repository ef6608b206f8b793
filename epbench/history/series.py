"""A history as series: one cell on one GPU model under one protocol, night after night, oldest first.

Nights of another GPU model or protocol are never compared, so they are another series. What else changed from one
night to the next (torch, CUDA, NCCL, driver, Python, epbench's code, the machine) is no reason to part a series but
the first suspect of a change in it: see :func:`changes_since`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median

from epbench.analysis.change_points import ChangePoint, change_points
from epbench.analysis.rolling import LIMIT, K, Tonight, Word, alarms, tonight
from epbench.analysis.statistics import Interval, launch_interval
from epbench.cell_content import content_key
from epbench.errors import RunError
from epbench.history.lines import CellLine, EnvironmentLine, HistoryFile, NightLine, history_files, read_history
from epbench.wording import place, shown, suggestion

__all__ = [
    "RECENT",
    "Series",
    "Trend",
    "changes_since",
    "damage_text",
    "matching",
    "read_store",
    "require_metrics",
    "selected",
    "series_of",
    "trend_of",
]

RECENT = 90  # nights that are searched for changes and drawn: more would take long and say little of tonight

SOFTWARE: Mapping[str, Callable[[EnvironmentLine], str | None]] = {
    "torch": lambda machine: machine.torch,
    "CUDA": lambda machine: machine.cuda,
    "NCCL": lambda machine: machine.nccl,
    "driver": lambda machine: machine.driver,
    "Python": lambda machine: machine.python,
    "code": lambda machine: machine.code,
}


@dataclass(frozen=True)
class Series:
    """Nights of one cell, oldest first; ``environments`` are those of the nights."""

    scenario: str
    cell: CellLine
    nights: tuple[NightLine, ...]
    environments: tuple[EnvironmentLine, ...]

    @property
    def name(self) -> str:
        """Layout, mode and routing, the usual one left out."""
        parts = (self.cell.layout, self.cell.mode, "" if self.cell.routing == "natural" else self.cell.routing)
        return " ".join(part for part in parts if part)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Those that any night has: timings first, then counters."""
        timings = dict.fromkeys(name for night in self.nights for name in night.timings)
        counters = dict.fromkeys(name for night in self.nights for name in night.counters)
        return (*timings, *(name for name in counters if name not in timings))

    def values(self, metric: str) -> list[float | None]:
        """Of each night the median over launches, or a counter's value; None for a night without."""
        return [_value(night, metric) for night in self.nights]

    def intervals(self, metric: str) -> list[Interval | None]:
        """The same with the 95 % interval over launches, where there are three or more."""
        return [_interval(night, metric) for night in self.nights]

    def recent(self, count: int = RECENT) -> "Series":
        """Only the last nights."""
        return Series(self.scenario, self.cell, self.nights[-count:], self.environments[-count:])


@dataclass(frozen=True)
class Trend:
    """What is said of one metric of a series; places are those of its nights."""

    series: Series
    metric: str
    values: tuple[float | None, ...]
    changes: tuple[ChangePoint, ...]
    alarms: Mapping[int, Word]
    tonight: Tonight | None  # None: no night has a value


def trend_of(series: Series, metric: str, *, k: float = K, limit: float = LIMIT) -> Trend:
    """Changes of level, alarms, and tonight against the window before it."""
    values = series.values(metric)
    return Trend(
        series,
        metric,
        tuple(values),
        tuple(change_points(values)),
        alarms(values, k=k, limit=limit),
        tonight(values, k=k, limit=limit),
    )


def series_of(found: HistoryFile) -> list[Series]:
    """All series of a file, in the order in which their cells were first seen."""
    nights: dict[tuple[str, str, int], list[NightLine]] = {}
    content = {key: content_key(cell) for key, cell in found.cells.items()}
    for night in found.nights.values():
        machine = found.environments[night.environment]
        key = (content[night.cell], machine.device_name, machine.protocol)
        nights.setdefault(key, []).append(night)
    return [_series(found, lines) for lines in nights.values()]


def _series(found: HistoryFile, lines: Iterable[NightLine]) -> Series:
    nights = tuple(sorted(lines, key=lambda night: (night.started, night.run)))
    machines = tuple(found.environments[night.environment] for night in nights)
    return Series(found.scenario, found.cells[nights[-1].cell], nights, machines)


def read_store(store: Path) -> tuple[list[Series], list[str]]:
    """All series of a store and what could not be read of it, as sentences. Raises RunError as its files do."""
    files = {path: read_history(path) for path in history_files(store)}
    warnings = [damage_text(path, found) for path, found in files.items() if found.damaged]
    return [one for found in files.values() for one in series_of(found)], warnings


def damage_text(path: Path, found: HistoryFile) -> str:
    """How many lines of a file were left out, as a sentence without its stop."""
    is_one = found.damaged == 1
    lines, are = ("line", "is") if is_one else ("lines", "are")
    return f"{found.damaged} {lines} of '{place(path)}' cannot be read and {are} left out"


def matching(series: Sequence[Series], glob: str) -> list[Series]:
    """Series whose cell id, name or scenario:name matches. Raises RunError if none does."""
    found = [one for one in series if any(name == glob or fnmatchcase(name, glob) for name in _names(one))]
    if series and not found:
        known = sorted({one.cell.cell for one in series})
        raise RunError(f"no cell of this history matches {shown(glob)}{suggestion(glob, known[:20])}")
    return found


def _names(series: Series) -> tuple[str, ...]:
    return series.cell.cell, series.name, f"{series.scenario}:{series.name}"


def changes_since(series: Series) -> list[list[str]]:
    """Of each night what of the software differs from the night before: ``torch 2.11.0 -> 2.12.0``; first: nothing."""
    return [[], *(_changes(before, after) for before, after in pairwise(series.environments))]


def _changes(before: EnvironmentLine, after: EnvironmentLine) -> list[str]:
    pairs = ((what, of(before), of(after)) for what, of in SOFTWARE.items())
    return [f"{what} {_short(old)} \N{RIGHTWARDS ARROW} {_short(new)}" for what, old, new in pairs if old != new]


def _short(text: str | None) -> str:
    return (text or "none")[:24]


def _value(night: NightLine, metric: str) -> float | None:
    launches = night.timings.get(metric)
    if launches:
        return median(launches)
    return night.counters.get(metric)


def _interval(night: NightLine, metric: str) -> Interval | None:
    launches = night.timings.get(metric)
    if launches and min(launches) > 0:
        return launch_interval(launches)
    value = _value(night, metric)
    return None if value is None else Interval(value)


def require_metrics(series: Sequence[Series], metrics: Sequence[str] | None) -> None:
    """Raises RunError if no night has one of these."""
    known = sorted({name for one in series for name in one.metrics})
    for metric in metrics or ():
        if metric not in known:
            raise RunError(f"no night has {shown(metric)}{suggestion(metric, known)}")


def selected(store: Path, *, scenario: str | None, cell: str) -> tuple[list[Series], list[str]]:
    """Series of a store by scenario and :func:`matching`, and warnings. Raises RunError if nothing is left."""
    series, warnings = read_store(store)
    if scenario is not None:
        names = sorted({one.scenario for one in series})
        if scenario not in names:
            raise RunError(f"this history has no scenario {shown(scenario)}{suggestion(scenario, names)}")
        series = [one for one in series if one.scenario == scenario]
    return matching(series, cell), warnings
