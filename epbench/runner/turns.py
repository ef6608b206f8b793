"""Two sittings that take turns: who is launched when, and what a person sees of both together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from epbench.runner.interrupt import Interrupt
from epbench.runner.launched import LaunchRecord
from epbench.runner.progress import Outlook, Progress
from epbench.runner.ranklog import RankState
from epbench.runner.schedule import rounds
from epbench.runner.server import LaunchServer
from epbench.runner.session import Session
from epbench.runner.spec import LaunchSpec
from epbench.store import CellEntry

__all__ = ["ArmProgress", "Turn", "take_turns"]

VERIFICATION = -1  # the round before the first


@dataclass(frozen=True)
class ArmProgress:
    """The progress of one arm as part of both: its lines name the arm, counts and the time left are of the two."""

    progress: Progress
    arm: str
    other: Callable[[], Outlook]

    def __enter__(self) -> "ArmProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def say(self, line: str) -> None:
        """A line that stays."""
        self.progress.say(f"{self.arm}: {line}")

    def does(self, what: str) -> None:
        """What goes on apart from the ranks' phases."""
        self.progress.does(f"{self.arm}: {what}")

    def starts(self, spec: LaunchSpec, outlook: Outlook) -> None:
        """A launch begins."""
        self.progress.starts(spec, outlook.beside(self.other(), arm=self.arm))

    def moves(self, state: RankState, gpus: str = "") -> None:
        """The rank furthest behind is here."""
        self.progress.moves(state, gpus)

    def ends(self, record: LaunchRecord, outlook: Outlook, gpus: str = "") -> None:
        """A launch is over."""
        self.progress.ends(record, outlook.beside(self.other(), arm=self.arm), gpus)


@dataclass(frozen=True)
class Turn:
    """One arm while both are launched; ``entries`` are its cells that run, by their place in the plan."""

    session: Session
    server: LaunchServer
    progress: Progress
    entries: Mapping[int, CellEntry]

    def rough_s(self, row: int, number: int) -> float:
        """About how long its next launch in round ``number`` will take; 0 if it needs none."""
        return self.session.rough_s(self.entries[row], number) if row in self.entries else 0.0

    def give(self, row: int, number: int, *, beside_s: float, interrupt: Interrupt) -> bool:
        """Launches what the cell needs in round ``number``; False without time for that and ``beside_s`` more."""
        entry = self.entries.get(row)
        if entry is None:
            return True
        if self.rough_s(row, number) and not self.session.affords(entry, number, self.progress, beside_s=beside_s):
            return False
        return self.session.give(self.server, entry, number, progress=self.progress, interrupt=interrupt)


def take_turns(base: Turn, head: Turn, cells: Sequence[CellEntry], *, launches: int, interrupt: Interrupt) -> bool:
    """Launches both arms in rounds; False if Ctrl-C or a spent budget ended it. ``cells`` are those of the plan.

    A cell is verified in both arms before either is measured, so that the launches of a pair are neighbours in time; a
    pair is not begun that the budget would cut in two.
    """
    for number, order in enumerate(rounds(cells, launches)):
        for cell in order:
            for by_round in (VERIFICATION, number):
                first, second = (base, head) if number % 2 == 0 else (head, base)
                beside_s = second.rough_s(cell.order, by_round)
                if not first.give(cell.order, by_round, beside_s=beside_s, interrupt=interrupt):
                    return False
                if not second.give(cell.order, by_round, beside_s=0.0, interrupt=interrupt):
                    return False
    return True
