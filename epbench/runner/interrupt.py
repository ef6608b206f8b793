"""Ctrl-C, and what CI runners and closing terminals send instead: the first ends cleanly, the second at once."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """Of the three signals, the first is noted in ``seen``; the second raises KeyboardInterrupt.

    The first ends the launch that runs and then the run. Under nohup, SIGHUP stays ignored.
    """

    def __init__(self) -> None:
        self.seen = False
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _forget(self._terminals)
        if self.seen:
            _end_helpers()
            raise KeyboardInterrupt
        self.seen = True


def _forget(terminals: Sequence[int]) -> None:
    """A terminal that has hung up refuses every line, and none of them is worth losing the run for."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _end_helpers() -> None:
    """Processes that read traces would be waited for, up to some seconds."""
    if helpers := sys.modules.get("multiprocessing"):
        for child in helpers.active_children():
            child.kill()
