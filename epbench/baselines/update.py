"""What accepting a run would make of a baseline, cell by cell, and the baseline that it would make.

The gate itself decides whether a cell changed: a run is added only where it found neither a regression nor an
improvement, and the cell ends as it did. Anything else is a new level, which a person must ask for; the old runs are
dropped then, for nights of two levels say nothing about one. Runs that scatter are added like any other: leaving them
out would make the baseline look quieter than the machine is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from epbench.analysis.arms import MIN_NIGHTS, arm_of
from epbench.analysis.gate import Pair, judge
from epbench.analysis.noise import machine_starts
from epbench.analysis.statistics import MIN_LAUNCHES
from epbench.baselines.arms import arm_of_entry, entry_key
from epbench.baselines.records import KEPT_RUNS, Baseline, BaselineRun, Entry, EntryKey, Level, torch_minor
from epbench.cell_content import with_defaults
from epbench.cells import fits
from epbench.errors import NotComparableError, RunError
from epbench.gate_records import CellVerdict, GateSpec, MetricChange
from epbench.records import CellResult, RunView
from epbench.wording import shown, suggestion

__all__ = ["Action", "Proposal", "Proposed", "propose"]

Action = Literal["new", "added", "new level", "changed", "there", "left out"]
_DIGEST = 12  # characters of a digest that are kept
_GPU = 12


@dataclass(frozen=True)
class Proposed:
    """What becomes of one cell. ``changed`` is a change that nobody has asked to accept."""

    cell: CellResult
    action: Action
    why: str
    runs: int  # of the entry afterwards
    change: MetricChange | None = None  # of the gated timing, against the entry


@dataclass(frozen=True)
class Proposal:
    """What becomes of all cells, and the baseline with those that are accepted."""

    baseline: Baseline
    cells: list[Proposed]

    @property
    def refused(self) -> list[Proposed]:
        """Cells that changed and were not asked to be reset."""
        return [one for one in self.cells if one.action == "changed"]


def propose(
    baseline: Baseline | None, view: RunView, name: str, *, only: str = "*", reset: bool = False, reason: str = ""
) -> Proposal:
    """What accepting a run, whose directory is called ``name``, would change.

    ``only`` are globs on cell ids; ``reset`` starts a new level where a cell changed. Raises RunError if no cell
    matches, NotComparableError if the baseline is of another scenario.
    """
    known = baseline or Baseline(scenario=view.run.name)
    if known.scenario != view.run.name:
        raise NotComparableError(
            f"the baseline is of scenario {shown(known.scenario)} and the run of {shown(view.run.name)}: "
            "give --baseline FILE of the run's own"
        )
    cells = [with_defaults(cell) for cell in _selected(view, only)]
    entries = known.by_key()
    verdicts = _judged(cells, view, entries)
    step = _Step(view, name, reset, reason, datetime.now(UTC).date().isoformat())
    found = [step.of(cell, entries.get(entry_key(cell, view)), verdicts.get(cell.cell)) for cell in cells]
    entries |= {entry.key: entry for entry, _ in found if entry is not None}
    return Proposal(known.model_copy(update={"entries": list(entries.values())}), [one for _, one in found])


def _selected(view: RunView, only: str) -> list[CellResult]:
    found = [cell for cell in view.cells if fits(cell.cell, only)]
    if not found:
        known = [cell.cell for cell in view.cells]
        raise RunError(f"no cell of this run matches {shown(only)}{suggestion(only, known[:20])}")
    return found


def _judged(cells: Sequence[CellResult], view: RunView, entries: Mapping[EntryKey, Entry]) -> dict[str, CellVerdict]:
    """The gate's verdict of each cell that has an entry."""
    arms = {cell.cell: entries.get(entry_key(cell, view)) for cell in cells}
    pairs = [
        Pair(cell, cell.cell, arm_of_entry(entry), arm_of(cell, source=view.run.started))
        for cell in cells
        if (entry := arms[cell.cell]) is not None
    ]
    return {verdict.cell: verdict for verdict in judge(pairs, view.run.gate or GateSpec()).cells}


@dataclass(frozen=True)
class _Step:
    """What is the same for all cells of a run that is to be accepted."""

    view: RunView
    name: str
    is_reset: bool
    reason: str
    date: str

    def of(self, cell: CellResult, entry: Entry | None, verdict: CellVerdict | None) -> tuple[Entry | None, Proposed]:
        """The entry of a cell afterwards, None if it stays as it was, and what is said of it."""
        refusal = _refusal(cell)
        if refusal:
            return None, Proposed(cell, "left out", refusal, len(entry.runs) if entry else 0)
        run = _run_of(cell, self.view, self.name)
        if entry is None:
            return _new_entry(cell, self.view, run), Proposed(cell, "new", _settles(1, run), 1)
        change = _primary(verdict)
        if any(known.run == run.run and known.started == run.started for known in entry.runs):
            return None, Proposed(cell, "there", "this run was accepted before", len(entry.runs), change)
        changed = _changed(entry, run, verdict, self.view.run.gate or GateSpec())
        if not changed:
            runs = [*entry.runs, run][-KEPT_RUNS:]
            grown = entry.model_copy(update={"runs": runs, "cell": cell.cell, "expected": cell.expected})
            return grown, Proposed(cell, "added", _settles(len(runs), run), len(runs), change)
        if not self.is_reset:
            return None, Proposed(cell, "changed", changed, len(entry.runs), change)
        return self._reset(cell, entry, run, changed, change)

    def _reset(
        self, cell: CellResult, entry: Entry, run: BaselineRun, changed: str, change: MetricChange | None
    ) -> tuple[Entry, Proposed]:
        level = Level(
            date=self.date,
            run=run.run,
            reason=self.reason or changed,
            ratio=change.ratio if change else None,
            dropped=len(entry.runs),
        )
        kept = {"runs": [run], "levels": [*entry.levels, level], "acknowledged": []}
        started = entry.model_copy(update=kept | {"cell": cell.cell, "expected": cell.expected})
        return started, Proposed(cell, "new level", changed, 1, change)


def _refusal(cell: CellResult) -> str:
    """Why a cell says nothing that a later run could be judged by; empty if it does."""
    if cell.outcome in (None, "interrupted", "unstable", "skipped"):
        return f"it is {cell.outcome or 'not run'}"
    launches = sum(launch.valid for launch in cell.launch_values)
    if cell.outcome == "ok" and launches < MIN_LAUNCHES:
        return f"it has {launches} valid launch{'es' * (launches != 1)}, {MIN_LAUNCHES} are needed"
    return ""


def _settles(runs: int, run: BaselineRun) -> str:
    if run.outcome != "ok":
        return f"it is {run.outcome}"
    return "" if runs >= MIN_NIGHTS else f"{runs} of {MIN_NIGHTS} runs: nothing fails by it yet"


def _changed(entry: Entry, run: BaselineRun, verdict: CellVerdict | None, spec: GateSpec) -> str:
    """In what the cell is another than in its entry; empty if in nothing that the gate can tell.

    Of an entry that is settling nothing is gated yet, and what will be gated counts: nights of two levels would make a
    baseline that scatters too much to find anything.
    """
    if entry.outcome != run.outcome:
        return f"was {entry.outcome}, is {run.outcome}"
    later = {spec.primary, *spec.also, *spec.allowed} if len(entry.runs) < MIN_NIGHTS else set()
    metrics = [one for one in (verdict.metrics if verdict else ()) if one.gated or one.metric in later]
    moved = [one for one in metrics if one.word in ("regression", "improvement")]
    return "; ".join(f"{one.metric} {_percent(one.ratio)} ({one.word})" for one in moved)


def _percent(ratio: float | None) -> str:
    return "is new" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def _primary(verdict: CellVerdict | None) -> MetricChange | None:
    """The first gated timing that has a ratio."""
    gated = [one for one in (verdict.metrics if verdict else ()) if one.kind == "timing" and one.ratio is not None]
    return next((one for one in gated if one.gated), gated[0] if gated else None)


def _new_entry(cell: CellResult, view: RunView, run: BaselineRun) -> Entry:
    machine = view.environment
    return Entry(
        cell=cell.cell,
        layout=cell.layout,
        mode=cell.mode,
        routing=cell.routing,
        world_size=cell.world_size,
        device=machine.device,
        device_name=machine.device_name,
        torch=torch_minor(machine.torch),
        protocol=view.protocol,
        model=cell.model,
        train=cell.train,
        expected=cell.expected,
        runs=[run],
    )


def _run_of(cell: CellResult, view: RunView, name: str) -> BaselineRun:
    machine = view.environment
    assert cell.outcome is not None, "a cell that was not run is left out"
    night = next(iter(arm_of(cell, source=name).nights), None) if cell.outcome == "ok" else None
    return BaselineRun(
        run=name,
        started=view.run.started,
        outcome=cell.outcome,
        reason=cell.reason,
        environment=machine.digest[:_DIGEST],
        code=machine.code[:_DIGEST],
        torch=machine.torch,
        driver=machine.driver,
        machine=_machine(cell),
        timings={} if night is None else {key: list(values.values()) for key, values in night.timings.items()},
        counters={} if night is None else dict(night.counters),
    )


def _machine(cell: CellResult) -> list[str]:
    """Machine starts of the cell's launches: hosts, and the first characters of their GPUs."""
    starts = dict.fromkeys(wide for wide in machine_starts(cell.launch_values).values() if any(wide))
    return [" ".join([*names, *(gpu[:_GPU] for gpu in gpus)]) for names, gpus in starts]
