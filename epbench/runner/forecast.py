"""How long the launches that are still to come will take, learned from those that are over.

A launch is like another of the same kind and mode: the first measured launch of a cell makes more passes and, if it
compiles, finds a colder cache; a verification is another thing altogether. While there is a launch ahead whose like
has not been seen, there is no forecast, rather than a wrong one. Only a later launch may stand on the first one of
its like, which is longer: then the forecast says that it is at most so much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from epbench.cells import Cell
from epbench.runner.launched import LaunchRecord
from epbench.runner.schedule import Kind, needed

__all__ = ["Ahead", "Durations", "Left", "launches_ahead"]


@dataclass(frozen=True)
class Ahead:
    """A launch that is still to come."""

    cell: Cell
    kind: Kind
    first: bool  # of the measured launches of its cell: it looks closer


@dataclass(frozen=True)
class Left:
    """How long it will be."""

    seconds: float
    at_most: bool = False


def launches_ahead(cell: Cell, launches: Sequence[LaunchRecord], *, asked: int) -> list[Ahead]:
    """What a cell still needs as far as can be foreseen: no launch that fails, and none that is invalid."""
    need = needed(launches, asked=asked, by_round=asked - 1)
    if need is None:
        return []
    measured = [launch for launch in launches if launch.kind == "measure"]
    count = asked - sum(launch.repeats is None for launch in measured) + (need.repeats is not None)
    seen = any(launch.valid and launch.detailed for launch in measured)
    verify = [Ahead(cell, "verify", first=False)] if need.kind == "verify" else []
    return verify + [Ahead(cell, "measure", first=not seen and index == 0) for index in range(count)]


class Durations:
    """What launches took, by cell, mode, kind and whether they looked closer."""

    def __init__(self) -> None:
        self._seen: list[tuple[Ahead, float]] = []

    def learn(self, cell: Cell, launch: LaunchRecord) -> None:
        """Remember how long a launch took; one that failed tells nothing of those that will not."""
        if launch.outcome == "ok":
            self._seen.append((Ahead(cell, launch.kind, first=launch.detailed), launch.elapsed_s))

    def estimate(self, ahead: Ahead) -> Left | None:
        """Median of the cell's own launches of this sort, else of all cells' in its mode; None while there is none."""
        for first in (ahead.first, True):
            sort = [(one, s) for one, s in self._seen if (one.kind, one.first) == (ahead.kind, first)]
            own = [seconds for one, seconds in sort if one.cell == ahead.cell]
            alike = [seconds for one, seconds in sort if one.cell.mode == ahead.cell.mode]
            if alike:
                return Left(median(own or alike), at_most=first != ahead.first)
        return None

    def rough_s(self, ahead: Ahead) -> float:
        """As :meth:`estimate`, else the median of whatever was of its kind; 0 while there is none."""
        known = self.estimate(ahead)
        alike = [seconds for one, seconds in self._seen if one.kind == ahead.kind]
        return known.seconds if known else median(alike or [0.0])

    def total(self, ahead: Sequence[Ahead]) -> Left | None:
        """Of all these launches, one after the other; None if there is none, or the like of any has not been seen."""
        found = [self.estimate(one) for one in ahead]
        known = [one for one in found if one is not None]
        if not found or len(known) < len(found):
            return None
        return Left(sum(one.seconds for one in known), at_most=any(one.at_most for one in known))
