"""Which cells are worth choosing: throughput against memory, where throughput is known to an interval only.

A cell's **standing** follows from its comparisons with the cells that need no more memory than it does:

- ``on``: it is faster than each of them, and every interval says so (or none needs so little memory);
- ``dominated``: one of them is faster, and the interval says so;
- ``may be``: neither. More launches may tell, more steps will not.

Each comparison is the one of the table, alone at 95 %. What a cell is told against needs no more memory, so it fits
wherever the cell fits: a smaller limit takes cells away from the right and changes no standing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from epbench.analysis.pairwise import ratios_to
from epbench.analysis.statistics import MIN_LAUNCHES, Interval
from epbench.records import CellResult
from epbench.report.comparison import Compared, pareto, step_rounds, throughput
from epbench.report.quantities import peak_bytes
from epbench.report.selection import weighed
from epbench.report.text import gib, join, number

__all__ = ["Answer", "Choice", "Point", "Room", "Standing", "answer_for", "choice_of", "room_of"]

Standing = Literal["on", "may be", "dominated"]
_KEPT_FREE = 0.10
_SHOWN_NAMES = 4
_NO_RANKING = f"fewer than two cells that fit have {MIN_LAUNCHES} valid launches, so nothing is ranked"


@dataclass(frozen=True)
class Point:
    """A cell with both numbers; ``rival`` is the fastest of those that dominate it, and how much faster it is."""

    cell: CellResult
    name: str
    peak_bytes: int
    tokens_per_s: Interval  # of one rank
    standing: Standing
    rival: tuple[str, Interval] | None = None


@dataclass(frozen=True)
class Answer:
    """What to choose where at least ``from_bytes`` may be used, and less than the next answer asks for."""

    from_bytes: int
    text: str


@dataclass(frozen=True)
class Choice:
    """A group's points by growing memory, the best value at each limit, and the answers by growing limit."""

    points: tuple[Point, ...]
    line: tuple[Point, ...]  # no other point has both a peak as low and a median throughput as high
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Room:
    """Memory of one device, what is kept free of it unless the reader says otherwise, and by which steps he may."""

    capacity_bytes: int
    step_bytes: int

    @property
    def free_bytes(self) -> int:
        """A tenth, in whole steps.

        What torch reserves is not all: CUDA's context and NCCL's buffers stand beside it, and a step whose tokens
        fall less evenly than those that were measured needs more. Whoever knows both may keep less free.
        """
        return round(_KEPT_FREE * self.capacity_bytes / self.step_bytes) * self.step_bytes


def room_of(compared: Compared) -> Room | None:
    """None where the run does not know its devices' memory."""
    capacity = compared.view.environment.device_memory_bytes
    if not capacity:
        return None
    return Room(capacity, 2**30 if capacity >= 20 * 2**30 else 2**27)


def choice_of(compared: Compared, cells: Sequence[CellResult]) -> Choice:
    """Of the cells of one group; those without a peak or a throughput are left out."""
    found = sorted(weighed(compared, cells), key=lambda cell: (_peak(compared, cell), cell.step_s or 0.0))
    steps = list(ratios_to([step_rounds(cell) for cell in found]))  # [a][b]: how many times as fast b is as a
    points = tuple(_point(compared, found, index, row) for index, row in enumerate(steps))
    best = pareto((point.cell.cell, float(point.peak_bytes), point.tokens_per_s.value) for point in points)
    line = tuple(point for point in points if point.cell.cell in best)
    return Choice(points, line, tuple(_answers(compared, points, [_first_faster(row) for row in steps])))


def _first_faster(others: Sequence[Interval]) -> int:
    """Place of the first, by peak, that a cell is slower than by its interval; beyond all others if there is none."""
    return next((place for place, speed in enumerate(others) if _is_faster(speed)), len(others))


def _is_faster(speed: Interval) -> bool:
    return speed.excludes(1.0) and speed.value > 1.0


def _peak(compared: Compared, cell: CellResult) -> int:
    peak = peak_bytes(cell, compared)
    assert peak is not None, f"{cell.cell} has no peak of memory"
    return peak


def _point(compared: Compared, cells: Sequence[CellResult], index: int, others: Sequence[Interval]) -> Point:
    cell, peak, tokens = cells[index], _peak(compared, cells[index]), throughput(cells[index])
    assert tokens is not None, f"{cell.cell} has no throughput"
    rivals = [
        (other, speed)
        for place, (other, speed) in enumerate(zip(cells, others, strict=True))
        if place != index and _peak(compared, other) <= peak
    ]
    standing, rival = _standing(rivals)
    named = None if rival is None else (compared.naming.arm(rival[0]), rival[1])
    return Point(cell, compared.naming.arm(cell), peak, tokens, standing, named)


def _standing(
    rivals: Sequence[tuple[CellResult, Interval]],
) -> tuple[Standing, tuple[CellResult, Interval] | None]:
    """Of a cell, given how many times as fast each cell is that needs no more memory."""
    faster = [(cell, speed) for cell, speed in rivals if _is_faster(speed)]
    if faster:
        return "dominated", max(faster, key=lambda rival: rival[1].value)
    return ("on" if all(speed.excludes(1.0) for _, speed in rivals) else "may be"), None


# ---------------------------------------------------------------- what to choose


def answer_for(choice: Choice, room: Room, free_bytes: int) -> str:
    """The answer where ``free_bytes`` of a device stay free, as a sentence; the page's script makes the same one."""
    may_use = room.capacity_bytes - free_bytes
    fitting = [answer for answer in choice.answers if answer.from_bytes <= may_use]
    return f"With {gib(free_bytes)} GiB of {gib(room.capacity_bytes)} GiB kept free, {fitting[-1].text}"


def _answers(compared: Compared, points: Sequence[Point], first_faster: Sequence[int]) -> Iterator[Answer]:
    """One for each limit at which it changes; the first is for a limit that nothing fits in."""
    if points:
        yield Answer(0, f"nothing that was measured fits: the smallest peak is {gib(points[0].peak_bytes)} GiB.")
    last = ""
    for count, point in enumerate(points, start=1):
        if count < len(points) and points[count].peak_bytes == point.peak_bytes:
            continue  # both fit or neither does
        text = _answer(compared, points[:count], first_faster)
        if text != last:
            yield Answer(point.peak_bytes, text)
            last = text


def _answer(compared: Compared, fitting: Sequence[Point], first_faster: Sequence[int]) -> str:
    """Of the points that fit; ``first_faster`` is the place among all points of the first that beats each."""
    ranked = [place for place, point in enumerate(fitting) if point.tokens_per_s.known]
    is_ranking = len(ranked) > 1
    best = max(ranked if is_ranking else range(len(fitting)), key=lambda place: fitting[place].tokens_per_s.value)
    told = _told(compared, fitting[best])
    if len(fitting) == 1:
        return f"only {told} fits."
    if not is_ranking:
        return f"the highest median is that of {told}; {_NO_RANKING}."
    tied = [place for place in ranked if first_faster[place] >= len(fitting) and place != best]
    if not tied:
        return f"{told} is the fastest that fits{_unranked(fitting)}."
    least = fitting[min([best, *tied])]
    names = _some([fitting[place].name for place in [best, *tied]])
    return (
        f"{names} are the fastest that fit and cannot be told apart; {_told(compared, least)} needs the least "
        f"memory{_unranked(fitting)}."
    )


def _unranked(fitting: Sequence[Point]) -> str:
    """Who was not asked: cells with too few launches for an interval."""
    names = [point.name for point in fitting if not point.tokens_per_s.known]
    return f"; not ranked, below {MIN_LAUNCHES} valid launches: {_some(names)}" if names else ""


def _told(compared: Compared, point: Point) -> str:
    speed = number(point.tokens_per_s.value)
    return f"{point.name} ({speed} tokens/s/{compared.rank_word}, peak {gib(point.peak_bytes)} GiB)"


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return join(names) if more < 2 else f"{', '.join(names[:_SHOWN_NAMES])} and {more} others"
