"""Launches over several nodes: the head orders one from its own fork server and from those of all other nodes.

Each launch is torchrun's rendezvous of one elastic agent a node (:mod:`epbench.runner.forkserver`), at a fresh port of
the head; rank 0 is the head's, so that the first ranks share its clock. A launch has ended when it has ended on every
node. When it ends badly on one, the others get some seconds to say what they saw, and are ended then; a node that is
lost ends the launch everywhere.
"""

import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from epbench.errors import UnfitMachineError
from epbench.runner.joining import Member
from epbench.runner.link import gloo_interface
from epbench.runner.server import ForkServer
from epbench.runner.spec import LaunchSpec
from epbench.runner.victims import EXIT_UNWRITABLE

__all__ = ["NodeServers", "over_nodes", "toward"]

_START_S = 200.0  # a little more than a fork server may take to import torch
_GRACE_S = 5.0  # longer than a victim stands back
_END_S = 40.0  # a little more than a node gives its fork server
_ASK_S = 2.0
_POLL_S = 0.25


def over_nodes(here: ForkServer, members: Sequence[Member]) -> "ForkServer | NodeServers":
    """What launches are ordered from: this machine's fork server, with those of other nodes if there are any."""
    return NodeServers(here, members) if members else here


def toward(members: Sequence[Member]) -> dict[str, str]:
    """What ranks of this machine need to meet those of the others, where a person has not set it."""
    return gloo_interface(members[0].link.here) if members else {}


class NodeServers:
    """The fork servers of all nodes, as one; a context manager that leaves nothing running."""

    def __init__(self, here: ForkServer, members: Sequence[Member]) -> None:
        self._here = here
        self._members = {member.rank: member for member in members}
        self._orders: dict[int, int] = {}  # node -> number of the order to launch
        self._ends: dict[int, dict[str, Any]] = {}  # node -> its answer, in the order in which they came
        self._troubled_s: float | None = None  # since when a node is known to have ended badly

    def __enter__(self) -> "NodeServers":
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()

    def start(self, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Start the fork server of every node and wait for all. False if it was not waited for, because of Ctrl-C.

        Raises UnfitMachineError if a node is lost or cannot start.
        """
        numbers = {member.rank: member.order(start=True) for member in self._members.values()}
        if not self._here.start(interrupted):
            return False
        deadline = time.monotonic() + _START_S
        for rank, member in self._members.items():
            while (answer := member.take(numbers[rank], _POLL_S)) is None:
                if interrupted():
                    return False
                if time.monotonic() > deadline:
                    member.lose("it did not start its ranks' process")
                if member.lost:
                    raise UnfitMachineError(member.lost)
            if not answer.get("ready"):
                raise UnfitMachineError(f"{member.name}: {answer.get('cannot')}")
        return True

    def place(self, spec: LaunchSpec) -> LaunchSpec:
        """Ranks spread equally, to meet at a port of the head that is free now."""
        host = next(iter(self._members.values())).link.here
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as door:
            port = door.getsockname()[1]
        nodes = len(self._members) + 1
        return spec.model_copy(update={"nodes": nodes, "rendezvous": f"{host}:{port}"})

    def launch(self, spec: Path) -> None:
        """Order a launch on every node."""
        self._ends, self._troubled_s = {}, None
        digest = sha256(spec.read_bytes()).hexdigest()
        self._orders = {
            rank: member.order(launch=str(spec.resolve()), digest=digest) for rank, member in self._members.items()
        }
        self._here.launch(spec)

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """How the launch ended, when it has on every node; None when that does not come in time."""
        deadline = time.monotonic() + timeout_s
        while not self._over():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            select.select(self._unheard(), [], [], min(left_s, _POLL_S))
        return self._answer()

    def ask(self, ranks: Mapping[int, int]) -> dict[int, str | None]:
        """Has the ranks of all nodes write where they stand; without those of a node that does not answer."""
        asked = {member: member.order(ask={str(rank): process_id for rank, process_id in ranks.items()})
                 for member in self._waited_for()}  # fmt: skip
        found = self._here.ask(ranks)
        for member, number in asked.items():
            answer = member.take(number, _ASK_S) or {}
            found |= {int(rank): why for rank, why in answer.get("asked", {}).items()}
        return found

    def end_launch(self) -> None:
        """Kill the launch on every node and wait until it is gone; a node that does not manage is lost."""
        waiting = self._waited_for()
        for member in waiting:
            member.order(end=True)
        if 0 not in self._ends:
            self._here.end_launch()
            self._ends[0] = {"ended": None}
        deadline = time.monotonic() + _END_S
        for member in waiting:
            answer = member.take(self._orders[member.rank], max(0.0, deadline - time.monotonic()))
            if answer is None:
                member.lose("it did not end its ranks")
            else:
                self._ends[member.rank] = answer

    @property
    def process_id(self) -> int | None:
        """Of this machine's fork server, while it runs."""
        return self._here.process_id

    def _waited_for(self) -> list[Member]:
        return [member for rank, member in self._members.items() if rank not in self._ends and not member.lost]

    def _unheard(self) -> list[Any]:
        links = [member.link for member in self._waited_for()]
        return links if 0 in self._ends else [self._here, *links]

    def _over(self) -> bool:
        """Whether the launch has ended everywhere; ends what is left of one that cannot go on."""
        self._listen()
        if self._lost or (self._troubled_s is not None and time.monotonic() > self._troubled_s + _GRACE_S):
            self.end_launch()
        return self._lost is not None or len(self._ends) == len(self._members) + 1

    def _listen(self) -> None:
        if 0 not in self._ends and (answer := self._here.wait(0)):
            self._ends[0] = answer
        for member in self._waited_for():
            if answer := member.take(self._orders[member.rank], 0):
                self._ends[member.rank] = answer
        if self._troubled_s is None and any(answer.get("ended") != 0 for answer in self._ends.values()):
            self._troubled_s = time.monotonic()

    @property
    def _lost(self) -> str | None:
        return next((member.lost for member in self._members.values() if member.lost), None)

    def _answer(self) -> dict[str, Any]:
        """The end of the node that failed first, or that could not write, as that of the launch."""
        bad = [(node, answer) for node, answer in self._ends.items() if answer.get("ended") != 0]
        unwritable = [one for one in bad if one[1].get("ended") == EXIT_UNWRITABLE]
        node, answer = (unwritable or bad or [(0, {"ended": 0})])[0]
        kills = sum(one.get("oom_kills") or 0 for one in self._ends.values())
        return {"ended": answer.get("ended"), "node": node, "oom_kills": kills, "lost": self._lost}
