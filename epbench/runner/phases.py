"""Where the wall time of a launch goes, from its order to the last line of its record: exclusive phases.

A phase lasts from when its last rank entered it until the last rank entered the next one, so the phases of a launch
have no gap and no overlap and sum to ``elapsed_s``. ``start_up`` is from the parent's order to the first collective
that every rank has done, ``teardown`` from the end of the last pass to when no process is left, and ``analysis`` is
the parent's own: reading traces, judging, matching.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

from epbench.runner.spec import PHASES
from epbench.runner.watch import LaunchEnd

__all__ = ["Stopwatch", "launch_phases", "median_phases"]

_START_UP, _TEARDOWN = "start_up", "teardown"
_NAMES = {"fork": _START_UP, "start": _START_UP, "ready": _START_UP, "done": _TEARDOWN}  # the others keep theirs


def launch_phases(end: LaunchEnd, *, analysis_s: float, compile_s: float | None = None) -> dict[str, float]:
    """Seconds of each phase that the launch came to, in order, by the ranks of this node: others have other clocks.

    ``compile_s``, of the slowest rank, is taken out of the warm-up, where a launch compiles, and named apart.
    """
    entered = [tail.entered for tail in end.tails[: end.spec.ranks_per_node]]
    found: dict[str, float] = {}
    for (phase, begin_s), (_, end_s) in pairwise(_boundaries(end, entered)):
        name = _NAMES.get(phase, phase)
        found[name] = found.get(name, 0.0) + end_s - begin_s
    if compile_s is not None and "warmup" in found:
        found = _apart(found, "compile", compile_s, of="warmup")
    return found | {"analysis": analysis_s}


def _boundaries(end: LaunchEnd, entered: Sequence[Mapping[str, float]]) -> list[tuple[str, float]]:
    """(phase, when its last rank entered it), never going back: a rank that failed is passed by the others."""
    gone_s = end.ordered_s + end.elapsed_s
    boundaries = [(PHASES[0], end.ordered_s)]
    for phase in PHASES[1:]:
        times = [ranks[phase] for ranks in entered if phase in ranks]
        if times:
            boundaries.append((phase, min(gone_s, max(boundaries[-1][1], *times))))
    return [*boundaries, ("", gone_s)]


def _apart(phases: Mapping[str, float], name: str, part_s: float, *, of: str) -> dict[str, float]:
    """The phases with ``part_s`` of one of them under a name of its own, before what is left of it."""
    found: dict[str, float] = {}
    for phase, seconds in phases.items():
        if phase == of:
            found[name] = min(part_s, seconds)
            found[of] = seconds - found[name]
        else:
            found[phase] = seconds
    return found


def median_phases(launches: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Per phase the median over those launches that came to it; these no longer sum to any one launch's time."""
    times: dict[str, list[float]] = {}
    for phases in launches:
        for phase, seconds in phases.items():
            times.setdefault(phase, []).append(seconds)
    return {phase: median(seconds) for phase, seconds in times.items()}


class Stopwatch:
    """Seconds by name, of what is done one after the other from the moment when it is made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._seconds: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began_s

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Adds what the block takes to ``name``. Blocks are not nested."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began_s

    @property
    def seconds(self) -> dict[str, float]:
        """By name, with the rest as ``elsewhere``: sums to ``elapsed_s``."""
        return self._seconds | {"elsewhere": self.elapsed_s - sum(self._seconds.values())}
