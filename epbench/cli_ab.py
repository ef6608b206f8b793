"""``epbench ab``: what a person types about two variants, turned into one call each; nothing heavy at import."""

from pathlib import Path
from typing import Annotated

import typer

from epbench.cli_options import (
    DEFAULT_FAIL_ON,
    Budget,
    Device,
    FailOn,
    Json,
    Only,
    ReportsDir,
    Scenario,
    World,
    globs,
    known_device,
    seconds,
)
from epbench.writing import write_aside

__all__ = ["PRECEDENCE", "ab"]

PRECEDENCE = (130, 2, 6, 3, 5, 4, 0)  # of exit codes: launches and verdict each have one
_ARM = "ARM"


def ab(
    scenario: Scenario,
    *,
    base: Annotated[
        list[str] | None,
        typer.Option(
            "--base",
            metavar=_ARM,
            help="what was; as is by default. An ARM is a Python interpreter (/venv/bin/python), a git revision of "
            "epbench's checkout or of a stack's (REV or PATH@REV), options of every cell (mode=compiled,train.seed=1), "
            "a variable (env:NCCL_ALGO=Ring), or several of these with ';' between or the option repeated",
        ),
    ] = None,
    head: Annotated[
        list[str] | None, typer.Option("--head", metavar=_ARM, help="what is to be judged; written like --base")
    ] = None,
    only: Only = None,
    launches: Annotated[
        int | None,
        typer.Option("--launches", metavar="K", min=1, help="launches a cell and arm, one look at the end"),
    ] = None,
    budget: Budget = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="AB", help="continue an A/B, with the arms that it has")
    ] = None,
    fail_on: FailOn = DEFAULT_FAIL_ON,
    as_json: Json = False,
    world: World = None,
    device: Device = None,
    reports_dir: ReportsDir = Path("reports"),
) -> None:
    """Launch two variants by turns on this machine, and judge the one by the other: exit code as of gate."""
    from epbench.report.gate.command import gate
    from epbench.report.gate.text import render_verdict
    from epbench.report.gate.words import parse_fail_on
    from epbench.runner.ab import AbOptions, run_ab
    from epbench.runner.launch import EXIT_INTERRUPTED
    from epbench.scenario import load_scenario

    parse_fail_on(fail_on)
    planned = load_scenario(scenario, world_size=world, device=known_device(device))
    options = AbOptions(
        base=base or (),
        head=head or (),
        only=globs(only),
        launches=launches,
        budget_s=seconds(budget),
        resume=resume,
        reports_dir=reports_dir,
        device=known_device(device),
        world=world,
    )
    outcome = run_ab(planned, options)
    if outcome.exit_code == EXIT_INTERRUPTED:
        raise typer.Exit(outcome.exit_code)
    found = gate(str(outcome.path), baseline=None, output=None, fail_on=fail_on)
    typer.echo(found.verdict.model_dump_json(indent=2) if as_json else render_verdict(found.verdict))
    if not as_json:
        typer.echo(str(found.path))
    write_aside(f"next: {found.next_command}")
    raise typer.Exit(min(outcome.exit_code, found.verdict.exit_code, key=PRECEDENCE.index))
