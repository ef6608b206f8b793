"""Progress on standard error, for a person: a few lines that are redrawn on a terminal, one line a launch elsewhere.

What is said is what is known: how many launches are over of those that can be foreseen, the time left once the like of
every launch to come has been seen (:mod:`epbench.runner.forecast`), the running estimate of the cell with its
interval once it has one, what holds the GPUs back, and the phase and step of the rank that is furthest behind.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from epbench.analysis.statistics import Interval
from epbench.runner.forecast import Left
from epbench.runner.launched import LaunchRecord
from epbench.runner.ranklog import RankState
from epbench.runner.spec import LaunchSpec
from epbench.writing import write_aside

__all__ = ["Outlook", "Progress", "make_progress", "packed_lines"]

_APART = "  "
_BAR_WIDTH = 24


@dataclass(frozen=True)
class Outlook:
    """Where the sitting stands between two launches, or while one runs."""

    done: int = 0  # launches of this sitting that are over
    ahead: int = 0  # that can be foreseen, the running one included
    left: Left | None = None  # for all of those; None: nothing is ahead, or it is not known yet
    step: Interval | None = None  # seconds: what the valid launches of the current cell say
    launches: int = 0  # behind ``step``
    running_s: float = 0.0  # of what is left, how long the running launch is expected to take
    arm: str = ""  # which of two sittings that take turns

    def beside(self, other: "Outlook", *, arm: str) -> "Outlook":
        """This one, of arm ``arm``, with the count and the time left of both sittings."""
        lefts = [one.left for one in (self, other) if one.ahead]
        known = [left for left in lefts if left is not None]
        left = Left(sum(one.seconds for one in known), at_most=any(one.at_most for one in known))
        return replace(
            self,
            arm=arm,
            done=self.done + other.done,
            ahead=self.ahead + other.ahead,
            left=left if known and len(known) == len(lefts) else None,
        )

    @property
    def fraction(self) -> float:
        """Of the launches, 0 to 1."""
        return self.done / max(1, self.done + self.ahead)

    @property
    def count(self) -> str:
        """``12/36``; nothing before there is anything to count."""
        return f"{self.done}/{self.done + self.ahead}" if self.done + self.ahead else ""

    def eta(self, elapsed_s: float = 0.0) -> str:
        """``ETA 12 min``, nothing while nothing is known; ``elapsed_s`` of the running launch have gone by.

        A launch that takes longer than expected takes nothing away from those behind it.
        """
        if self.left is None:
            return ""
        seconds = self.left.seconds - min(elapsed_s, self.running_s)
        return f"ETA {'at most ' if self.left.at_most else ''}{_duration(seconds)}"


class Progress(Protocol):
    """What the runner tells while it works."""

    def __enter__(self) -> "Progress": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def does(self, what: str) -> None:
        """What goes on apart from the ranks' phases."""
        ...

    def starts(self, spec: LaunchSpec, outlook: Outlook, /) -> None:
        """A launch begins."""
        ...

    def moves(self, state: RankState, gpus: str = "", /) -> None:
        """The rank furthest behind is here, and this is how the GPUs fare."""
        ...

    def ends(self, record: LaunchRecord, outlook: Outlook, gpus: str = "", /) -> None:
        """A launch is over."""
        ...


def make_progress() -> Progress:
    """Redrawn where standard error is a terminal that can be redrawn, plain lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)  # knows NO_COLOR, TERM=dumb and how wide the terminal is
    return _Bar(console) if console.is_terminal and not console.is_dumb_terminal else _Lines()


# ---------------------------------------------------------------- words


def _name(kind: str, index: int) -> str:
    return f"measure {index}" if kind == "measure" else kind


def _summary(record: LaunchRecord, arm: str = "") -> str:
    name = " ".join(filter(None, [arm, record.cell, _name(record.kind, record.index)]))
    if record.outcome != "ok":
        return f"{name}: {record.outcome}, {record.reason}"
    if record.value is not None and record.value.step_s is not None:
        invalid = f" (invalid: {record.value.invalid_reason})" if not record.value.valid else ""
        return f"{name}: {record.value.step_s * 1e3:.2f} ms/step in {record.elapsed_s:.1f} s{invalid}"
    passed = record.verify is not None and record.verify.passed
    return f"{name}: {'agrees with one rank' if passed else 'WRONG'} in {record.elapsed_s:.1f} s"


def _estimate(outlook: Outlook) -> str:
    """``218.3 ms/step [216.0, 220.1]``; nothing before the first valid launch."""
    step = outlook.step
    if step is None:
        return ""
    decimals = 1 if step.value >= 0.1 else 2 if step.value >= 0.01 else 3
    bounds = f" [{step.low * 1e3:.{decimals}f}, {step.high * 1e3:.{decimals}f}]" if step.low and step.high else ""
    return f"{step.value * 1e3:.{decimals}f} ms/step{bounds}"


def _count(launches: int) -> str:
    return f"{launches} launch" + ("es" if launches > 1 else "") if launches else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def packed_lines(pieces: list[str], width: int) -> list[str]:
    """The pieces in order, as many on a line as fit into ``width`` columns; one that alone is too long is cut."""
    lines: list[str] = []
    for piece in filter(None, pieces):
        longer = f"{lines[-1]}{_APART}{piece}" if lines else piece
        if lines and len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece if len(piece) <= width else piece[: width - 3] + "...")
    return lines


# ---------------------------------------------------------------- plain lines


class _Lines:
    def __enter__(self) -> "_Lines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.flush()

    def say(self, line: str) -> None:
        write_aside(line)

    def does(self, _what: str) -> None:
        return

    def starts(self, _spec: LaunchSpec, _outlook: Outlook) -> None:
        return

    def moves(self, _state: RankState, _gpus: str = "") -> None:
        return

    def ends(self, record: LaunchRecord, outlook: Outlook, gpus: str = "") -> None:
        known = record.kind == "measure" and outlook.launches > 1
        measured = f"{_estimate(outlook)}, {_count(outlook.launches)}" if known else ""
        parts = [_summary(record, outlook.arm), measured, gpus, outlook.eta()]
        self.say(f"[{outlook.count}] {'; '.join(filter(None, parts))}")


# ---------------------------------------------------------------- a terminal


class _Bar:
    """Redrawn when it is told something, by the caller's thread: nothing runs beside a launch."""

    def __init__(self, console: Any, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        self._console, self._clock = console, clock
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._began_s = self._launched_s = clock()
        self._outlook = Outlook()
        self._cell = self._launch = self._place = self._gpus = ""

    def __enter__(self) -> "_Bar":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def does(self, what: str) -> None:
        self._place = what
        self._draw()

    def starts(self, spec: LaunchSpec, outlook: Outlook) -> None:
        self._launched_s, self._outlook = self._clock(), outlook
        self._cell = " ".join(filter(None, [outlook.arm, spec.cell.id]))
        self._launch = _name(spec.kind, spec.index)
        self._place = self._gpus = ""
        self._draw()

    def moves(self, state: RankState, gpus: str = "") -> None:
        step = "" if state.step is None else f" {state.step}"
        self._place, self._gpus = f"rank {state.rank}: {state.phase}{step}", gpus
        self._draw()

    def ends(self, record: LaunchRecord, outlook: Outlook, gpus: str = "") -> None:
        self._launched_s, self._outlook, self._gpus = self._clock(), outlook, gpus
        self.say(_summary(record, outlook.arm))
        self._draw()

    def _draw(self) -> None:
        from rich.text import Text

        head, *lines = self._lines(self._console.width)
        text = Text(head, style="bold cyan").append("".join(f"\n{line}" for line in lines), style="not bold default")
        self._live.update(text, refresh=True)

    def _lines(self, width: int) -> list[str]:
        """The bar, how far it is and for how long; then the launch; each line at most ``width - 1`` columns."""
        outlook, room = self._outlook, width - 1  # a full last column would wrap on some terminals
        now_s = self._clock()
        numbers = [outlook.count, _clock(now_s - self._began_s), outlook.eta(now_s - self._launched_s)]
        rest = len(_APART.join(["", *filter(None, numbers)]))
        bar = _drawn_bar(outlook.fraction, room - rest) if outlook.count else ""
        launch = [self._cell, self._launch, self._place, _estimate(outlook), _count(outlook.launches), self._gpus]
        return packed_lines([bar, *numbers], room) + packed_lines(launch, room)


def _drawn_bar(fraction: float, room: int) -> str:
    """``[####....]`` in at most ``room`` columns; nothing where there is no room for one worth looking at."""
    width = min(_BAR_WIDTH, room) - 2
    full = int(fraction * width)
    return f"[{'#' * full}{'.' * (width - full)}]" if width >= 6 else ""
