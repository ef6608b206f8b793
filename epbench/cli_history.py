"""``epbench history``: what a person types about nights, turned into one call each; nothing heavy at import."""

from pathlib import Path
from typing import Annotated

import typer

from epbench.cli_options import Json
from epbench.errors import ScenarioError
from epbench.wording import shown
from epbench.writing import write_aside

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Runs of many nights: when did what change, and what of tonight."
)

_Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="where the history lies")]
_Cell = Annotated[str, typer.Option("--cell", metavar="GLOB", help="only cells whose id or name matches")]
_Scenario = Annotated[
    str | None, typer.Option("--scenario", metavar="NAME", help="only nights of this scenario; all without it")
]
_DEFAULT = Path("history")


@app.command()
def add(
    runs: Annotated[list[str] | None, typer.Argument(help="run directories, or names as in 'show'")] = None,
    *,
    benchmark: Annotated[
        list[Path] | None, typer.Option("--benchmark", metavar="FILE", help="also: JSON that pytest-benchmark wrote")
    ] = None,
    store: _Store = _DEFAULT,
) -> None:
    """Add runs to the history, each once. It can be repeated, and several jobs may add at the same time."""
    from epbench.history.adding import BENCHMARKS, add_nights, benchmark_nights, run_nights
    from epbench.store import open_run

    if not runs and not benchmark:
        raise ScenarioError("history add needs a RUN, or --benchmark FILE")
    opened = [(run.name, run.view()) for run in map(open_run, runs or ())]
    work = [(view.run.name, run_nights(view, name)) for name, view in opened]
    work += [(BENCHMARKS, benchmark_nights(path)) for path in benchmark or ()]
    for scenario, nights in work:
        done = add_nights(store, scenario, nights)
        write_aside(f"{done.added} added, {done.present} were there")
        typer.echo(str(done.path))
    write_aside(f"next: epbench history show --store {store}")


@app.command()
def show(
    *,
    cell: _Cell = "*",
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="instead of device_work_s, else step_s")
    ] = None,
    limit: Annotated[
        float | None, typer.Option("--limit", metavar="SHARE", help="smallest change of an alarm, 0.015 is 1.5 %")
    ] = None,
    scenario: _Scenario = None,
    as_json: Json = False,
    store: _Store = _DEFAULT,
) -> None:
    """Print each cell's last night against those before it, and when its level changed."""
    from epbench.analysis.rolling import LIMIT
    from epbench.history.series import selected
    from epbench.report.history_table import history_json, render_history, trends_of

    if limit is not None and not 0 <= limit <= 10:
        raise ScenarioError(f"--limit is a share between 0 and 10 (0.015 is 1.5 %), got {shown(limit)}")
    series, warnings = selected(store, scenario=scenario, cell=cell)
    smallest = LIMIT if limit is None else limit
    trends = trends_of(series, metric, limit=smallest)
    for warning in warnings:
        write_aside(f"warning: {warning}")
    if as_json:
        typer.echo(history_json(trends))
        return
    typer.echo(render_history(trends, limit=smallest))
    write_aside(f"next: epbench report RUN --history {store}")


@app.command()
def export(
    *,
    kind: Annotated[
        str, typer.Option("--format", metavar="pytorch|csv", help="records of the PyTorch benchmark database, or CSV")
    ],
    cell: _Cell = "*",
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="only this one; may be repeated")
    ] = None,
    scenario: _Scenario = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="instead of printing it")] = None,
    store: _Store = _DEFAULT,
) -> None:
    """Write the history for another database or a spreadsheet."""
    from epbench.history.export import history_csv, pytorch_json
    from epbench.history.series import require_metrics, selected
    from epbench.writing import replace_file

    if kind not in ("pytorch", "csv"):
        raise ScenarioError(f"--format must be pytorch or csv, got {shown(kind)}")
    series, warnings = selected(store, scenario=scenario, cell=cell)
    for warning in warnings:
        write_aside(f"warning: {warning}")
    require_metrics(series, metric)
    text = pytorch_json(series, metric) if kind == "pytorch" else history_csv(series, metric).rstrip("\n")
    if output is None:
        typer.echo(text)
    else:
        replace_file(output, f"{text}\n".encode())
        typer.echo(str(output))
