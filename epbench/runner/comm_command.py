"""``epbench comm``: the sweep of a scenario's groups on its own, in a directory like a run's, without its cells."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from epbench.cells import fits
from epbench.comm_records import CommRecord
from epbench.doctor import check_before_run
from epbench.errors import ScenarioError
from epbench.layout import Layout
from epbench.provenance import choose_device, describe_environment
from epbench.records import RunRecord, Sitting
from epbench.runner.comm import CommLog, partitions_of
from epbench.runner.interrupt import Interrupt
from epbench.runner.launch import EXIT_CELLS, EXIT_INTERRUPTED
from epbench.runner.server import ForkServer, launch_variables
from epbench.store import create_run

if TYPE_CHECKING:
    from epbench.scenario import Scenario

__all__ = ["CommOptions", "CommOutcome", "sweep_scenario"]


@dataclass(frozen=True)
class CommOptions:
    """What the command line says beyond the scenario."""

    only: str | None = None  # globs on cell ids, see epbench.cells.fits
    device: str | None = None
    reports_dir: Path = Path("reports")


@dataclass(frozen=True)
class CommOutcome:
    """Where it is, what was found (None: nothing), what a person should know, and the exit code that it earned."""

    path: Path
    record: CommRecord | None
    warnings: Sequence[str]
    exit_code: int


def sweep_scenario(scenario: "Scenario", options: CommOptions) -> CommOutcome:
    """Sweeps every partition that the scenario's runnable layouts use. Call it from the main thread, for Ctrl-C.

    Raises UnfitMachineError or ScenarioError before anything is launched.
    """
    world_size = max((cell.world_size for cell in scenario.cells), default=1)
    device, reason = choose_device(options.device or scenario.device, world_size)
    layouts = _layouts(scenario.resolved(device), options.only)
    variables = launch_variables(device)
    environment = describe_environment(device, world_size=world_size, variables=variables)
    checks = check_before_run(options.reports_dir) if device == "cuda" else []
    now = datetime.now(UTC).isoformat()
    warnings = [f"{check.name}: {check.found}" for check in checks if check.status == "warn"]
    record = RunRecord(
        name=f"{scenario.name}-comm",
        description="collectives alone",
        started=now,
        scenario_path=str(scenario.path),
        scenario_digest=scenario.digest,
        device_reason=reason,
        command=["epbench", *sys.argv[1:]],
        environment=environment,
        sittings=[Sitting(started=now, checks=checks, warnings=warnings)],
    )
    log = CommLog(create_run(options.reports_dir, record, scenario.text), scenario.measure, environment)
    count = len(partitions_of(layouts))
    print(f"{log.path}: {count} sets of groups to sweep on {device} ({reason})", file=sys.stderr, flush=True)
    interrupted, said = _sweep(log, layouts, variables)
    known = {one.partition.groups for one in log.swept}
    complete = all(partition.groups in known for partition in partitions_of(layouts))
    exit_code = EXIT_INTERRUPTED if interrupted else 0 if complete else EXIT_CELLS
    return CommOutcome(log.path, log.record, [*warnings, *said], exit_code)


def _sweep(log: CommLog, layouts: Sequence[Layout], variables: Mapping[str, str]) -> tuple[bool, Sequence[str]]:
    """Whether Ctrl-C ended it, and what was said; the second Ctrl-C arrives as an exception."""
    try:
        with ForkServer(variables, log.path / "server.log") as server, Interrupt() as interrupt:
            started = server.start(lambda: interrupt.seen)
            said = log.sweep(layouts, server, lambda: interrupt.seen) if started else []
            return interrupt.seen, said
    except KeyboardInterrupt:
        return True, []


def _layouts(scenario: "Scenario", only: str | None) -> list[Layout]:
    """Of the cells that would run; raises ScenarioError when none has groups."""
    layouts = [cell.layout for cell in scenario.cells if fits(cell.id, only)]
    if not partitions_of(layouts):
        which = (
            f"none of the {len(layouts)} cells that run" if only is None else f"no cell that --only '{only[:80]}' fits"
        )
        raise ScenarioError(f"nothing to sweep: {which} has more than one rank")
    return layouts
