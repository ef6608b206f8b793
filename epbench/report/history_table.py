"""A history in a terminal: what `epbench history show` prints, as a table or as one document."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from epbench.analysis.rolling import LIMIT, WINDOW, K
from epbench.errors import RunError
from epbench.gate_records import COUNTERS
from epbench.history.series import RECENT, Series, Trend, changes_since, trend_of
from epbench.report.tables import Table, Value
from epbench.report.terminal import drawn
from epbench.report.text import UNKNOWN, clean, gib, interval, ms, number

__all__ = [
    "ALARM_WORDS",
    "amount",
    "change_text",
    "history_json",
    "render_history",
    "since_text",
    "titled",
    "trends_of",
    "unit",
]

_PREFERRED = ("device_work_s", "step_s", "seconds")  # the first that a series has
_NAMES = {
    "device_work_s": "device work",
    "step_s": "step",
    "exposed_s": "exposed communication",
    "compile_s": "compiling",
    "peak_allocated_bytes": "peak allocated",
}
_NIGHTS = 30  # rows of the table of one series
ALARM_WORDS = {
    "slower": "ALARM: more",
    "faster": "ALARM: less",
    "quiet": "quiet",
    "too few nights": "too few nights",
}


def trends_of(series: Sequence[Series], metric: str | None, *, limit: float = LIMIT) -> list[Trend]:
    """A trend of each series that has the metric, or of its device work, else its step time.

    Raises RunError if none has it.
    """
    wanted = [(one, metric or _preferred(one)) for one in series]
    found = [trend_of(one.recent(), name, limit=limit) for one, name in wanted if name in one.metrics]
    if series and not found:
        known = sorted({name for one in series for name in one.metrics})
        raise RunError(f"no night has '{clean(metric or 'a time', 60)}'; metrics: {', '.join(clean(n) for n in known)}")
    return found


def _preferred(series: Series) -> str:
    return next((name for name in _PREFERRED if name in series.metrics), "step_s")


def render_history(trends: Sequence[Trend], *, limit: float = LIMIT) -> str:
    """A row for each trend, and the nights where there is only one."""
    if not trends:
        return "This history has no night.\n"
    table = drawn(Table.of(_TITLES, [_row(trend) for trend in trends], texts=2))
    changes = [line for trend in trends for line in _change_lines(trend)]
    nights = [drawn(nights_table(trends[0], count=_NIGHTS))] if len(trends) == 1 else []
    return "\n\n".join(part for part in (table, "\n".join(changes), *nights, _legend(limit)) if part) + "\n"


_TITLES = ("cell", "of", "nights", "last", "window", "difference", "deviation", "tonight")


def _row(trend: Trend) -> tuple[Value, ...]:
    last = next((value for value in reversed(trend.values) if value is not None), None)
    now = trend.tonight
    ratio = now.ratio if now else None
    deviation = now.deviation if now else None
    return (
        Value(clean(trend.series.name, 80)),
        Value(clean(trend.metric, 60)),
        Value(str(sum(value is not None for value in trend.values))),
        Value(amount(trend.metric, last), last),
        Value(amount(trend.metric, now.median if now else None)),
        Value(UNKNOWN if ratio is None else f"{100 * (ratio - 1):+.1f} %", ratio),
        Value(UNKNOWN if deviation is None else f"{100 * deviation:.2f} %", deviation),
        Value(_tonight_text(trend)),
    )


def _tonight_text(trend: Trend) -> str:
    if trend.tonight is None:
        return "no value"
    if trend.values[-1] is None:
        return f"no value ({clean(trend.series.nights[-1].outcome, 20)})"
    word = ALARM_WORDS[trend.tonight.word]
    return "beyond, wait for the next" if word == "quiet" and trend.tonight.is_beyond else word


def unit(metric: str) -> str:
    """``ms`` of what is in seconds, ``GiB`` of peaks, nothing of counts."""
    if metric == "peak_allocated_bytes":
        return "GiB"
    return "" if metric in COUNTERS else "ms"


def amount(metric: str, value: float | None) -> str:
    """A value of a metric with its unit."""
    if value is None:
        return UNKNOWN
    kind = unit(metric)
    return f"{ms(value)} ms" if kind == "ms" else f"{gib(value)} GiB" if kind == "GiB" else number(value, 6)


def _change_lines(trend: Trend) -> list[str]:
    since = changes_since(trend.series)
    return [
        f"{clean(trend.series.name, 80)}, {clean(trend.metric, 60)}: {change_text(trend, at)}"
        + (f"; that night {since_text(since[change.index])}" if since[change.index] else "")
        for at, change in enumerate(trend.changes)
    ]


def change_text(trend: Trend, at: int) -> str:
    """``+3.1 % from 2026-11-20 (run x) on, p 0.005``."""
    change = trend.changes[at]
    night = trend.series.nights[change.index]
    run = clean(night.run, 60)
    return f"{100 * (change.ratio - 1):+.1f} % from {clean(night.started[:10])} on ({run}), p {change.p:.3f}"


def since_text(found: Sequence[str]) -> str:
    """What changed from one night to the next, in one line."""
    return "; ".join(clean(one, 80) for one in found)


def nights_table(trend: Trend, *, count: int) -> Table:
    """The last nights of a trend, the newest last."""
    changed = {change.index: at for at, change in enumerate(trend.changes)}
    since = changes_since(trend.series)
    intervals = trend.series.intervals(trend.metric)
    rows = []
    for at in range(max(0, len(trend.values) - count), len(trend.values)):
        night, found = trend.series.nights[at], intervals[at]
        said = [ALARM_WORDS[trend.alarms[at]]] if at in trend.alarms else []
        said += [f"new level: {change_text(trend, changed[at])}"] if at in changed else []
        rows.append(
            (
                Value(clean(night.started[:16], 40)),
                Value(clean(night.run, 60)),
                Value(clean(night.outcome, 20)),
                Value(_bounds(trend.metric, found), found.value if found else None),
                Value(str(len(night.timings.get(trend.metric, ())) or UNKNOWN)),
                Value("; ".join([*said, *since[at]])),
            )
        )
    titles = ("started", "run", "outcome", titled(trend.metric), "launches", "what changed")
    return Table(titles, tuple(rows), (False, False, False, True, True, False))


def titled(metric: str) -> str:
    """``device work, ms``."""
    name, kind = _NAMES.get(metric, metric), unit(metric)
    return f"{name}, {kind}" if kind else name


def _bounds(metric: str, found: object) -> str:
    from epbench.analysis.statistics import Interval

    if not isinstance(found, Interval):
        return UNKNOWN
    scale = {"ms": 1e3, "GiB": 2.0**-30}.get(unit(metric), 1.0)
    return interval(found.value, found.low, found.high, scale=scale)


def _legend(limit: float) -> str:
    return (
        f"Tonight against the median of up to {WINDOW} nights before it and its neighbour: an alarm is two nights\n"
        f"running on one side by more than {K:g} robust deviations and {100 * limit:g} %. Changes of level are\n"
        f"searched in the last {RECENT} nights (E-divisive, permutation test at 1 %)."
    )


def history_json(trends: Sequence[Trend]) -> str:
    """The same as one JSON document, every night included."""
    return json.dumps({"series": [_document(trend) for trend in trends]}, indent=2)


def _document(trend: Trend) -> dict[str, object]:
    series = trend.series
    nights = [
        {"run": night.run, "started": night.started, "outcome": night.outcome, "value": value, "changed": changed}
        for night, value, changed in zip(series.nights, trend.values, changes_since(series), strict=True)
    ]
    return {
        "scenario": series.scenario,
        "cell": series.cell.cell,
        "name": series.name,
        "device_name": series.environments[-1].device_name,
        "protocol": series.environments[-1].protocol,
        "metric": trend.metric,
        "tonight": asdict(trend.tonight) if trend.tonight else None,
        "changes": [asdict(change) | {"run": series.nights[change.index].run} for change in trend.changes],
        "alarms": [{"run": series.nights[at].run, "word": word} for at, word in trend.alarms.items()],
        "nights": nights,
    }
