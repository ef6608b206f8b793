"""Nodes join a run: both ends prove that they know the secret, and the head sees that all measure the same thing.

The head admits a node that reads the run directory (one file system for all), has the device and its share of the
ranks, and agrees in all that numbers depend on: GPU model, driver, torch, CUDA, NCCL, Python, variables, epbench's own
code. What differs is told at both ends, and ends the run before anything is launched.
"""

import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from epbench.errors import ScenarioError, UnfitMachineError
from epbench.records import EnvironmentRecord
from epbench.runner.interrupt import Interrupt
from epbench.runner.link import Link, LinkLostError, listen, parse_endpoint, proof, read_token
from epbench.wording import shown
from epbench.writing import write_aside, write_atomically

__all__ = ["Meeting", "Member", "Welcome", "differences", "gathered", "introduce", "meeting"]

_VERSION = 1  # of what is said over the link
_HANDSHAKE_S = 10.0
_JOIN_S = 120.0  # a node reads its GPUs and its own code meanwhile
_POLL_S = 0.25
_PROOF = ".nodes"
_OF_ONE_NODE = ("_SOCKET_IFNAME", "NCCL_IB_HCA")  # ends of names of variables that say how to reach this very node


@dataclass(frozen=True)
class Meeting:
    """Where nodes join, and how many there are with the head."""

    nodes: int
    host: str
    port: int
    token: str = field(repr=False)
    timeout_s: float


@dataclass(frozen=True)
class Welcome:
    """What a node must know of the run that it joins."""

    run: Path
    device: str
    world_size: int
    nodes: int
    stacks: tuple[str, ...]


@dataclass(eq=False)
class Member:
    """Another node, as the head sees it; ``lost`` says how it went."""

    rank: int
    host: str
    link: Link
    lost: str | None = None
    _orders: int = 0
    _inbox: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For sentences."""
        return f"node {self.rank} ({shown(self.host)})"

    def order(self, **order: Any) -> int:
        """Sends an order; returns its number, which the answer carries."""
        self._orders += 1
        try:
            self.link.send(order | {"number": self._orders})
        except LinkLostError as error:
            self.lose(str(error))
        return self._orders

    def take(self, number: int, timeout_s: float) -> dict[str, Any] | None:
        """The answer to an order; None if there is none in time, or the node is lost."""
        deadline = time.monotonic() + timeout_s
        while number not in self._inbox and not self.lost:
            try:
                message = self.link.receive(max(0.0, deadline - time.monotonic()))
            except LinkLostError as error:
                self.lose(str(error))
                break
            if message is None:
                break
            self._inbox[int(message.get("number") or 0)] = message
        return self._inbox.pop(number, None)

    def lose(self, why: str) -> None:
        """From now on it is gone; its end of the link sees that."""
        self.lost = self.lost or f"{self.name} is lost: {why}"
        self.link.close()


def meeting(nodes: int, endpoint: str | None, *, token_file: Path | None, timeout_s: float) -> Meeting | None:
    """Where the nodes of a run meet, None for a run on one. Raises ScenarioError for options that do not fit."""
    if nodes == 1:
        if endpoint is not None:
            raise ScenarioError("--listen is for runs on several nodes: give --nodes N too")
        return None
    if endpoint is None:
        raise ScenarioError(f"--nodes {nodes} needs --listen HOST:PORT, an address of this machine that they all reach")
    host, port = parse_endpoint(endpoint)
    return Meeting(nodes, host, port, read_token(token_file, make=True), timeout_s)


# ---------------------------------------------------------------- the head's end


@contextmanager
def gathered(
    where: Meeting | None,
    run: Path,
    environment: EnvironmentRecord,
    *,
    stacks: Sequence[str],
) -> Iterator[tuple[Member, ...]]:
    """All other nodes of a run, by rank; they end when the block ends. None on one node.

    Raises UnfitMachineError when one does not come in time, cannot take part, or differs from this node, and
    KeyboardInterrupt for Ctrl-C while they are waited for.
    """
    if where is None:
        yield ()
        return
    welcome = Welcome(run.resolve(), environment.device, environment.world_size, where.nodes, tuple(stacks))
    members: dict[int, Member] = {}
    try:
        with listen(where.host, where.port) as door:
            write_aside(f"waiting for {_others(where.nodes)} at {where.host}:{where.port}")
            with Interrupt() as interrupt:
                seen = _gather(door, where, members, welcome, environment, lambda: interrupt.seen)
            if not seen:
                raise KeyboardInterrupt
        shutil.rmtree(run / _PROOF, ignore_errors=True)
        yield tuple(members[rank] for rank in sorted(members))
        for member in members.values():
            member.order(done=True)
    finally:
        for member in members.values():
            member.link.close()


def _others(nodes: int) -> str:
    return "one more node" if nodes == 2 else f"{nodes - 1} more nodes"


def _gather(
    door: socket.socket,
    where: Meeting,
    members: dict[int, Member],
    welcome: Welcome,
    environment: EnvironmentRecord,
    interrupted: Callable[[], bool],
) -> bool:
    """Whether all are there; False if Ctrl-C came first."""
    deadline = time.monotonic() + where.timeout_s
    door.settimeout(_POLL_S)
    while len(members) < where.nodes - 1 and not interrupted():
        if time.monotonic() > deadline:
            missing = [str(rank) for rank in range(1, where.nodes) if rank not in members]
            which = f"node {missing[0]}" if len(missing) == 1 else f"nodes {', '.join(missing)}"
            raise UnfitMachineError(f"{which} of {where.nodes} did not join within {where.timeout_s:g} s")
        link = _knock(door)
        member = link and _admitted(link, where, members, welcome=welcome, environment=environment)
        if link and member:
            members[member.rank] = member
            write_aside(f"{member.name} has joined from {link.there}")
    return len(members) == where.nodes - 1


def _knock(door: socket.socket) -> Link | None:
    """Whoever connects next; None if nobody does for a moment, or who did is gone again."""
    with suppress(OSError):
        return Link(door.accept()[0])
    return None


def _admitted(
    link: Link, where: Meeting, members: Mapping[int, Member], *, welcome: Welcome, environment: EnvironmentRecord
) -> Member | None:
    """The node behind a connection; None for whoever does not know the secret. Raises UnfitMachineError."""
    there = link.there
    try:
        _prove(link, where.token)
        secret = _leave_proof(welcome.run)
        told = {name: str(value) if name == "run" else value for name, value in vars(welcome).items()}
        link.send({"welcome": told, "proof_file": secret[0]})
        said = link.expect(_JOIN_S)
        member = _member(link, said, where.nodes, members)
        why = said.get("cannot") or _why_not(said, secret[1], environment)
        link.send({"refused": why} if why else {"joined": True})
    except LinkLostError as error:
        write_aside(f"a connection from {there} was no node of this run: {error}")
        link.close()
        return None
    if why:
        link.close()
        raise UnfitMachineError(f"{member.name} cannot take part: {shown(str(why), limit=1000)[1:-1]}")
    return member


def _prove(link: Link, token: str) -> None:
    """Both ends know the secret, or LinkLostError."""
    nonce = secrets.token_hex(16)
    link.send({"epbench": _VERSION, "nonce": nonce})
    said = link.expect(_HANDSHAKE_S)
    if said.get("epbench") != _VERSION or not _equal(said.get("proof"), proof(token, "node", nonce)):
        link.send({"refused": "it is of another version of epbench, or has another secret"})
        raise LinkLostError("it is of another version of epbench, or has another secret")
    link.send({"proof": proof(token, "head", str(said.get("nonce")))})


def _equal(said: Any, wanted: str) -> bool:
    return isinstance(said, str) and secrets.compare_digest(said.encode(), wanted.encode())


def _leave_proof(run: Path) -> tuple[str, str]:
    """A file in the run directory that only a node that shares its file system can read; its name and content."""
    name, content = secrets.token_hex(8), secrets.token_hex(16)
    write_atomically(run / _PROOF / name, content)
    return f"{_PROOF}/{name}", content


def _member(link: Link, said: Mapping[str, Any], nodes: int, members: Mapping[int, Member]) -> Member:
    rank, host = said.get("node"), str(said.get("host"))
    why = None
    if not isinstance(rank, int) or not 0 < rank < nodes:
        why = f"its node rank is {shown(rank)}; it must be 1 to {nodes - 1}, the head is node 0"
    elif rank in members:
        why = f"node {rank} has joined already, from {members[rank].name}"
    if why or not isinstance(rank, int):
        link.send({"refused": why})
        raise LinkLostError(str(why))
    return Member(rank, host, link)


def _why_not(said: Mapping[str, Any], secret: str, environment: EnvironmentRecord) -> str | None:
    if said.get("proof") != secret:
        return "it does not see the run directory; --reports-dir must be on a file system that all nodes share"
    try:
        theirs = EnvironmentRecord.model_validate(said.get("environment"))
    except ValidationError:
        return "it does not tell its environment as this version of epbench does"
    differ = differences(environment, theirs)
    return f"it differs from the head in {'; '.join(differ)}" if differ else None


def differences(head: EnvironmentRecord, node: EnvironmentRecord) -> list[str]:
    """What numbers depend on and two nodes do not have in common; how a node is reached may differ."""
    fields = [name for name in EnvironmentRecord.model_fields if name not in {"digest", "variables"}]
    found = [_difference(name, getattr(head, name), getattr(node, name)) for name in fields]
    names = sorted({*head.variables, *node.variables})
    found += [
        _difference(f"variable {name}", head.variables.get(name), node.variables.get(name))
        for name in names
        if not name.endswith(_OF_ONE_NODE)
    ]
    return [text for text in found if text]


def _difference(name: str, head: Any, node: Any) -> str | None:
    return None if head == node else f"{name} (head: {shown(head)}, node: {shown(node)})"


# ---------------------------------------------------------------- the node's end


def introduce(link: Link, token: str, rank: int, *, environment_of: Callable[[Welcome], EnvironmentRecord]) -> Welcome:
    """Joins the run of the head behind a connection.

    Raises UnfitMachineError if the head refuses, or is none; ``environment_of`` raises it if this node cannot
    take part.
    """
    try:
        welcome, proof_file = _welcomed(link, token)
        answer: dict[str, Any] = {"node": rank, "host": socket.gethostname()}
        try:
            answer["environment"] = environment_of(welcome).model_dump(mode="json")
            answer["proof"] = _read_proof(welcome.run / proof_file)
        except UnfitMachineError as error:
            link.send(answer | {"cannot": str(error)})
            raise
        link.send(answer)
        _accepted(link.expect(_JOIN_S))
    except LinkLostError as error:
        raise UnfitMachineError(f"cannot join the head at {link.there}: {error}") from None
    return welcome


def _welcomed(link: Link, token: str) -> tuple[Welcome, str]:
    hello, nonce = link.expect(_HANDSHAKE_S), secrets.token_hex(16)
    if hello.get("epbench") != _VERSION:
        raise LinkLostError("it is no head of this version of epbench")
    link.send({"epbench": _VERSION, "proof": proof(token, "node", str(hello.get("nonce"))), "nonce": nonce})
    said = _accepted(link.expect(_HANDSHAKE_S))
    if not _equal(said.get("proof"), proof(token, "head", nonce)):
        raise LinkLostError("it has another secret")
    told = link.expect(_HANDSHAKE_S)
    welcome = told["welcome"]
    stacks = tuple(welcome["stacks"])
    return Welcome(**welcome | {"run": Path(welcome["run"]), "stacks": stacks}), str(told["proof_file"])


def _accepted(said: dict[str, Any]) -> dict[str, Any]:
    if "refused" in said:
        raise LinkLostError(f"it refuses this node: {shown(str(said['refused']), limit=1000)[1:-1]}")
    return said


def _read_proof(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
