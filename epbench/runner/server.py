"""The parent's handle on the fork server: start it, order launches, be sure that all is gone at the end."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from epbench.errors import UnfitMachineError
from epbench.runner.processes import descendants, kill_all, stat_of
from epbench.runner.spec import LaunchSpec
from epbench.writing import write_atomically, writing

__all__ = ["ForkServer", "LaunchServer", "launch_variables"]

_IMPORT_TIMEOUT_S = 180
_END_TIMEOUT_S = 30
_POLL_S = 0.25
_DEAF = {  # states of /proc/<pid>/stat in which no signal handler runs
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "waiting within the kernel, uninterruptibly",
}


class LaunchServer(Protocol):
    """What launches are ordered from: the fork server of this machine, or those of several nodes."""

    def start(self, interrupted: Callable[[], bool] = ...) -> bool:
        """Wait until launches can be ordered; False if it was interrupted."""

    def place(self, spec: LaunchSpec) -> LaunchSpec:
        """The order with where its ranks will be."""

    def launch(self, spec: Path) -> None:
        """Order a launch."""

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """The end of the launch, or None when it did not come in time."""

    def ask(self, ranks: Mapping[int, int]) -> dict[int, str | None]:
        """Have ranks (their processes) write where they stand; of those that are asked, why one cannot."""

    def end_launch(self) -> None:
        """Kill the launch, and wait until it is gone."""


def launch_variables(device: str, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the fork server and thereby of all ranks: the person's own, completed where unset.

    One OpenMP thread a rank on CPU, or ranks fight over cores; one inductor compile thread there, because
    its pool of helper processes costs more than it saves; one compile cache for all launches; a device
    count that does not initialise CUDA before the fork.
    """
    cache = Path(variables.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epbench"
    defaults = {
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    if device == "cpu":
        defaults |= {
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TORCHINDUCTOR_VEC_ISA_OK": "1",
        }
    return defaults | dict(variables)


class ForkServer:
    """One fork server process and the socket to it; a context manager that leaves nothing running."""

    def __init__(
        self,
        variables: Mapping[str, str],
        log: Path,
        *,
        inherited: Sequence[int] = (),
        python: str = sys.executable,
        new_keys: Sequence[str] = (),
    ) -> None:
        self._python = python  # another interpreter has a torch and an epbench of its own,
        self._new_keys = tuple(new_keys)  # and may not know these keys of orders, all at their defaults
        self._variables = dict(variables)
        self._log = log
        self._inherited = tuple(inherited)  # descriptors that every process of every launch holds open
        self._ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._received = b""

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """Of the server, while it runs."""
        return self._process.pid if self._process else None

    def start(self, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Start it and wait until torch is imported (4 s on a laptop, 14 s on a GPU machine); no-op while
        it runs. False if it was not waited for, because of Ctrl-C.

        Raises UnfitMachineError with the last line that it wrote when it cannot start.
        """
        if self._process is not None and self._process.poll() is None:
            return True
        self.close()
        self._spawn()
        deadline = time.monotonic() + _IMPORT_TIMEOUT_S
        while (answer := self.wait(_POLL_S)) is None and time.monotonic() < deadline:
            if interrupted():
                self.close()
                return False
        self._ready = bool((answer or {}).get("ready"))
        if not self._ready:
            self.close()
            raise UnfitMachineError(f"the ranks' process cannot start: {self._last_words()} (see '{self._log}')")
        return True

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with writing(self._log), self._log.open("ab") as log, theirs:
            self._process = subprocess.Popen(
                [self._python, "-m", "epbench.runner.forkserver", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._variables,
                pass_fds=[theirs.fileno(), *self._inherited], start_new_session=True,
            )  # fmt: skip
        self._socket = ours
        self._received = b""

    def fileno(self) -> int:
        """What can be read from when :meth:`wait` has an answer; -1 while it does not run."""
        return self._socket.fileno() if self._socket is not None else -1

    def place(self, spec: LaunchSpec) -> LaunchSpec:
        """All ranks are here."""
        return spec

    def launch(self, spec: Path, *, node: int = 0) -> None:
        """Order the ranks of a node; :meth:`wait` tells when all of their processes are gone."""
        if self._new_keys:
            _leave_out(spec, self._new_keys)
        self._send({"launch": str(spec.resolve()), "node": node})

    def ask(self, ranks: Mapping[int, int]) -> dict[int, str | None]:
        """Signals those of the ranks' processes that are below this server."""
        ours = set(descendants(self.process_id)) if self.process_id else set()
        asked = {rank: process_id for rank, process_id in ranks.items() if process_id in ours}
        deaf = {rank: _why_deaf(process_id) for rank, process_id in asked.items()}
        for process_id in asked.values():
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                with suppress(ProcessLookupError):
                    os.kill(process_id, number)
        return deaf

    def end_launch(self) -> None:
        """Kill the launch and wait until it is gone; a server that does not manage is replaced."""
        self._send({"end": True})
        if self.wait(_END_TIMEOUT_S) is None:
            self.close()

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """The next answer, ``{"ended": None}`` if the server itself died, None when there is none in time."""
        assert self._socket is not None, "the fork server is not running"
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(timeout_s):
                    return None
                try:
                    chunk = self._socket.recv(65536)
                except ConnectionResetError:  # it died with an order unread
                    chunk = b""
                if not chunk:
                    return {"ended": None, "died": True}
                self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Close the socket, on which the server ends all it started and itself; at once while it still imports."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is None:
            return
        try:
            self._process.wait(_END_TIMEOUT_S if self._ready else 0)
        except subprocess.TimeoutExpired:
            kill_all([*descendants(self._process.pid), self._process.pid])
            self._process.wait()
        self._process, self._ready = None, False

    def _send(self, order: dict[str, Any]) -> None:
        assert self._socket is not None, "the fork server is not running"
        try:
            self._socket.sendall(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:  # it died; wait() says so
            return

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _why_deaf(process_id: int) -> str | None:
    stat = stat_of(process_id)
    return _DEAF.get(stat[0]) if stat else None


def _leave_out(spec: Path, keys: Sequence[str]) -> None:
    """Takes keys, dotted, off an order."""
    order: dict[str, Any] = json.loads(spec.read_text(encoding="utf-8"))
    for key in keys:
        *tables, name = key.split(".")
        table = order
        for one in tables:
            table = table[one]
        table.pop(name, None)
    write_atomically(spec, json.dumps(order, indent=2))
