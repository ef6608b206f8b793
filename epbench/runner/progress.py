"""Progress on standard error: plain lines, or a bar with the time left where it is a terminal."""

import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from epbench.runner.launched import LaunchRecord
from epbench.runner.ranklog import RankState
from epbench.runner.spec import LaunchSpec

__all__ = ["Progress", "make_progress"]


class Progress(Protocol):
    """What the runner tells while it works."""

    def __enter__(self) -> "Progress": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def starts(self, spec: LaunchSpec, /) -> None:
        """A launch begins."""
        ...

    def moves(self, state: RankState, /) -> None:
        """The rank furthest behind is here."""
        ...

    def ends(self, record: LaunchRecord) -> None:
        """A launch is over."""
        ...


def make_progress(total: int) -> Progress:
    """For ``total`` launches, of which those that are not needed after all are never counted as done."""
    return _Bar(total) if sys.stderr.isatty() else _Lines(total)


def _summary(record: LaunchRecord) -> str:
    name = f"{record.cell} {record.kind}" + (f" {record.index}" if record.kind == "measure" else "")
    if record.outcome != "ok":
        return f"{name}: {record.outcome}, {record.reason}"
    if record.value is not None and record.value.step_s is not None:
        invalid = f" (invalid: {record.value.invalid_reason})" if not record.value.valid else ""
        return f"{name}: {record.value.step_s * 1e3:.2f} ms/step in {record.elapsed_s:.1f} s{invalid}"
    passed = record.verify is not None and record.verify.passed
    return f"{name}: {'agrees with one rank' if passed else 'WRONG'} in {record.elapsed_s:.1f} s"


@dataclass
class _Lines:
    total: int
    done: int = 0

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.flush()

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def starts(self, _spec: LaunchSpec) -> None:
        self.done += 1

    def moves(self, _state: RankState) -> None:
        return

    def ends(self, record: LaunchRecord) -> None:
        self.say(f"[{self.done}/{self.total}] {_summary(record)}")


class _Bar:
    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        where = TextColumn("{task.description}", markup=False)
        self._bar = RichProgress(*columns, where, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=total)
        self._name = ""

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def starts(self, spec: LaunchSpec) -> None:
        self._name = f"{spec.cell.id} {spec.kind} {spec.index}"
        self._bar.update(self._task, description=self._name)

    def moves(self, state: RankState) -> None:
        step = "" if state.step is None else f" {state.step}"
        self._bar.update(self._task, description=f"{self._name}: {state.phase}{step}")

    def ends(self, record: LaunchRecord) -> None:
        self._bar.advance(self._task)
        self.say(_summary(record))
