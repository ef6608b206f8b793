"""``epbench gate``: what a person types about a comparison that decides, turned into one call."""

from pathlib import Path
from typing import Annotated

import typer

from epbench.cli_options import DEFAULT_FAIL_ON, FailOn, Json
from epbench.writing import write_aside

__all__ = ["gate"]


def gate(
    run: Annotated[str, typer.Argument(help="a run directory, a unique part of its name, or 'latest'; or an A/B's")],
    *,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="FILE|RUN", help="instead of NAME.baseline.json beside the scenario"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="where to write, instead of the run directory")
    ] = None,
    fail_on: FailOn = DEFAULT_FAIL_ON,
    as_json: Json = False,
) -> None:
    """Judge a run against a baseline or another run: exit code 3 regression, 5 bad cells, 4 undecided, 0 passed."""
    from epbench.report.gate.command import gate as judged
    from epbench.report.gate.text import render_verdict

    found = judged(run, baseline=baseline, output=output, fail_on=fail_on)
    typer.echo(found.verdict.model_dump_json(indent=2) if as_json else render_verdict(found.verdict))
    if not as_json:
        typer.echo(str(found.path / "verdict.json"))
        write_aside(f"next: {found.next_command}")
    raise typer.Exit(found.verdict.exit_code)
