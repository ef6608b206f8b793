"""From runs on disk to a verdict: which cells belong together, which launches count, and in what else the arms differ.

With looks fixed in advance a cell is judged at the last look that its launches reached in both arms, at the alpha of
one look, by the launches of that look and no others: whoever looks more often than was said finds changes that are not
there. A cell that has not reached the first look is inconclusive.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from epbench.ab_records import open_ab
from epbench.analysis.arms import Arm, arm_of, rounds_of
from epbench.analysis.gate import Judged, Pair, judge, worst
from epbench.analysis.statistics import launch_interval
from epbench.baselines.arms import acknowledge, arms_for, missing_from, without_run
from epbench.baselines.file import read_baseline
from epbench.baselines.records import Baseline, BaselineRun
from epbench.cell_content import content_key
from epbench.errors import NotComparableError
from epbench.gate_records import ArmRecord, CellVerdict, EnvironmentDifference, GateSpec, MetricChange, Verdict
from epbench.records import SCHEMA_VERSION, CellResult, RunView
from epbench.report.comparison import Naming
from epbench.report.gate.words import exit_code_of, summary_of
from epbench.report.provenance import provenance_diff
from epbench.report.text import clean
from epbench.store import open_run
from epbench.wording import shown

__all__ = ["DEFAULT_FAIL_ON", "gate_ab", "gate_baseline", "gate_runs", "launches_of"]

DEFAULT_FAIL_ON = frozenset({"regression", "inconclusive"})


@dataclass(frozen=True)
class _Match:
    """One cell in either arm. ``base_arm`` is that of a baseline, which has no launches to cut."""

    base: CellResult | None
    head: CellResult | None
    base_arm: Arm | None = None

    @property
    def cell(self) -> CellResult:
        found = self.head or self.base
        assert found is not None, "a match has at least one cell"
        return found

    def pair(self, name: str, sources: tuple[Hashable, Hashable], launches: int | None) -> Pair:
        """The arms with their launches of the first so many rounds."""
        base = self.base_arm
        if base is None and self.base is not None:
            base = arm_of(self.base, source=sources[0], launches=launches)
        head = None if self.head is None else arm_of(self.head, source=sources[1], launches=launches)
        return Pair(cell=self.cell, name=name, base=base, head=head)

    @property
    def rounds(self) -> int:
        """How many rounds were launched in both arms; 0 of what only a baseline has."""
        launched = (self.base if self.base_arm is None else None, self.head)
        return min((_rounds(cell) for cell in launched if cell), default=0)


@dataclass(frozen=True)
class _Sides:
    """What the arms are, besides their cells."""

    base: ArmRecord
    head: ArmRecord
    view: RunView  # of head
    differences: list[EnvironmentDifference]
    warnings: list[str] = field(default_factory=list)
    sources: tuple[Hashable, Hashable] = ("base", "head")


def gate_runs(head_path: Path, base_path: Path, *, fail_on: frozenset[str] = DEFAULT_FAIL_ON) -> Verdict:
    """A run against another run. Raises RunError, and NotComparableError with every difference that forbids it."""
    head, base = open_run(head_path).view(), open_run(base_path).view()
    matches = _matched_runs(base, head)
    _require_comparable(base, head, matches)
    sides = _Sides(
        base=_arm_record(base_path, base),
        head=_arm_record(head_path, head),
        view=head,
        differences=_differences(head, base),
        warnings=_warnings(base=base, head=head),
    )
    return _verdict(sides, matches, fail_on)


def gate_baseline(head_path: Path, file: Path, *, fail_on: frozenset[str] = DEFAULT_FAIL_ON) -> Verdict:
    """A run against a baseline file. Raises RunError, and NotComparableError where the file has nothing to compare."""
    head = open_run(head_path).view()
    baseline = without_run(read_baseline(file), head)
    arms = arms_for(baseline, head)
    matches = [_Match(None, cell, arms.get(cell.cell) or _skipped(cell)) for cell in head.cells]
    matches += [_Match(cell, None, arm) for cell, arm in missing_from(baseline, head)]
    if not matches:
        raise NotComparableError(f"neither '{head_path}' nor '{file}' has a cell to compare")
    last = _last_run(baseline, head)
    sides = _Sides(
        base=_baseline_record(file, arms.values(), last),
        head=_arm_record(head_path, head),
        view=head,
        differences=[] if last is None else list(_since(last, head)),
        warnings=_warnings(head=head),
    )
    verdict = _verdict(sides, matches, fail_on)
    told = acknowledge(verdict.cells, baseline, head)
    warnings = [*verdict.warnings, *told.warnings]
    return _concluded(verdict.model_copy(update={"cells": told.cells, "warnings": warnings}), head, fail_on)


def gate_ab(path: Path, *, fail_on: frozenset[str] = DEFAULT_FAIL_ON) -> Verdict:
    """The arms of an A/B directory, whose launches were interleaved and are pairs. Raises RunError."""
    ab = open_ab(path)
    record, base, head = ab.record, ab.base.view(), ab.head.view()
    cells = [{cell.cell: cell for cell in view.cells} for view in (base, head)]
    found = [_Match(cells[0].get(one), cells[1].get(two)) for one, two in record.pairs]
    matches = [match for match in found if match.base or match.head]
    if not matches:
        raise NotComparableError(f"the arms of '{path}' have no cell in common: run epbench ab again")
    sides = _Sides(
        base=_arm_record(ab.path / "base", base, label=record.base.label),
        head=_arm_record(ab.path / "head", head, label=record.head.label),
        view=head,
        differences=_differences(head, base),
        warnings=_warnings(base=base, head=head),
        sources=("ab", "ab"),
    )
    return _verdict(sides, matches, fail_on)


# ---------------------------------------------------------------- what belongs together


def _matched_runs(base: RunView, head: RunView) -> list[_Match]:
    """Cells by what they are, in head's order, then those that only base has."""
    there = {content_key(cell): cell for cell in base.cells}
    here = {content_key(cell): cell for cell in head.cells}
    return [_Match(there.get(key), here.get(key)) for key in dict.fromkeys([*here, *there])]


def _skipped(cell: CellResult) -> Arm | None:
    """A baseline keeps no cell that cannot be run, so such a cell is not new each night."""
    return Arm(outcome="skipped", reason=None, expected=True, nights=()) if cell.outcome == "skipped" else None


def _require_comparable(base: RunView, head: RunView, matches: Sequence[_Match]) -> None:
    kinds: dict[str, list[object]] = {
        "scenario": [view.run.name for view in (base, head)],
        "protocol": [view.protocol for view in (base, head)],
        "device": [view.environment.device for view in (base, head)],
        "device model": [view.environment.device_name for view in (base, head)],
    }
    found = [f"{what}: {shown(old)} there, {shown(new)} here" for what, (old, new) in kinds.items() if old != new]
    if not found and not any(match.base and match.head for match in matches):
        found = ["no cell is in both: layout, mode, routing, ranks, model or training settings differ"]
    if found:
        raise NotComparableError(f"these runs say nothing of each other ({'; '.join(found)}): give runs of one kind")


def _rounds(cell: CellResult) -> int:
    """Rounds that were launched."""
    return 1 + max((number for number, _ in rounds_of(cell.launch_values)), default=-1)


# ---------------------------------------------------------------- the verdict


def _verdict(sides: _Sides, matches: Sequence[_Match], fail_on: frozenset[str]) -> Verdict:
    spec = sides.view.run.gate or GateSpec()
    names = _names(sides.view, matches)
    judged, look = _judged(matches, names, spec, sides.sources)
    verdict = Verdict(
        schema_version=SCHEMA_VERSION,
        protocol=sides.view.protocol,
        scenario=sides.view.run.name,
        gate=spec,
        base=sides.base,
        head=sides.head,
        paired=any(change.paired for cell in judged.cells for change in cell.metrics),
        look=look,
        alpha=spec.look_alpha,
        family=judged.family,
        differences=sides.differences,
        cells=judged.cells,
        warnings=sides.warnings,
        summary="",
        exit_code=0,
    )
    return _concluded(verdict, sides.view, fail_on)


def _concluded(verdict: Verdict, head: RunView, fail_on: frozenset[str]) -> Verdict:
    unexpected = {cell.cell for cell in head.cells if not cell.expected and cell.outcome is not None}
    code = exit_code_of(verdict.cells, fail_on, unexpected=unexpected)
    return verdict.model_copy(update={"summary": summary_of(verdict.cells), "exit_code": code})


def _names(view: RunView, matches: Sequence[_Match]) -> list[str]:
    cells = [match.cell for match in matches]
    naming = Naming.of(view.model_copy(update={"cells": cells}))
    return [naming.full(cell) for cell in cells]


def _judged(
    matches: Sequence[_Match], names: Sequence[str], spec: GateSpec, sources: tuple[Hashable, Hashable]
) -> tuple[Judged, int]:
    """Every cell at its look, and the last look that any cell reached."""
    reached = [sum(match.rounds >= look for look in spec.looks) if spec.looks else 1 for match in matches]
    at: dict[int, Judged] = {}
    pairs: dict[int, list[Pair]] = {}
    for look in sorted({max(1, number) for number in reached}):
        launches = spec.looks[look - 1] if spec.looks else None
        pairs[look] = [match.pair(name, sources, launches) for match, name in zip(matches, names, strict=True)]
        at[look] = judge(pairs[look], spec, alpha=spec.look_alpha)
    cells = []
    for place, (match, number) in enumerate(zip(matches, reached, strict=True)):
        look = max(1, number)
        pair = pairs[look][place]
        cell = _with_halves(at[look].cells[place], pair)
        cells.append(cell if number else _before_first_look(cell, match.rounds, spec.looks[0]))
    last = max(at)
    return Judged(cells=cells, family=at[last].family), last


def _before_first_look(cell: CellVerdict, rounds: int, first: int) -> CellVerdict:
    """The cell without a word on its timings; how it ended, and what is counted, needs no look."""
    if not any(change.gated and change.kind == "timing" for change in cell.metrics):
        return cell
    why = f"{rounds} of the {first} launches of the first look"
    metrics = [_undecided(change, why) for change in cell.metrics]
    word = worst(change.word for change in metrics if change.gated)
    if word != "inconclusive":  # a counter's
        why = "; ".join(f"{change.metric}: {change.why}" for change in metrics if change.gated and change.word == word)
    return cell.model_copy(update={"metrics": metrics, "word": word, "why": why})


def _undecided(change: MetricChange, why: str) -> MetricChange:
    is_timing = change.kind == "timing" and change.gated
    return change.model_copy(update={"word": "inconclusive", "why": why}) if is_timing else change


def _with_halves(cell: CellVerdict, pair: Pair) -> CellVerdict:
    metrics = [
        change.model_copy(update={"base_half": _half(pair.base, change), "head_half": _half(pair.head, change)})
        for change in cell.metrics
    ]
    return cell.model_copy(update={"metrics": metrics})


def _half(arm: Arm | None, change: MetricChange) -> float | None:
    """Half of the 95 % interval of an arm's launches, or of its nights' medians, relative to the value."""
    if arm is None or change.kind == "counter":
        return None
    nights = [list(night.timings.get(change.metric, {}).values()) for night in arm.nights]
    known = [values for values in nights if values]
    found = launch_interval(known[0] if len(known) == 1 else list(map(median, known)))
    if found is None or found.low is None or found.high is None:
        return None
    return (found.high - found.low) / 2 / found.value


# ---------------------------------------------------------------- what the arms are


def _arm_record(path: Path, view: RunView, *, label: str | None = None) -> ArmRecord:
    return ArmRecord(
        label=label or path.resolve().name,
        path=str(path),
        started=view.run.started,
        launches=launches_of(view),
        environment=view.environment.model_dump(mode="json"),
    )


def launches_of(view: RunView) -> int:
    """All that were made, valid or not: when there are more, a verdict is old."""
    return sum(len(cell.launch_values) for cell in view.cells)


def _baseline_record(file: Path, arms: Iterable[Arm], last: BaselineRun | None) -> ArmRecord:
    known = {} if last is None else {"torch": last.torch, "driver": last.driver, "code": last.code}
    nights = max((len(arm.nights) for arm in arms), default=0)
    return ArmRecord(
        label=file.name, path=str(file), started=last and last.started, nights=max(1, nights), environment=known
    )


def _last_run(baseline: Baseline, view: RunView) -> BaselineRun | None:
    """The run that was accepted last on this kind of machine."""
    machine = view.environment
    kind = (machine.device, machine.device_name, view.protocol)
    runs = [entry.runs[-1] for entry in baseline.entries if (entry.device, entry.device_name, entry.protocol) == kind]
    return max(runs, key=lambda run: run.started, default=None)


def _since(last: BaselineRun, view: RunView) -> Iterable[EnvironmentDifference]:
    """What a baseline's last run tells of its software, and is another here."""
    machine = view.environment
    there: Mapping[str, str | None] = {"torch": last.torch, "driver": last.driver, "epbench code": last.code}
    here = {"torch": machine.torch, "driver": machine.driver, "epbench code": machine.code[: len(last.code)]}
    for what, old in there.items():
        if old != here[what]:
            yield EnvironmentDifference(what=what, base=clean(old or "not set"), head=clean(here[what] or "not set"))


def _differences(head: RunView, base: RunView) -> list[EnvironmentDifference]:
    return [
        EnvironmentDifference(what=one.what, base=one.reference, head=one.here) for one in provenance_diff(head, base)
    ]


def _warnings(**views: RunView) -> list[str]:
    return [f"{arm}: {text}" for arm, view in views.items() for text in view.warnings]
