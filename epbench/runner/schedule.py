"""In which order cells are launched, and what a cell still needs.

Rounds: each gives every cell one launch, odd rounds in reverse, so that a machine that slows down over the
sitting slows all cells alike (ABBA); the modes of one layout are neighbours within a round, for they are what
is compared most. A cell is verified just before its first launch. An invalid launch is repeated once at most.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from epbench.runner.aggregate import fatal
from epbench.runner.launched import LaunchRecord
from epbench.store import CellEntry

__all__ = ["Budget", "Kind", "Needed", "Orders", "is_complete", "needed", "rounds"]

Kind = Literal["verify", "measure"]


@dataclass(frozen=True)
class Needed:
    """The next launch of a cell."""

    kind: Kind
    index: int
    detailed: bool
    repeats: int | None = None


def rounds(entries: Sequence[CellEntry], launches: int) -> Iterator[list[CellEntry]]:
    """The cells in the order of each round."""
    order = _modes_together(entries)
    for number in range(launches):
        yield order if number % 2 == 0 else order[::-1]


def _modes_together(entries: Sequence[CellEntry]) -> list[CellEntry]:
    """The order of the plan, but cells that differ in their mode only stand together."""
    groups: dict[str, list[CellEntry]] = {}
    for entry in entries:
        alike = entry.cell.model_dump_json(exclude={"mode", "expect"})
        groups.setdefault(alike, []).append(entry)
    return [entry for group in groups.values() for entry in group]


def needed(launches: Sequence[LaunchRecord], *, asked: int, by_round: int) -> Needed | None:
    """What a cell needs so as to have its launches up to and with round ``by_round``, or None."""
    if fatal(launches) is not None:
        return None
    if not any(launch.kind == "verify" for launch in launches):
        return Needed("verify", 0, detailed=False)
    measured = [launch for launch in launches if launch.kind == "measure"]
    index = 1 + max((launch.index for launch in measured), default=-1)
    detailed = not any(launch.valid and launch.detailed for launch in measured)
    repeated = {launch.repeats for launch in measured}
    first = [launch for launch in measured if launch.repeats is None]
    for launch in first:
        if not launch.valid and launch.index not in repeated:
            return Needed("measure", index, detailed=detailed, repeats=launch.index)
    return Needed("measure", index, detailed=detailed) if len(first) < min(by_round + 1, asked) else None


def is_complete(launches: Sequence[LaunchRecord], asked: int) -> bool:
    """Whether a cell's row can be written."""
    return needed(launches, asked=asked, by_round=asked - 1) is None


@dataclass(frozen=True)
class Budget:
    """Whether the next launch still fits into the time that the person gave."""

    limit_s: float | None

    def allows(self, elapsed_s: float, launch_s: float) -> bool:
        """Whether a launch started now, of about ``launch_s``, is expected to end in time."""
        return self.limit_s is None or elapsed_s + launch_s <= self.limit_s


class Orders:
    """Places in the sequence of launches, each handed out once."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        """The next free place."""
        taken, self._next = self._next, self._next + 1
        return taken

    def skip(self, taken: Iterable[int]) -> None:
        """These places are those of launches that are there already."""
        self._next = max([self._next, *(order + 1 for order in taken)])
