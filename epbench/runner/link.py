"""JSON lines between the head node and another, over TCP, by two ends that know the same secret.

Whoever reaches the port of the head could otherwise have it measure with strange nodes, and a strange head could have
a node run what it likes. Each end proves that it knows the secret without telling it: HMAC-SHA256 of the other end's
nonce (RFC 2104). What follows is neither encrypted nor signed, as NCCL's and gloo's own connections are not: the
network between nodes is trusted, its other users are not.

A connection that breaks is seen at once; a machine that vanishes, by TCP's keepalive, after some 20 seconds.
"""

import fcntl
import hmac
import json
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from epbench.errors import ScenarioError, UnfitMachineError
from epbench.wording import shown

__all__ = [
    "TOKEN",
    "Link",
    "LinkLostError",
    "connect",
    "gloo_interface",
    "listen",
    "parse_endpoint",
    "proof",
    "read_token",
]

TOKEN = "EPBENCH_TOKEN"
_SHORTEST_TOKEN = 16
_LONGEST_LINE = 1 << 20
_SEND_S = 10.0
_RETRY_S = 0.5
_SIOCGIFADDR = 0x8915
_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}  # s, s, -, ms


class LinkLostError(Exception):
    """The other end is gone, or says what it never would; the text says how."""


class Link:
    """One connection; whole messages go in and come out. Raises OSError for one that is gone already."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._received = b""
        try:
            self._there = str(connected.getpeername()[0])
            connected.settimeout(_SEND_S)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _ALIVE.items():
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        except OSError:
            connected.close()
            raise

    def fileno(self) -> int:
        """For select; a message may also wait that was read together with the one before."""
        return self._socket.fileno()

    @property
    def here(self) -> str:
        """This end's address."""
        return str(self._socket.getsockname()[0])

    @property
    def there(self) -> str:
        """The other end's address."""
        return self._there

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises LinkLostError if the other end is gone."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise LinkLostError(_why(error)) from None

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None if there is none in time. Raises LinkLostError."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            if not select.select([self], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            self._received += self._chunk()
            if len(self._received) > _LONGEST_LINE:
                raise LinkLostError("it sent a line that is too long")
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):  # of whom nobody knows yet
            message = None
        if not isinstance(message, dict):
            raise LinkLostError("it sent what is no message")
        return message

    def expect(self, timeout_s: float) -> dict[str, Any]:
        """The next message, which must come in time. Raises LinkLostError."""
        message = self.receive(timeout_s)
        if message is None:
            raise LinkLostError(f"it said nothing for {timeout_s:g} s")
        return message

    def _chunk(self) -> bytes:
        try:
            chunk = self._socket.recv(65536)
        except OSError as error:
            raise LinkLostError(_why(error)) from None
        if not chunk:
            raise LinkLostError("it closed the connection")
        return chunk

    def close(self) -> None:
        """The other end sees it at once."""
        self._socket.close()


def _why(error: OSError) -> str:
    return f"the connection broke: {error.strerror or error}"


def proof(token: str, role: str, nonce: str) -> str:
    """What only an end that knows the secret can say of a nonce; ``role`` keeps it from being sent back."""
    return hmac.new(token.encode(), f"{role}:{nonce}".encode(), sha256).hexdigest()


def read_token(file: Path | None, variables: Mapping[str, str] = os.environ, *, make: bool = False) -> str:
    """The secret in a file, or else in the environment.

    With ``make`` a file that is not there is written, readable by its owner only. Raises ScenarioError.
    """
    if file is not None and make:
        with suppress(FileExistsError):
            _make_token(file)
    try:
        token = variables.get(TOKEN, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot read the secret in {shown(str(file))}: {error}") from None
    where = f"${TOKEN}" if file is None else shown(str(file))
    if len(token.strip()) < _SHORTEST_TOKEN:
        raise ScenarioError(
            f"several nodes need one secret of {_SHORTEST_TOKEN} characters or more in {where}, the same on each; "
            "such as that of: openssl rand -hex 16"
        )
    return token.strip()


def _make_token(file: Path) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise
    except OSError as error:
        raise ScenarioError(f"cannot write a secret to {shown(str(file))}: {error.strerror}") from None
    os.write(descriptor, f"{secrets.token_hex(16)}\n".encode())
    os.close(descriptor)


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of ``host:29400`` or ``[::1]:29400``; raises ScenarioError for anything else."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise ScenarioError(f"an address is HOST:PORT such as node1:29400, got {shown(text)}")
    return host, int(port)


def listen(host: str, port: int) -> socket.socket:
    """A socket that nodes can reach at this address of this machine. Raises UnfitMachineError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = error.strerror or str(error)
        raise UnfitMachineError(f"cannot listen for nodes at {shown(host)}, port {port}: {why}") from None


def connect(host: str, port: int, *, timeout_s: float) -> Link:
    """A connection to the head, which may start later than this node. Raises UnfitMachineError."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            return Link(socket.create_connection((host, port), timeout=max(0.1, min(left_s, _SEND_S))))
        except OSError as error:
            if left_s <= _RETRY_S:
                why = error.strerror or str(error)
                raise UnfitMachineError(f"no head at {shown(host)}, port {port}, for {timeout_s:g} s: {why}") from None
            time.sleep(_RETRY_S)


def gloo_interface(address: str) -> dict[str, str]:
    """The interface that has an address, as the one for gloo, which else asks for that of the host's name.

    Nothing for an address of no interface, or one of IPv6.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):
                packed = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(packed[20:24]) == address:
                    return {"GLOO_SOCKET_IFNAME": name}
    return {}
