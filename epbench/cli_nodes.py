"""``epbench node``, typed on every machine of a run but the first, and ``epbench launch-files``."""

from pathlib import Path
from typing import Annotated

import typer

from epbench.cli_options import World, parse_duration
from epbench.writing import write_aside

__all__ = ["JoinTimeout", "TokenFile", "launch_files", "node"]

TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="EPBENCH_TOKEN_FILE",
        help="with the secret of all nodes, which the head writes; else it is $EPBENCH_TOKEN",
    ),
]
JoinTimeout = Annotated[
    str, typer.Option("--join-timeout", metavar="TIME", help="how long nodes wait for each other, e.g. 10m")
]


def node(
    *,
    join: Annotated[
        str, typer.Option("--join", metavar="HOST:PORT", envvar="EPBENCH_JOIN", help="what the head listens at")
    ],
    node_rank: Annotated[
        int, typer.Option("--node-rank", metavar="N", envvar="EPBENCH_NODE_RANK", help="1 or more; the head is node 0")
    ],
    token_file: TokenFile = None,
    join_timeout: JoinTimeout = "10m",
) -> None:
    """Give this machine's ranks to a run on several nodes, until 'epbench run --nodes N' ends on the first."""
    from epbench.runner.node import NodeOptions, serve_head

    options = NodeOptions(join, node_rank, token_file=token_file, timeout_s=parse_duration(join_timeout))
    serve_head(options)
    write_aside("the run has ended, and this node with it")


def launch_files(
    scenario: Annotated[Path, typer.Argument(help="a scenario file, as the files are to name it")],
    *,
    kind: Annotated[str, typer.Option("--kind", metavar="sbatch|jobset|github|gitlab|all", help="which files")] = "all",
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="where to write them")] = Path("launch-files"),
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="that share the ranks equally")] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", metavar="G", min=1, help="to ask for; else one a rank")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="of 'epbench run'; limits of time follow from it")
    ] = "90m",
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="FILE", help="instead of NAME.baseline.json beside the scenario")
    ] = "",
    setup: Annotated[
        str, typer.Option("--setup", metavar="COMMAND", help="to run first, e.g. '. /opt/venv/bin/activate'")
    ] = "",
    code: Annotated[
        str,
        typer.Option("--code", metavar="DIR", help="work tree whose revisions are compared, instead of epbench's own"),
    ] = "",
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="of Kubernetes, with epbench in it")] = (
        "epbench:latest"
    ),
    runner: Annotated[str, typer.Option("--runner", metavar="LABEL", help="of the CI's machine with GPUs")] = "gpu",
    world: World = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite files that were edited")] = False,
) -> None:
    """Write what Slurm, Kubernetes, GitHub or GitLab needs to run a scenario and gate it."""
    from epbench.launch_files.files import LaunchFileOptions, render_launch_files, write_launch_files
    from epbench.scenario import load_scenario

    options = LaunchFileOptions(
        kind=kind,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        budget_s=parse_duration(budget),
        image=image,
        runner=runner,
        baseline=baseline,
        code=code,
        setup=setup,
    )
    files = render_launch_files(load_scenario(scenario, world_size=world), scenario, options)
    for path in write_launch_files(files, output, force=force):
        typer.echo(str(path))
    write_aside("next: see docs/ci.md")
