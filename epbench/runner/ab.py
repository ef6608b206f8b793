"""``epbench ab``: two variants of the code under test, launched by turns on the same machine in one allocation.

Every round gives every cell one launch of each arm, next to each other in time, so that what the machine does just then
is in both: launches of one round are pairs. Odd rounds go backwards, cells and arms (ABBA). Each arm is a sitting with
a run directory and a fork server of its own; the idle server holds no device.
"""

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from epbench.ab_records import FILE as ARMS_FILE
from epbench.ab_records import AbDirectory, AbRecord, open_ab
from epbench.cells import MeasureSpec
from epbench.doctor import check_before_run
from epbench.errors import EpbenchError, ScenarioError
from epbench.gate_records import GateSpec
from epbench.provenance import Device, choose_device, find_gpus
from epbench.records import CellResult, EnvironmentRecord, MachineCheck
from epbench.runner.ab_plan import OPTIONS, AbOptions, PlannedArm, ab_record, arm_specs, planned_arms
from epbench.runner.arms import arm_variables
from epbench.runner.checkouts import checked_out, own_tree
from epbench.runner.interrupt import Interrupt
from epbench.runner.launch import EXIT_CELLS, EXIT_INTERRUPTED, check_same, going_on_with, record_of
from epbench.runner.lock import locked
from epbench.runner.looks import undecided
from epbench.runner.probe import Probed, probe
from epbench.runner.progress import Progress, make_progress
from epbench.runner.schedule import Budget, Orders
from epbench.runner.session import Session
from epbench.runner.sitting import SittingLog
from epbench.runner.spec import LaunchSpec
from epbench.runner.turns import ArmProgress, Turn, take_turns
from epbench.store import RunDirectory, create_run_at, make_directory, new_path, open_run
from epbench.wording import place, shown
from epbench.writing import write_aside, writing

if TYPE_CHECKING:
    from epbench.scenario import Scenario

__all__ = ["AbOptions", "AbOutcome", "run_ab"]


@dataclass(frozen=True)
class AbOutcome:
    """Where the A/B is, and the exit code that its launches earned; what they say of the arms is the gate's to tell."""

    path: Path
    exit_code: int


@dataclass(frozen=True)
class _Side:
    """Where an arm's launches are started and what they leave behind."""

    arm: PlannedArm
    run: RunDirectory
    probed: Probed
    variables: Mapping[str, str]

    def results(self) -> dict[str, CellResult]:
        """Its rows that are complete, by id."""
        found = {entry.cell.id: self.run.read_result(entry.cell.id) for entry in self.arm.runnable.values()}
        return {cell_id: row for cell_id, row in found.items() if row}


def run_ab(scenario: "Scenario", options: AbOptions) -> AbOutcome:
    """Launch both arms by turns, as far as is not done yet. Call it from the main thread, for Ctrl-C to be seen.

    Raises ScenarioError, RunError or UnfitMachineError before anything is launched, and UnfitMachineError with the
    command that goes on when the machine cannot go on.
    """
    there = None if options.resume is None else open_ab(options.resume, reports_dir=options.reports_dir)
    specs = arm_specs(options, there)
    size = max((row.cell.world_size for row in scenario.planned if not row.skip_reason), default=1)
    device, reason = choose_device(options.device or scenario.device, size)
    arms = planned_arms(scenario.resolved(device), specs, options.only, there)
    path = there.path if there else new_path(options.reports_dir, f"{scenario.name}-ab", datetime.now(UTC).isoformat())
    again = _again(scenario, options, path)
    interrupted = True
    with (
        suppress(KeyboardInterrupt),
        Interrupt() as interrupt,
        _held(path, is_new=there is None) as lock,
        checked_out([(arm.name, arm.spec.checkouts) for arm in arms], path.name) as trees,
    ):
        probed = [_probed(arm, device, path, trees.get(arm.name, [])) for arm in arms]
        checks = check_before_run(options.reports_dir) if device == "cuda" else []
        record = ab_record(scenario, arms, options.launches, there)
        sides = _opened(path, there, record, list(zip(arms, probed, strict=True)), reason)
        with going_on_with(again):
            _launch(AbDirectory(path), sides, options.budget_s, checks, interrupt, lock=lock)
        interrupted = interrupt.seen
    return AbOutcome(path, _exit_code(path, arms, interrupted, again))


# ---------------------------------------------------------------- where it is launched


@contextmanager
def _held(path: Path, *, is_new: bool) -> Iterator[int]:
    """The directory under lock, before work trees are touched; a new one that ends up empty is removed."""
    try:
        if is_new:
            with writing(path):
                make_directory(path)
        with locked(path) as lock:
            yield lock
    finally:
        if is_new and not (path / ARMS_FILE).is_file():
            shutil.rmtree(path, ignore_errors=True)


def _probed(arm: PlannedArm, device: Device, path: Path, trees: Sequence[Path]) -> tuple[Probed, dict[str, str]]:
    variables = arm_variables(arm.spec, device, first=trees, cache=_cache(path) / arm.name)
    found = probe(arm.spec, variables, specs=_orders(arm, device, path), where=OPTIONS[arm.name])
    _check_imported(arm, found.place, trees)
    return found, variables


def _orders(arm: PlannedArm, device: Device, path: Path) -> list[LaunchSpec]:
    """What its ranks will be asked for, one order for each cell."""
    return [
        LaunchSpec(
            cell=entry.cell,
            kind="measure",
            index=0,
            order=0,
            device=device,
            measure=_measure(arm.scenario),
            directory=path.absolute(),
        )
        for entry in arm.runnable.values()
    ]


def _changed(side: _Side, path: Path) -> list[str]:
    """A sentence if the arm is no longer what it was when this began; it may be a tree that somebody works in."""
    before = side.probed.environment
    orders = _orders(side.arm, before.device, path)
    try:
        now = probe(side.arm.spec, side.variables, specs=orders, where=OPTIONS[side.arm.name]).environment
    except EpbenchError as error:
        return [f"the arm changed while it was measured, and cannot be asked any more what it is ({error})"]
    names = [name for name in EnvironmentRecord.model_fields if getattr(now, name) != getattr(before, name)]
    changed = ", ".join(name for name in names if name != "digest")
    return [f"the arm changed while it was measured ({changed}): its launches may be of either"] if names else []


def _check_imported(arm: PlannedArm, place_of_epbench: str, trees: Sequence[Path]) -> None:
    """Raises ScenarioError for a revision of epbench that is not what the arm imports: both arms would be the same."""
    for checkout, tree in zip(arm.spec.checkouts, trees, strict=True):
        is_own = (Path(checkout.tree) / checkout.inside).resolve() == own_tree().resolve()
        if is_own and not Path(place_of_epbench).resolve().is_relative_to(tree.resolve()):
            raise ScenarioError(
                f"{OPTIONS[arm.name]}: there is no epbench in revision {shown(checkout.revision)} of "
                f"{place(checkout.tree)}: what would be imported is {place(place_of_epbench)}"
            )


def _cache(path: Path) -> Path:
    return path.absolute() / ".compiled"


def _opened(
    path: Path,
    there: AbDirectory | None,
    record: AbRecord,
    arms: Sequence[tuple[PlannedArm, tuple[Probed, dict[str, str]]]],
    reason: str,
) -> list[_Side]:
    """The two run directories, new or those to go on with; raises RunError when these were made elsewhere."""
    sides = []
    for arm, (probed, variables) in arms:
        if there is None:
            gate = arm.scenario.gate.model_copy(update={"looks": record.looks})
            run_record = record_of(replace(arm.scenario, gate=gate), probed.environment, reason)
            run = create_run_at(path / arm.name, run_record, _text(arm))
        else:
            run = open_run(path / arm.name)
            check_same(run, probed.environment)
            run.event({"event": "resumed"})
        for entry in arm.rows.values():
            run.write_cell(entry)
        sides.append(_Side(arm, run, probed, variables))
    AbDirectory(path).write(record)
    return sides


def _text(arm: PlannedArm) -> str:
    said = [f"# Of every cell: {key} = {shown(value, limit=200)}\n" for key, value in arm.spec.options.items()]
    return "".join(said) + arm.scenario.text


# ---------------------------------------------------------------- launching


def _launch(
    ab: AbDirectory,
    sides: Sequence[_Side],
    budget_s: float | None,
    checks: Sequence[MachineCheck],
    interrupt: Interrupt,
    *,
    lock: int,
) -> None:
    base, head = sides
    record = ab.record
    first = record.looks[0] if record.looks else record.launches
    orders, budget = Orders(), Budget(budget_s)
    with locked(base.run.path) as one, locked(head.run.path) as two, make_progress() as progress:
        sessions = [
            _session(
                side, first, checks=[*checks, *_same(side, other)], orders=orders, budget=budget, inherited=(lock, own)
            )
            for side, other, own in ((base, head, one), (head, base, two))
        ]
        whole = [  # what is there has its place before anything new
            session.finish_if_complete(entry)
            for session, side in zip(sessions, sides, strict=True)
            for entry in side.arm.runnable.values()
        ]
        if record.looks_taken and not all(whole):  # launches were deleted, or are measured otherwise now
            ab.write(record.model_copy(update={"looks_taken": 0, "to_second_look": ()}))
        _say_what(progress, ab, sides)
        told = [
            ArmProgress(progress, side.arm.name, other.outlook)
            for side, other in zip(sides, sessions[::-1], strict=True)
        ]
        with (
            sessions[0].serving(list(base.arm.runnable.values()), told[0], interrupt) as server,
            sessions[1].serving(list(head.arm.runnable.values()), told[1], interrupt) as other,
        ):
            turns = (
                Turn(sessions[0], server, told[0], base.arm.runnable),
                Turn(sessions[1], other, told[1], head.arm.runnable),
            )
            _look_by_look(ab, sides, turns, interrupt, progress)
        for session, side, progress_of_arm in zip(sessions, sides, told, strict=True):
            if session.begun and not interrupt.seen:
                session.note(_changed(side, ab.path), progress_of_arm)
            for sentence in session.settle(side.arm.runnable.values()):
                progress.say(f"WRONG {side.arm.name}: {sentence}")
    if ab.record.is_complete:  # what goes on finds its graphs compiled, as the launches before did
        shutil.rmtree(_cache(ab.path), ignore_errors=True)


def _same(side: _Side, other: _Side) -> list[MachineCheck]:
    """A warning on an arm whose revision changes no source that is known to take part: perhaps it is not imported."""
    spec = side.arm.spec
    if not spec.checkouts or side.probed.environment.code != other.probed.environment.code:
        return []
    found = f"{spec.label} has the same epbench and the same stacks as the other arm: does PATH hold what is imported?"
    return [MachineCheck(name="revision", status="warn", found=found)]


def _measure(scenario: "Scenario") -> MeasureSpec:
    """How both arms are measured; no arm needs ceilings to be compared, so only who asks for them gets them."""
    return scenario.measure.model_copy(update={"comm": scenario.measure.comm is True})


def _session(
    side: _Side,
    launches: int,
    *,
    checks: Sequence[MachineCheck],
    orders: Orders,
    budget: Budget,
    inherited: Sequence[int],
) -> Session:
    environment = side.probed.environment
    measure = _measure(side.arm.scenario)
    gpus = find_gpus().uuids[: environment.world_size] if environment.device == "cuda" else ()
    return Session(
        side.run,
        measure,
        environment,
        launches=launches,
        budget=budget,
        sitting=SittingLog(side.run, measure, environment, checks=checks),
        gpus=gpus,
        inherited=inherited,
        variables=side.variables,
        orders=orders,
        python=side.arm.spec.python or sys.executable,
        new_keys=side.probed.new_keys,
    )


def _look_by_look(
    ab: AbDirectory, sides: Sequence[_Side], turns: tuple[Turn, Turn], interrupt: Interrupt, progress: Progress
) -> None:
    """All launches of the first look, then for what it leaves open those of the second."""
    record = ab.record
    cells = list(sides[0].arm.rows.values())
    first = record.looks[0] if record.looks else record.launches
    if not take_turns(*turns, cells, launches=first, interrupt=interrupt):
        return
    if record.looks_taken == 0:
        record = record.model_copy(update={"looks_taken": 1, "to_second_look": _left_open(record, sides)})
        ab.write(record)
    if not record.to_second_look:
        return
    count = len(record.to_second_look)
    progress.say(f"after {first} launches {count} of {len(record.pairs)} cells are open: on to {record.looks[1]}")
    heads = sides[1].arm.rows
    open_cells = [cell for cell in cells if heads[cell.order].cell.id in record.to_second_look]
    for turn in turns:
        for cell in open_cells:
            if cell.order in turn.entries:
                turn.session.ask(turn.entries[cell.order], record.looks[1])
    if take_turns(*turns, open_cells, launches=record.looks[1], interrupt=interrupt):
        ab.write(record.model_copy(update={"looks_taken": 2}))


def _left_open(record: AbRecord, sides: Sequence[_Side]) -> tuple[str, ...]:
    if len(record.looks) < 2:
        return ()
    base, head = (side.results() for side in sides)
    pairs = [pair for pair in record.pairs if pair[0] in base and pair[1] in head]
    return tuple(undecided(pairs, base, head, sides[1].run.record.gate or GateSpec()))


def _say_what(progress: Progress, ab: AbDirectory, sides: Sequence[_Side]) -> None:
    both = len(sides[0].arm.runnable.keys() & sides[1].arm.runnable.keys())
    alone = f", {found} in one only" if (found := len(ab.record.pairs) - both) else ""
    progress.say(f"{ab.path}: {both} cell{'s' * (both != 1)} in both arms, by turns{alone}")
    for one in sides:
        progress.say(f"{one.arm.name}: {place(one.arm.spec.label)} (epbench at {place(one.probed.place)})")


# ---------------------------------------------------------------- the end


def _again(scenario: "Scenario", options: AbOptions, path: Path) -> str:
    said = {"world": options.world, "device": options.device}
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in said.items() if value is not None]
    return " ".join(["epbench ab", shlex.quote(str(scenario.path)), "--resume", shlex.quote(str(path)), *given])


def _exit_code(path: Path, arms: Sequence[PlannedArm], interrupted: bool, again: str) -> int:
    """130 only if Ctrl-C left something to do."""
    ab = AbDirectory(path)
    if interrupted and not (path.exists() and ab.record.is_complete):
        write_aside(
            f"interrupted; go on with: {again}" if path.exists() else "interrupted before anything was launched"
        )
        return EXIT_INTERRUPTED
    if not ab.record.is_complete:
        write_aside(f"launches are left to make; go on with: {again}")
    results = [
        RunDirectory(path / arm.name).read_result(entry.cell.id) for arm in arms for entry in arm.runnable.values()
    ]
    return EXIT_CELLS if any(result and not result.expected for result in results) else 0
