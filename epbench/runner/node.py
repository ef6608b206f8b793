"""``epbench node``: this machine's share of a run that is led by another one.

It imports no torch and owns no device, as the head does not: it has a fork server of its own, passes the head's orders
on to it and says how they ended. It ends when the head ends, and leaves no process. A signal is for the head to act
on, which gets it too from a batch system: the first one is noted, the second ends this node at once.
"""

import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from epbench.doctor import check_before_run
from epbench.errors import ScenarioError, UnfitMachineError
from epbench.provenance import choose_device, describe_environment
from epbench.records import EnvironmentRecord
from epbench.runner.host_memory import oom_kills
from epbench.runner.interrupt import Interrupt
from epbench.runner.joining import Welcome, introduce
from epbench.runner.link import Link, LinkLostError, connect, gloo_interface, parse_endpoint, read_token
from epbench.runner.server import ForkServer, launch_variables
from epbench.runner.spec import LaunchSpec
from epbench.stack_support import require_installed
from epbench.writing import write_aside

__all__ = ["NodeOptions", "serve_head"]

_POLL_S = 0.25
_VISIBLE_S = 60.0  # a network file system shows a file later on other machines


@dataclass(frozen=True)
class NodeOptions:
    """What the command line says."""

    head: str  # HOST:PORT
    rank: int
    token_file: Path | None = None
    timeout_s: float = 600.0


def serve_head(options: NodeOptions) -> None:
    """Take part in the head's run until that ends. Call it from the main thread, for signals.

    Raises ScenarioError for options, UnfitMachineError if this node cannot take part, or the head is lost.
    """
    if options.rank < 1:
        raise ScenarioError(f"--node-rank must be 1 or more, got {options.rank}: the head, epbench run, is node 0")
    host, port = parse_endpoint(options.head)
    token = _token(options)
    link = connect(host, port, timeout_s=options.timeout_s)
    try:
        welcome = introduce(link, token, options.rank, environment_of=_environment)
        write_aside(f"joined {welcome.run} as node {options.rank} of {welcome.nodes}")
        log = welcome.run / f"server-node-{options.rank}.log"
        variables = launch_variables(welcome.device, gloo_interface(link.here) | dict(os.environ))
        with ForkServer(variables, log) as server, Interrupt() as interrupt:
            _Node(link, server, options.rank).serve(interrupt)
    except LinkLostError as error:
        raise UnfitMachineError(f"the head is gone: {error}; its ranks on this node are ended") from None
    finally:
        link.close()


def _token(options: NodeOptions) -> str:
    """The head may write the file after this node has started."""
    deadline = time.monotonic() + options.timeout_s
    while options.token_file is not None and not options.token_file.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return read_token(options.token_file)


def _environment(welcome: Welcome) -> EnvironmentRecord:
    """This node's; raises UnfitMachineError if it cannot take its share of the ranks."""
    device, _ = choose_device(welcome.device, welcome.world_size // welcome.nodes)
    try:
        require_installed(welcome.stacks)
    except ScenarioError as error:
        raise UnfitMachineError(str(error)) from None
    if device == "cuda":
        check_before_run(welcome.run)
    return describe_environment(
        device,
        world_size=welcome.world_size,
        nodes=welcome.nodes,
        stacks=welcome.stacks,
        variables=launch_variables(device),
    )


class _Node:
    """The loop between the head and this machine's fork server."""

    def __init__(self, link: Link, server: ForkServer, rank: int) -> None:
        self._link = link
        self._server = server
        self._rank = rank
        self._number: int | None = None  # of the order to launch that is not yet answered
        self._files: dict[Path, int] = {}  # what ranks write, and how much of it other nodes can see
        self._kills: int | None = None
        self._ends: list[Any] = [link, server]

    def serve(self, interrupt: Interrupt) -> None:
        """Until the head says that it is done; raises LinkLostError if it goes without a word."""
        is_told = False
        while True:
            if interrupt.seen and not is_told:
                write_aside("the head decides when this node ends; the same signal again ends it at once")
                is_told = True
            order = self._link.receive(0 if self._number is not None else _POLL_S)
            if order is not None:
                if order.get("done"):
                    return
                self._obey(order)
            elif self._number is not None:
                select.select(self._ends, [], [], _POLL_S)
            if self._number is not None:
                _flush(self._files)
                if answer := self._server.wait(0):
                    self._ended(answer)

    def _obey(self, order: dict[str, Any]) -> None:
        number = int(order["number"])
        if order.get("start"):
            self._link.send(self._start() | {"number": number})
        elif "launch" in order:
            self._launch(Path(order["launch"]), str(order["digest"]), number)
        elif "ask" in order:
            asked = {int(rank): int(process_id) for rank, process_id in order["ask"].items()}
            self._link.send({"number": number, "asked": {str(k): why for k, why in self._server.ask(asked).items()}})
        elif order.get("end") and self._number is not None:
            self._server.end_launch()
            self._ended({"ended": None})

    def _start(self) -> dict[str, Any]:
        try:
            return {"ready": self._server.start()}
        except UnfitMachineError as error:
            return {"cannot": str(error)}

    def _launch(self, path: Path, digest: str, number: int) -> None:
        self._number, self._kills = number, oom_kills()
        spec = _visible(path, digest)
        if spec is None:
            self._ended({"ended": 1})
            return
        ranks = range(self._rank * spec.ranks_per_node, (self._rank + 1) * spec.ranks_per_node)
        named = (spec.rank_log, spec.stack_dump, spec.flight_record)
        self._files = dict.fromkeys([name(rank) for rank in ranks for name in named], 0)
        self._server.launch(path, node=self._rank)

    def _ended(self, answer: dict[str, Any]) -> None:
        after = oom_kills()
        kills = after - self._kills if after is not None and self._kills is not None else 0
        _flush(self._files)
        self._link.send({"number": self._number, "ended": answer.get("ended"), "oom_kills": kills})
        self._number, self._files = None, {}


def _visible(path: Path, digest: str) -> LaunchSpec | None:
    """The order that the head wrote, once it can be read here; None if it does not come."""
    deadline = time.monotonic() + _VISIBLE_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if sha256(path.read_bytes()).hexdigest() == digest:
                return LaunchSpec.read(path)
        time.sleep(_POLL_S)
    write_aside(f"the order '{path}' cannot be seen on this node")
    return None


def _flush(files: dict[Path, int]) -> None:
    """Shows other nodes what ranks have written: a network file system keeps it for some seconds, or minutes."""
    for path, known in files.items():
        with suppress(OSError):
            size = path.stat().st_size
            if size != known:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                files[path] = size
