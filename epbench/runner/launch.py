"""``epbench run``: every cell of a scenario, launch by launch, into a run directory that can be resumed.

The parent imports no torch and owns no device; it orders launches from a fork server, one at a time so that
nothing disturbs what is measured, and writes what they gave. Whatever happens to a launch is a row of the
result; the next cell goes on.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from epbench.cells import fits
from epbench.doctor import check_before_run
from epbench.errors import RunError, ScenarioError, UnfitMachineError
from epbench.provenance import choose_device, describe_environment, find_gpus
from epbench.records import EnvironmentRecord, MachineCheck, RunRecord
from epbench.runner.interrupt import Interrupt
from epbench.runner.joining import gathered, meeting
from epbench.runner.lock import locked
from epbench.runner.nodes import toward
from epbench.runner.progress import Progress, make_progress
from epbench.runner.schedule import Budget
from epbench.runner.server import launch_variables
from epbench.runner.session import Session
from epbench.runner.sitting import SittingLog
from epbench.stack_support import require_installed
from epbench.store import CellEntry, RunDirectory, create_run, open_run
from epbench.wording import either
from epbench.writing import write_aside

if TYPE_CHECKING:
    from epbench.scenario import Scenario

__all__ = [
    "EXIT_CELLS",
    "EXIT_INTERRUPTED",
    "LaunchOptions",
    "RunOptions",
    "RunOutcome",
    "check_same",
    "entries_of",
    "going_on_with",
    "record_of",
    "run_scenario",
]

EXIT_INTERRUPTED = 130
EXIT_CELLS = 5  # some cells crashed, hung, are wrong or unstable, or missed their ``expect``


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line says of launches beyond the scenario, of a run or of both arms of an A/B."""

    only: str | None = None  # globs on cell ids, see epbench.cells.fits
    launches: int | None = None
    budget_s: float | None = None
    resume: Path | str | None = None
    reports_dir: Path = Path("reports")
    device: str | None = None
    world: int | None = None  # that the scenario was loaded with


@dataclass(frozen=True)
class RunOptions(LaunchOptions):
    """What the command line says of a run beyond the scenario."""

    nodes: int = 1
    listen: str | None = None  # HOST:PORT at which the other nodes join
    token_file: Path | None = None  # with the secret that they know too; None: it is in the environment
    join_timeout_s: float = 600.0


@dataclass(frozen=True)
class RunOutcome:
    """Where the run is, and the exit code that it earned."""

    path: Path
    exit_code: int


def run_scenario(scenario: "Scenario", options: RunOptions) -> RunOutcome:
    """Run what is not yet complete of a scenario. Call it from the main thread, for Ctrl-C to be seen.

    Raises UnfitMachineError, RunError or ScenarioError before anything is launched, and UnfitMachineError with the
    command that goes on when the machine cannot go on: a disk that is full, a GPU that keeps its memory.
    """
    world_size = max((row.cell.world_size for row in scenario.planned if not row.skip_reason), default=1)
    where = meeting(options.nodes, options.listen, token_file=options.token_file, timeout_s=options.join_timeout_s)
    device, reason = choose_device(options.device or scenario.device, _ranks_here(scenario, options.nodes))
    scenario = scenario.resolved(device)
    stacks = tuple(row.cell.train.stack for row in scenario.planned)
    variables = launch_variables(device)
    environment = describe_environment(
        device, world_size=world_size, nodes=options.nodes, stacks=stacks, variables=variables
    )
    selected = _selected(scenario, options.only)
    require_installed(entry.cell.train.stack for entry in selected)
    checks = [*check_before_run(options.reports_dir), *_unseen(options.nodes)] if device == "cuda" else []
    run = _open(scenario, options, environment, reason)
    budget = Budget(options.budget_s)
    again = _resume(run, scenario.path, options)
    interrupted = True
    with (
        suppress(KeyboardInterrupt),
        going_on_with(again),
        locked(run.path) as lock,
        gathered(where, run.path, environment, stacks=stacks) as members,
    ):
        for entry in entries_of(scenario):
            run.write_cell(entry)
        session = Session(
            run,
            scenario.measure,
            environment,
            launches=options.launches or scenario.measure.launches,
            budget=budget,
            sitting=SittingLog(run, scenario.measure, environment, checks=checks),
            gpus=find_gpus().uuids[: world_size // options.nodes] if device == "cuda" else (),
            inherited=(lock,),
            variables=toward(members) | variables,
            members=members,
        )
        todo = [entry for entry in selected if not session.finish_if_complete(entry)]
        with make_progress() as progress:
            progress.say(f"{run.path}: {len(todo)} of {len(selected)} cells to run on {device} ({reason})")
            interrupted = _run(session, todo, progress)
            for sentence in session.settle(entry for entry in entries_of(scenario) if entry.skip_reason is None):
                progress.say(f"WRONG {sentence}")
    return RunOutcome(run.path, _exit_code(run, selected, interrupted, again))


def _ranks_here(scenario: "Scenario", nodes: int) -> int:
    """Of the largest cell; raises ScenarioError for cells that the nodes cannot share equally."""
    sizes = sorted({row.cell.world_size for row in scenario.planned if not row.skip_reason})
    if uneven := [size for size in sizes if size % nodes]:
        raise ScenarioError(
            f"{nodes} nodes cannot share {either(uneven)} ranks equally: give --world N, a multiple of {nodes}, "
            "or another number of nodes"
        )
    return max(sizes, default=nodes) // nodes


def _unseen(nodes: int) -> list[MachineCheck]:
    """What a run over several nodes cannot know, for its record."""
    found = f"of {nodes} nodes only the GPUs of the first are sampled: others may be slowed down unseen"
    return [MachineCheck(name="telemetry", status="warn", found=found)] if nodes > 1 else []


@contextmanager
def going_on_with(again: str) -> Iterator[None]:
    """A machine that cannot go on ends the run; what is finished is whole, and the sentence says how to go on."""
    try:
        yield
    except UnfitMachineError as error:
        raise type(error)(f"{error}; what is finished is kept, go on with: {again}") from error


def _resume(run: RunDirectory, scenario: Path, options: RunOptions) -> str:
    """The command that goes on with the same cells on the same ranks."""
    said = {
        "resume": run.path,
        "world": options.world,
        "device": options.device,
        "only": options.only,
        "launches": options.launches,
        "nodes": options.nodes if options.nodes > 1 else None,
        "listen": options.listen,
        "token-file": options.token_file,
    }
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in said.items() if value is not None]
    return " ".join(["epbench run", shlex.quote(str(scenario)), *given])


def _run(session: Session, todo: Sequence[CellEntry], progress: Progress) -> bool:
    """Whether Ctrl-C ended it; the second one arrives as an exception, when nothing of the launch is left."""
    try:
        with Interrupt() as interrupt:
            if todo:
                session.run_all(todo, progress, interrupt)
            return interrupt.seen
    except KeyboardInterrupt:
        return True


def entries_of(scenario: "Scenario") -> list[CellEntry]:
    """Every row of a scenario as a run keeps it, in order."""
    return [
        CellEntry(
            order=order,
            cell=row.cell,
            skip_reason=row.skip_reason,
            world_size=row.world_size,
            varied=scenario.varied,
        )
        for order, row in enumerate(scenario.planned)
    ]


def _selected(scenario: "Scenario", only: str | None) -> list[CellEntry]:
    """The cells that are to run, by ``--only``; raises ScenarioError when that fits none."""
    runnable = [entry for entry in entries_of(scenario) if entry.skip_reason is None]
    selected = [entry for entry in runnable if fits(entry.cell.id, only)]
    if only is not None and not selected:
        known = ", ".join(entry.cell.id for entry in runnable[:3])
        raise ScenarioError(f"--only '{only[:80]}' fits none of {len(runnable)} cells (there is {known}, ...)")
    return selected


def _open(scenario: "Scenario", options: RunOptions, environment: EnvironmentRecord, reason: str) -> RunDirectory:
    """A new run, or the one to resume; raises RunError when that was made elsewhere or otherwise."""
    if options.resume is not None:
        run = open_run(options.resume, reports_dir=options.reports_dir)
        check_same(run, environment)
        run.event({"event": "resumed", "command": ["epbench", *sys.argv[1:]]})
        return run
    return create_run(options.reports_dir, record_of(scenario, environment, reason), scenario.text)


def record_of(scenario: "Scenario", environment: EnvironmentRecord, reason: str) -> RunRecord:
    """``run.json`` of a run that begins now; ``reason`` is why it is on this device."""
    return RunRecord(
        name=scenario.name,
        description=scenario.description,
        started=datetime.now(UTC).isoformat(),
        scenario_path=str(scenario.path),
        scenario_digest=scenario.digest,
        device_reason=reason,
        gate=scenario.gate,
        command=["epbench", *sys.argv[1:]],
        environment=environment,
    )


def check_same(run: RunDirectory, environment: EnvironmentRecord) -> None:
    """One run has one environment; raises RunError: nothing measured in another may stand beside it."""
    there = run.record.environment
    if there.digest == environment.digest:
        return
    fields = [name for name in EnvironmentRecord.model_fields if name not in {"digest", "variables"}]
    differ = [name for name in fields if getattr(there, name) != getattr(environment, name)]
    names = sorted(set(there.variables.items()) ^ set(environment.variables.items()))
    differ += sorted({f"variable {name}" for name, _ in names})
    raise RunError(
        f"cannot resume '{run.path}': it differs from this machine in {', '.join(differ)}; "
        "nothing of it could be reused, so start a new run without --resume"
    )


def _exit_code(run: RunDirectory, selected: Sequence[CellEntry], interrupted: bool, again: str) -> int:
    """130 only if Ctrl-C left something to do: the closing canary is no reason to run again."""
    results = [run.read_result(entry.cell.id) for entry in selected]
    if interrupted and None in results:
        write_aside(f"interrupted; go on with: {again}")
        return EXIT_INTERRUPTED
    return EXIT_CELLS if any(result and not result.expected for result in results) else 0
