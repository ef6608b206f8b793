"""The command line: what a person types, turned into one call each. No logic, and nothing heavy at import.

stdout is the product and stderr everything else. A person's mistake is one sentence and exit code 2 (6 when
the machine is unfit); a crash of epbench's own is one sentence and exit code 1, and ``EPBENCH_TRACEBACK=1``
shows where.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from epbench.cli_ab import ab
from epbench.cli_baseline import app as baseline_app
from epbench.cli_gate import gate
from epbench.cli_history import app as history_app
from epbench.cli_nodes import JoinTimeout, TokenFile, launch_files, node
from epbench.cli_options import (
    Budget,
    Device,
    Json,
    Only,
    ReportsDir,
    Run,
    Scenario,
    World,
    globs,
    known_device,
    parse_duration,
    seconds,
)
from epbench.errors import EpbenchError, ScenarioError, StorageError
from epbench.wording import shown
from epbench.writing import NO_ROOM, write_aside

__all__ = ["app", "main", "parse_duration"]

_LONGEST_ARGUMENT = 4096  # bytes of the longest path that Linux opens


class _FrontDoor(TyperGroup):
    """Turns what a command raises into one sentence and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; raises SystemExit only."""
        try:
            _refuse_long_arguments(kwargs.get("args") or (args[0] if args else None) or sys.argv[1:])
            return super().main(*args, **kwargs)
        except EpbenchError as error:
            typer.echo(f"epbench: {error}", err=True)
            sys.exit(error.exit_code)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:  # what is printed goes to a file
                _say(f"epbench: cannot write what is to be printed: {error.strerror}")
                sys.exit(StorageError.exit_code)
            _report_crash(error)
            sys.exit(1)


app = typer.Typer(
    name="epbench",
    cls=_FrontDoor,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Benchmark and profile parallelism layouts (EP/TP/CP/DP) for training Mixture-of-Experts models.",
    epilog="Start here: epbench plan scenarios/quick.toml, then epbench run scenarios/quick.toml",
)

_Runs = Annotated[list[str], typer.Argument(help="run directories, the oldest first; each as in 'show'", metavar="RUN")]


@app.command()
def plan(
    scenario: Annotated[Path | None, typer.Argument(help="a scenario file, e.g. scenarios/quick.toml")] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PRESET", help="all legal layouts of a model; needs --world"),
    ] = None,
    world: World = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """List the cells of a scenario, and those it skips with every reason. Runs nothing."""
    from epbench.plan_table import plan_json, render_plan
    from epbench.scenario import load_scenario, preset_scenario

    if (scenario is None) == (model is None):
        raise ScenarioError("plan needs either a scenario file, or --model PRESET with --world N")
    if model is not None and world is None:
        raise ScenarioError("--model needs --world N, the number of ranks to lay out")
    planned = (
        load_scenario(scenario, world_size=world, device=known_device(device))
        if scenario is not None
        else preset_scenario(str(model), world_size=world or 0)
    )
    typer.echo(plan_json(planned) if as_json else render_plan(planned))
    if scenario is not None:
        _say(f"next: epbench run {scenario}")


@app.command()
def run(
    scenario: Scenario,
    *,
    only: Only = None,
    launches: Annotated[
        int | None,
        typer.Option("--launches", metavar="K", min=1, help="launches a cell, instead of the file's"),
    ] = None,
    budget: Budget = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="continue a run, keeping what it has measured"),
    ] = None,
    world: World = None,
    device: Device = None,
    nodes: Annotated[
        int, typer.Option("--nodes", metavar="N", min=1, envvar="EPBENCH_NODES", help="that share the ranks equally")
    ] = 1,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", envvar="EPBENCH_LISTEN", help="where 'epbench node' joins"),
    ] = None,
    token_file: TokenFile = None,
    join_timeout: JoinTimeout = "10m",
    reports_dir: ReportsDir = Path("reports"),
) -> None:
    """Verify and measure every cell of a scenario, and write the report."""
    from epbench.report.build import write_report
    from epbench.report.terminal import render_cells
    from epbench.runner.launch import RunOptions, run_scenario
    from epbench.scenario import load_scenario
    from epbench.store import open_run

    planned = load_scenario(scenario, world_size=world, device=known_device(device))
    options = RunOptions(
        only=globs(only),
        launches=launches,
        budget_s=seconds(budget),
        resume=resume,
        reports_dir=reports_dir,
        device=known_device(device),
        world=world,
        nodes=nodes,
        listen=listen,
        token_file=token_file,
        join_timeout_s=parse_duration(join_timeout),
    )
    outcome = run_scenario(planned, options)
    report_path = write_report(outcome.path)
    typer.echo(render_cells(open_run(outcome.path).view()))
    typer.echo(str(report_path))
    _say(f"next: epbench show {outcome.path}")
    raise typer.Exit(outcome.exit_code)


@app.command()
def comm(
    scenario: Scenario,
    *,
    only: Only = None,
    as_json: Json = False,
    world: World = None,
    device: Device = None,
    reports_dir: ReportsDir = Path("reports"),
) -> None:
    """Measure collectives alone, on every set of groups that the layouts of a scenario use."""
    from epbench.report.comm import render_comm
    from epbench.runner.comm_command import CommOptions, sweep_scenario
    from epbench.scenario import load_scenario

    planned = load_scenario(scenario, world_size=world, device=known_device(device))
    outcome = sweep_scenario(planned, CommOptions(only=globs(only), device=planned.device, reports_dir=reports_dir))
    for warning in outcome.warnings:
        _say(f"warning: {warning}")
    if as_json:
        typer.echo(outcome.record.model_dump_json(indent=2) if outcome.record else "null")
        _say(f"kept in {outcome.path}")
    else:
        typer.echo(render_comm(outcome.record) if outcome.record else "Nothing was measured.\n")
        typer.echo(str(outcome.path))
    _say(f"next: epbench run {scenario}")
    raise typer.Exit(outcome.exit_code)


@app.command()
def show(
    run: Run,
    *,
    as_json: Json = False,
    collectives: Annotated[
        bool, typer.Option("--collectives", help="instead: each cell's collectives, beside the same bytes alone")
    ] = False,
    phases: Annotated[bool, typer.Option("--phases", help="instead: where the time of its launches went")] = False,
) -> None:
    """Print the results of a run."""
    from epbench.store import open_run

    found = open_run(run)
    if as_json:
        typer.echo(found.view().model_dump_json(indent=2))
        return
    if phases:
        from epbench.report.phases import render_phases

        typer.echo(render_phases(found.view()))
        typer.echo(str(found.path))
        return
    from epbench.report.comm import render_collectives, render_comm
    from epbench.report.terminal import render_cells
    from epbench.runner.comm import read_comm

    view, alone = found.view(), read_comm(found)
    typer.echo(render_collectives(view) if collectives else render_cells(view))
    if alone is not None and (collectives or not view.cells):
        typer.echo(render_comm(alone, whole=not view.cells))
    typer.echo(str(found.path))
    _say(f"next: epbench report {found.path}")


@app.command()
def compare(runs: _Runs, *, as_json: Json = False) -> None:
    """Print what changed from the first of several runs to the last, cell by cell."""
    from epbench.report.changes import changes_json
    from epbench.report.command import compare_paths
    from epbench.report.terminal import render_changes
    from epbench.store import open_run

    paths = [open_run(run).path for run in runs]
    compared = compare_paths(paths)
    if as_json:
        typer.echo(changes_json(compared))
        return
    typer.echo(render_changes(compared))
    typer.echo(str(paths[-1]))
    _say(f"next: epbench report {' '.join(map(str, paths))} --compare")


@app.command()
def report(
    runs: _Runs,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="where to write, instead of the run directory"),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="also write the cells as one tidy CSV file")
    ] = None,
    is_compared: Annotated[
        bool, typer.Option("--compare", help="one page: the last run, with what changed since the first")
    ] = False,
    is_markdown: Annotated[
        bool, typer.Option("--md", help="instead: print it as markdown, for a pull request")
    ] = False,
    is_opened: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
    history: Annotated[
        Path | None, typer.Option("--history", metavar="DIR", help="also draw its cells over the nights kept there")
    ] = None,
) -> None:
    """Write a run's report: one offline HTML file. Of several runs one each, or one that compares them."""
    from epbench.report.command import ReportOptions, markdown_of, write_pages
    from epbench.store import open_run

    options = ReportOptions(is_compared, is_markdown, is_opened, output, csv, history)
    options.check(len(runs))
    paths = [open_run(run).path for run in runs]
    pages = [] if is_markdown else write_pages(paths, options)
    typer.echo(markdown_of(paths, options).rstrip() if is_markdown else "\n".join(map(str, pages)))
    if csv is not None:
        _say(f"wrote {csv}")
    if is_opened:
        _open_in_browser(pages)
    _say(f"next: epbench show {paths[-1]}")


@app.command()
def doctor(
    scenario: Annotated[Path | None, typer.Argument(help="also say whether this scenario can run here")] = None,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="a warning is a failure")] = False,
    as_json: Json = False,
    world: World = None,
    device: Device = None,
    reports_dir: ReportsDir = Path("reports"),
) -> None:
    """Check whether this machine can measure, with a fix for each thing that is wrong. Needs no torch."""
    from epbench.doctor import examine, exit_code, read_machine, render_checks, wanted_of
    from epbench.runner.server import launch_variables

    wanted = None
    if scenario is not None:
        from epbench.scenario import load_scenario

        planned = load_scenario(scenario, world_size=world, device=known_device(device))
        sizes = [cell.world_size for cell in planned.cells]
        stacks = [cell.train.stack for cell in planned.cells]
        ranks = max(sizes, default=1)
        wanted = wanted_of(planned.name, len(sizes), world_size=ranks, device=planned.device, stacks=stacks)
    cache = Path(launch_variables("cuda")["TORCHINDUCTOR_CACHE_DIR"])
    checks = examine(read_machine([reports_dir, cache], wanted=wanted))
    if as_json:
        fit = exit_code(checks, strict=strict) == 0
        typer.echo(json.dumps({"fit": fit, "checks": [check.model_dump() for check in checks]}, indent=2))
    else:
        typer.echo(render_checks(checks))
        _say(f"next: epbench run {scenario or 'scenarios/quick.toml'}")
    raise typer.Exit(exit_code(checks, strict=strict))


app.command()(ab)
app.command()(gate)
app.command()(node)
app.command("launch-files")(launch_files)
app.add_typer(baseline_app, name="baseline")
app.add_typer(history_app, name="history")


def _open_in_browser(pages: list[Path]) -> None:
    import webbrowser

    with _stdout_aside():
        for page in pages:
            if not webbrowser.open(page.resolve().as_uri()):
                _say(f"there is no browser here to open {page} with")


@contextmanager
def _stdout_aside() -> Iterator[None]:
    """What processes that are started within say goes to stderr; stdout is for the path alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _refuse_long_arguments(arguments: Any) -> None:
    for argument in [arguments] if isinstance(arguments, str) else arguments:
        if len(os.fsencode(argument)) >= _LONGEST_ARGUMENT:
            raise ScenarioError(f"the argument {shown(argument)} is too long to be meant")


def _report_crash(error: Exception) -> None:
    if os.environ.get("EPBENCH_TRACEBACK"):
        traceback.print_exception(error, file=sys.stderr)
    _say(
        f"epbench: crashed with {type(error).__name__}: {shown(str(error), limit=200)}; "
        "this is a bug of epbench, and EPBENCH_TRACEBACK=1 shows where"
    )


def _say(text: str) -> None:
    write_aside(text)


def main() -> None:
    """Entry point of the console script; text that the terminal's encoding lacks is escaped, not a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
