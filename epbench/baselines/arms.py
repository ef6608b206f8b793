"""A baseline as one side of a comparison: the arm of each cell, and what a person has acknowledged."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase

from epbench.analysis.arms import MIN_NIGHTS, Arm, Night
from epbench.baselines.records import Acknowledgement, Baseline, BaselineRun, Entry, EntryKey, torch_minor
from epbench.cell_content import content_key
from epbench.errors import NotComparableError
from epbench.gate_records import CellVerdict
from epbench.records import CellResult, RunView
from epbench.wording import shown

_ACCEPT = "epbench baseline accept RUN"

__all__ = ["acknowledge", "arm_of_entry", "arms_for", "entry_key", "missing_from", "without_run"]


def entry_key(cell: CellResult, view: RunView) -> EntryKey:
    """The key of a run's cell."""
    machine = view.environment
    return content_key(cell), machine.device, machine.device_name, torch_minor(machine.torch), view.protocol


def arms_for(baseline: Baseline, view: RunView) -> dict[str, Arm]:
    """The arm of each cell of a run that the baseline has on this kind of machine, by the cell's id in the run.

    A cell without an entry is in no arm: it is new. Raises NotComparableError with every difference if the baseline is
    of another scenario, or has no entry at all of this GPU model and protocol.
    """
    _require_comparable(baseline, view)
    known = baseline.by_key()
    found = {cell.cell: known.get(entry_key(cell, view)) for cell in view.cells}
    return {cell: arm_of_entry(entry) for cell, entry in found.items() if entry is not None}


def without_run(baseline: Baseline, view: RunView) -> Baseline:
    """The baseline without what it holds of this run, which says nothing of itself."""
    known = ((entry, [run for run in entry.runs if run.started != view.run.started]) for entry in baseline.entries)
    entries = [entry.model_copy(update={"runs": runs}) for entry, runs in known if runs]
    return baseline.model_copy(update={"entries": entries})


def missing_from(baseline: Baseline, view: RunView) -> list[tuple[CellResult, Arm]]:
    """Cells that the baseline has on this kind of machine and the run has not, without numbers, with their arms."""
    here = {entry_key(cell, view) for cell in view.cells}
    machine = view.environment
    kind = (machine.device, machine.device_name, torch_minor(machine.torch), view.protocol)
    gone = [entry for entry in baseline.entries if entry.key[1:] == kind and entry.key not in here]
    return [(_cell_of(entry), arm_of_entry(entry)) for entry in gone]


def arm_of_entry(entry: Entry) -> Arm:
    """The runs of an entry as an arm of so many nights; it settles until it has ``MIN_NIGHTS`` of them."""
    last = entry.runs[-1]
    nights = tuple(_night(run) for run in entry.runs if run.outcome == "ok")
    return Arm(
        outcome=last.outcome,
        reason=last.reason,
        expected=entry.expected,
        nights=nights,
        is_settling=len(nights) < MIN_NIGHTS,
    )


def _night(run: BaselineRun) -> Night:
    timings: dict[str, dict[Hashable, float]] = {
        metric: {(run.run, place): value for place, value in enumerate(values)}
        for metric, values in run.timings.items()
    }
    return Night(timings=timings, counters=run.counters)


def _cell_of(entry: Entry) -> CellResult:
    return CellResult(
        cell=entry.cell,
        layout=entry.layout,
        mode=entry.mode,
        routing=entry.routing,
        model=entry.model,
        train=entry.train,
        outcome=None,
        reason="not in this run",
        expected=entry.expected,
        world_size=entry.world_size,
    )


def _require_comparable(baseline: Baseline, view: RunView) -> None:
    machine = view.environment
    differences = [] if baseline.scenario == view.run.name else [("scenario", baseline.scenario, view.run.name)]
    kinds = {(entry.device_name, entry.protocol) for entry in baseline.entries}
    if baseline.entries and (machine.device_name, view.protocol) not in kinds:
        names, protocols = sorted({kind[0] for kind in kinds}), sorted({kind[1] for kind in kinds})
        differences += _unless_in("GPU model" if machine.device == "cuda" else "device", names, machine.device_name)
        differences += _unless_in("protocol", protocols, view.protocol)
        if not differences:
            differences.append(("GPU model and protocol together", "others", f"{machine.device_name}, {view.protocol}"))
    if differences:
        listed = "; ".join(f"{what}: {shown(there)} there, {shown(here)} here" for what, there, here in differences)
        is_other = baseline.scenario != view.run.name
        advice = (
            "give --baseline FILE of the run's own" if is_other else f"accept a run of this kind first, with: {_ACCEPT}"
        )
        raise NotComparableError(f"the baseline says nothing of this run ({listed}): {advice}")


def _unless_in(what: str, known: Sequence[object], here: object) -> list[tuple[str, str, str]]:
    return [] if here in known else [(what, ", ".join(map(str, known)), str(here))]


# ---------------------------------------------------------------- acknowledgements


@dataclass(frozen=True)
class Acknowledged:
    """Verdicts with what was acknowledged of them, and a sentence for each acknowledgement that holds no longer."""

    cells: list[CellVerdict]
    warnings: list[str]


def acknowledge(
    cells: Iterable[CellVerdict], baseline: Baseline, view: RunView, *, today: date | None = None
) -> Acknowledged:
    """Mark verdicts ``regression`` and ``broken`` with the reason that a person gave, if it covers all that regressed.

    One without a metric covers whatever regresses; with metrics, each regressed one must be covered. One whose day
    has passed (UTC) covers nothing and is told as long as the cell regresses.
    """
    known = baseline.by_key()
    entries = {cell.cell: known.get(entry_key(cell, view)) for cell in view.cells}
    day = (today or datetime.now(UTC).date()).isoformat()
    told: list[str] = []
    marked = []
    for verdict in cells:
        entry = entries.get(verdict.cell)
        is_bad = entry is not None and verdict.word in ("regression", "broken")
        found = entry.acknowledged if entry is not None and is_bad else []
        reason = _covering(verdict, [one for one in found if one.until is None or day <= one.until])
        told += [_expired(verdict, one) for one in found if one.until is not None and one.until < day and not reason]
        marked.append(verdict.model_copy(update={"acknowledged": reason}) if reason else verdict)
    return Acknowledged(marked, told)


def _covering(verdict: CellVerdict, given: Sequence[Acknowledgement]) -> str | None:
    """The reasons that together cover the verdict; None if they do not."""
    whole = [one.reason for one in given if one.metric is None]
    if whole:
        return whole[-1]
    bad = [change.metric for change in verdict.metrics if change.gated and change.word == "regression"]
    by_metric = [[one.reason for one in given if fnmatchcase(metric, one.metric or "")] for metric in bad]
    if verdict.word == "broken" or not bad or not all(by_metric):
        return None
    return "; ".join(dict.fromkeys(reasons[-1] for reasons in by_metric))


def _expired(verdict: CellVerdict, one: Acknowledgement) -> str:
    return f"the acknowledgement of {verdict.cell} ended on {one.until}: {one.reason}"
