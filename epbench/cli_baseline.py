"""``epbench baseline``: what a person types about baselines, turned into one call each; nothing heavy at import."""

from pathlib import Path
from typing import Annotated

import typer

from epbench.cli_options import Json, Only, Run, globs
from epbench.writing import write_aside

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What a change is judged against.")

_File = Annotated[
    Path | None, typer.Option("--baseline", metavar="FILE", help="instead of NAME.baseline.json beside the scenario")
]


@app.command()
def noise(
    runs: Annotated[list[str], typer.Argument(help="run directories of one scenario, e.g. of two machine starts")],
    *,
    gate: Annotated[bool, typer.Option("--gate", help="also what a gate over all of these cells finds")] = False,
    as_json: Json = False,
) -> None:
    """How much identical launches differ, and the smallest change that 3, 5 or 8 of them find."""
    from epbench.report.noise_table import noise_json, render_noise
    from epbench.store import open_run

    found = [open_run(run) for run in runs]
    views = [run.view() for run in found]
    if as_json:
        typer.echo(noise_json(views, gate=gate))
        return
    typer.echo(render_noise(views, gate=gate))
    typer.echo(str(found[-1].path))
    write_aside(f"next: epbench report {found[-1].path}")


@app.command()
def propose(
    run: Run,
    *,
    only: Only = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="write the new baseline there, new levels included")
    ] = None,
    baseline: _File = None,
) -> None:
    """Show what accepting a run would change. Writes nothing, or only --output."""
    from epbench.baselines.change import proposed, write_proposal
    from epbench.report.baseline_table import render_proposal

    found = proposed(run, path=baseline, only=globs(only) or "*", reset=output is not None)
    typer.echo(render_proposal(found))
    if output is not None:
        write_proposal(output, found)
        typer.echo(str(output))
    changed = any(one.action in ("changed", "new level") for one in found.proposal.cells)
    write_aside(f"next: epbench baseline accept {found.run}{' --reset --reason TEXT' * changed}")


@app.command()
def accept(
    run: Run,
    *,
    reset: Annotated[bool, typer.Option("--reset", help="start a new level where a cell changed")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="why the level changed, kept in the file")
    ] = "",
    only: Only = None,
    baseline: _File = None,
) -> None:
    """Add a run to the baseline of its scenario. A cell that changed is added only with --reset."""
    from epbench.baselines.change import proposed, require_accepted, write_proposal
    from epbench.report.baseline_table import render_proposal

    found = proposed(run, path=baseline, only=globs(only) or "*", reset=reset, reason=reason)
    typer.echo(render_proposal(found))
    require_accepted(found)
    write_proposal(found.path, found)
    typer.echo(str(found.path))
    write_aside(f"next: git add {found.path}")


@app.command()
def ack(
    where: Annotated[str, typer.Argument(metavar="RUN|FILE", help="a run, or a baseline file")],
    cell: Annotated[str, typer.Argument(help="id of a cell in the baseline, or a glob of ids")],
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="why it is known, e.g. an issue")],
    until: Annotated[
        str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="last day on which it fails nothing")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="only this metric; all without it")
    ] = None,
) -> None:
    """Acknowledge a regression: it is shown and fails nothing, until a day or until a new level is accepted."""
    from epbench.baselines.change import acknowledge_cells

    path, cells = acknowledge_cells(where, cell, reason=reason, until=until, metric=metric)
    for one in cells:
        write_aside(f"acknowledged: {one}")
    typer.echo(str(path))
    write_aside(f"next: git add {path}")


@app.command()
def show(
    where: Annotated[str, typer.Argument(metavar="RUN|FILE", help="a run, or a baseline file")],
    *,
    as_json: Json = False,
) -> None:
    """Print what a baseline holds: entries with their runs, levels, acknowledgements."""
    from epbench.baselines.change import find_baseline
    from epbench.report.baseline_table import render_baseline

    path, found = find_baseline(where)
    typer.echo(found.model_dump_json(indent=2) if as_json else render_baseline(found))
    if not as_json:
        typer.echo(str(path))
