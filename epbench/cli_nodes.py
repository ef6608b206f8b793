"""``epbench node``: what is typed on every machine of a run but the first."""

from pathlib import Path
from typing import Annotated

import typer

from epbench.cli_options import parse_duration
from epbench.writing import write_aside

__all__ = ["JoinTimeout", "TokenFile", "node"]

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
