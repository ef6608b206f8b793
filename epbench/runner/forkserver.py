"""One process that has imported torch, so that a launch starts in a second instead of ten to nineteen.

``python -m epbench.runner.forkserver FD`` serves a socket of JSON lines: ``{"launch": SPEC, "node": N}`` forks an
elastic agent (torchrun's own API), which forks the ranks of node N; ``{"end": true}`` ends a launch early. The answer
to a launch is ``{"ended": exit code}`` after *every* process of it is gone. The server is single-threaded,
runs no tensor operation (OpenMP threads do not survive a fork) and never touches a device (a CUDA context
does not either). When the parent's end of the socket closes, it kills what it started and ends.

Only torch and epbench are imported here: a foreign stack's module could start threads or touch a device, so
each rank imports it on its own.
"""

import gc
import importlib
import inspect
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from epbench.runner.processes import become_subreaper, die_with_parent, end_descendants
from epbench.runner.spec import LaunchSpec
from epbench.runner.victims import EXIT_UNWRITABLE, is_unwritable
from epbench.writing import write_atomically, writing

__all__ = ["main", "serve"]

_PRELOADED = (
    "torch",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.launcher.api",
    "torch.distributed.tensor.parallel",
    "torch.profiler",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "epbench.runner.worker",
    "epbench.runner.verify",
    "epbench.stacks.qwen3_moe",
    "epbench.stacks.data",
    "epbench.measure.canary",
    "epbench.measure.clock",
    "epbench.measure.comm_sweep",
    "epbench.measure.memory",
    "epbench.measure.capture",
    "epbench.measure.routing",
)
_SHUTDOWN_S = 5
_MEETING_S = 120  # until all agents of a launch have met


def serve(connection: socket.socket) -> None:
    """Answer orders until the other end closes."""
    become_subreaper()
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a rank's collector would otherwise copy this whole heap, page by page: 2 s and more
    _answer(connection, {"ready": True})
    orders = connection.makefile("r", encoding="utf-8")
    while line := orders.readline():
        order = json.loads(line)
        if "launch" in order:
            _answer(connection, {"ended": _launch(Path(order["launch"]), order.get("node", 0), connection)})
    end_descendants()


def _answer(connection: socket.socket, answer: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:  # the parent is gone; the next read says so
        return


def _launch(spec_path: Path, node: int, connection: socket.socket) -> int | None:
    """Exit code of the agent, negative for a signal, None if it was ended by order."""
    server = os.getpid()
    agent = os.fork()
    if agent == 0:
        connection.close()
        _agent(spec_path, node, server)
    ended = os.pidfd_open(agent)
    try:
        ready, _, _ = select.select([connection.fileno(), ended], [], [])
    finally:
        os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]) if ended in ready else None
    end_descendants()
    return code


def _agent(spec_path: Path, node: int, server: int) -> NoReturn:
    """The forked child: torchrun for one launch, in a session of its own."""
    code = 1
    try:
        os.setsid()
        die_with_parent(server)
        spec = LaunchSpec.read(spec_path)
        _redirect(spec.error_log(node))
        code = _run_elastic(spec, node)
    except BaseException as error:  # the launch boundary: what happens here must not unwind into the server's loop
        code = EXIT_UNWRITABLE if is_unwritable(type(error).__name__, str(error)) else 1
        with suppress(OSError):  # the log itself may be what is full
            traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    """Output of the agent and of the ranks that it forks goes to the launch's own file."""
    with writing(log):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _run_elastic(spec: LaunchSpec, node: int) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from epbench.runner.worker import run_rank

    config = LaunchConfig(
        min_nodes=spec.nodes,
        max_nodes=spec.nodes,
        nproc_per_node=spec.ranks_per_node,
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        logs_specs=DefaultLogsSpecs(log_dir=str(spec.directory / f"elastic{f'-node-{node}' if node else ''}")),
        **_meeting(spec, node),
        **_newer_options(LaunchConfig),
    )
    try:
        elastic_launch(config, run_rank)(str(spec.path), os.getpid())
    except ChildFailedError as error:
        failures = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        write_atomically(spec.agent_file(node), json.dumps({"failures": failures}))
        return 1
    return 0


def _meeting(spec: LaunchSpec, node: int) -> dict[str, Any]:
    """Where agents meet. Of several nodes, ranks are in the order of nodes: c10d would sort them by address."""
    if spec.rendezvous is None:
        here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        return here | {"run_id": f"epbench-{os.getpid()}"}
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": spec.rendezvous,
        "rdzv_configs": {"rank": node, "timeout": _MEETING_S},
        "local_addr": spec.rendezvous.rpartition(":")[0] if node == 0 else None,
        "run_id": f"epbench-{spec.order}-{spec.kind}",
    }


def _newer_options(config: type) -> dict[str, Any]:
    """How long ranks may take to end: an option since torch 2.12, the same 30 s or less before."""
    known = inspect.signature(config).parameters
    return {"shutdown_timeout": _SHUTDOWN_S} if "shutdown_timeout" in known else {}


def main() -> None:
    """Entry of ``python -m epbench.runner.forkserver FD``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
