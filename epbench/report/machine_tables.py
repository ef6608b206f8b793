"""What is known of the machine that a run was measured on, as tables: checks, the canary, its GPUs."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from epbench.records import GpuTelemetry, RunView, Sitting, Spread
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, join, number, percent
from epbench.runner.sitting import differences

__all__ = ["canary_table", "checks_table", "gpu_table", "warnings_table"]


def checks_table(view: RunView) -> Table | None:
    """The checks of every sitting that were not ok; None if all were, or none was made."""
    rows = [
        (Value(str(at), at), *(Value(clean(text, 600)) for text in (check.status, check.name, check.found, check.fix)))
        for at, sitting in enumerate(view.run.sittings, start=1)
        for check in sitting.checks
        if check.status != "ok"
    ]
    return Table.of(("sitting", "status", "check", "found", "what to do"), rows, texts=5) if rows else None


def warnings_table(view: RunView) -> Table | None:
    """What each sitting found doubtful, in its words; None if nothing."""
    rows = [
        (Value(str(at), at), Value(clean(sitting.started, 60)), Value(clean(text, 1000)))
        for at, sitting in enumerate(view.run.sittings, start=1)
        for text in sitting.warnings
    ]
    return Table.of(("sitting", "began", "warning"), rows, texts=3) if rows else None


def canary_table(view: RunView) -> Table | None:
    """The same work before and after each sitting; None where there was no canary."""
    rows = [row for at, one in enumerate(view.run.sittings, start=1) for row in _canary_rows(at, one)]
    titles = ("sitting", "work", "before, ms", "after, ms", "change", "judged")
    return Table(titles, tuple(rows), (False, False, True, True, True, False)) if rows else None


def _canary_rows(at: int, sitting: Sitting) -> Iterator[tuple[Value, ...]]:
    before, after = (found.seconds if found else {} for found in (sitting.canary_before, sitting.canary_after))
    for work in dict.fromkeys([*before, *after]):
        old, new = before.get(work), after.get(work)
        change = new.median / old.median - 1 if old and new and old.median > 0 else None
        yield (
            Value(str(at), at),
            Value(clean(work, 60)),
            _milliseconds(old),
            _milliseconds(new),
            Value(UNKNOWN if change is None else f"{100 * change:+.1f} %", change),
            Value(_judged(sitting, work)),
        )


def _judged(sitting: Sitting, work: str) -> str:
    """As the run judged it: what changed beyond doubt carries a warning."""
    before, after = sitting.canary_before, sitting.canary_after
    if before is None or after is None or not (work in before.seconds and work in after.seconds):
        return "no pair to compare"
    kept = [found.model_copy(update={"seconds": {work: found.seconds[work]}}) for found in (before, after)]
    return "changed" if differences(*kept) else "no change beyond doubt"


def _milliseconds(spread: Spread | None) -> Value:
    if spread is None:
        return Value(UNKNOWN)
    bounds = f" [{number(1e3 * spread.low)}, {number(1e3 * spread.high)}]"
    return Value(number(1e3 * spread.median) + bounds, spread.median)


def gpu_table(view: RunView) -> Table | None:
    """A row for each GPU over the valid launches that were watched; None without telemetry."""
    watched: dict[str, list[GpuTelemetry]] = defaultdict(list)
    for launch in (launch for cell in view.cells for launch in cell.launch_values):
        for gpu in launch.telemetry.gpus if launch.valid and launch.telemetry else ():
            watched[gpu.uuid].append(gpu)
    if not watched:
        return None
    titles = (
        "GPU",
        "held back by",
        "launches",
        "SM clock, MHz",
        "memory clock, MHz",
        "power, W",
        "temperature, °C",
        "utilisation",
        "limited by power, s",
        "limited by heat, s",
    )
    return Table.of(titles, [_gpu_row(uuid, found) for uuid, found in watched.items()], texts=2)


def _gpu_row(uuid: str, found: Sequence[GpuTelemetry]) -> tuple[Value, ...]:
    return (
        Value(clean(uuid, 60)),
        Value(_reasons(found)),
        Value(str(len(found)), len(found)),
        _range([one.sm_clock_mhz for one in found]),
        _range([one.memory_clock_mhz for one in found]),
        _range([one.power_w for one in found]),
        _range([one.temperature_c for one in found]),
        _range([one.utilization for one in found], scale=100, unit=" %"),
        _sum([one.power_violation_s for one in found]),
        _sum([one.thermal_violation_s for one in found]),
    )


def _range(spreads: Sequence[Spread | None], *, scale: float = 1.0, unit: str = "") -> Value:
    """The median launch's median, with the lowest and highest sample of all launches."""
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return Value(UNKNOWN)
    middle = sorted(spread.median for spread in known)[len(known) // 2]
    low, high = min(spread.low for spread in known), max(spread.high for spread in known)
    return Value(f"{scale * middle:.0f} [{scale * low:.0f}, {scale * high:.0f}]{unit}", middle)


def _sum(seconds: Sequence[float | None]) -> Value:
    known = [one for one in seconds if one is not None]
    return Value(number(sum(known)), sum(known)) if known else Value(UNKNOWN)


def _reasons(found: Sequence[GpuTelemetry]) -> str:
    """Each reason but idleness with its largest share of a launch's samples."""
    if all(one.clock_reasons is None for one in found):
        return UNKNOWN
    shares: dict[str, float] = {}
    for name, share in ((name, share) for one in found for name, share in (one.clock_reasons or {}).items()):
        shares[name] = max(share, shares.get(name, 0.0))
    told = [f"{clean(name, 60)} (up to {percent(share)})" for name, share in shares.items() if name != "idle" and share]
    return join(told) if told else "nothing"
