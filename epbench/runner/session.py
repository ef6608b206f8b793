"""One sitting: the launches of a run that are made now, one at a time, in rounds.

A launch that ends badly is a row of the result and the next one goes on; only Ctrl-C, a spent budget and a machine
that cannot go on (a full disk, a GPU that keeps its memory) end a sitting early, and all of them leave what is
finished where ``--resume`` finds it.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from epbench.analysis.statistics import launch_interval
from epbench.cells import MeasureSpec
from epbench.nvml import Nvml, open_nvml
from epbench.records import EnvironmentRecord
from epbench.runner.aggregate import cell_result
from epbench.runner.agreement import agreed, disagreement
from epbench.runner.comm import CommLog
from epbench.runner.forecast import Ahead, Durations, launches_ahead
from epbench.runner.freed import memory_in_use, wait_until_free
from epbench.runner.interrupt import Interrupt
from epbench.runner.joining import Member
from epbench.runner.launched import LaunchRecord, find_launches, measured, protocol_digest, write_launch
from epbench.runner.nodes import over_nodes
from epbench.runner.outcome import judge, require_fit
from epbench.runner.phases import Stopwatch
from epbench.runner.progress import Outlook, Progress
from epbench.runner.ranklog import RankState
from epbench.runner.schedule import Budget, Needed, Orders, is_complete, needed, rounds
from epbench.runner.server import ForkServer, LaunchServer, launch_variables
from epbench.runner.sitting import SittingLog
from epbench.runner.spec import LaunchSpec
from epbench.runner.telemetry import held_back, held_back_lately, sampling
from epbench.runner.watch import watch_launch
from epbench.store import CellEntry, RunDirectory

__all__ = ["Interrupt", "Session"]


class Session:
    """One sitting: the launches of a run that are made now.

    ``python``, ``new_keys`` and ``variables`` are what the fork server is started with; ``orders`` is shared by those
    that take turns, so that the launches of all of them have places in one sequence.
    """

    def __init__(
        self,
        run: RunDirectory,
        measure: MeasureSpec,
        environment: EnvironmentRecord,
        *,
        launches: int,
        budget: Budget,
        sitting: SittingLog,
        gpus: Sequence[str] = (),
        inherited: Sequence[int] = (),
        python: str = sys.executable,
        new_keys: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        orders: Orders | None = None,
        members: Sequence[Member] = (),
    ) -> None:
        self._run = run
        self._measure = measure
        self._environment = environment
        self._launches_asked = launches
        self._asked_of: dict[str, int] = {}
        self._budget = budget
        self._sitting = sitting
        self._gpus = gpus  # UUIDs in the order of local ranks
        self._inherited = inherited  # descriptors that every process of every launch holds open
        self._python, self._new_keys = python, new_keys
        self._members = members  # the other nodes
        self._variables = launch_variables(environment.device) if variables is None else variables
        self._nvml: Nvml | None = None
        self._watch = Stopwatch()
        self._orders = orders or Orders()
        self._done = 0
        self._durations = Durations()
        self._todo: Sequence[CellEntry] = ()
        self._known: dict[str, list[LaunchRecord]] = {}
        self._comm = CommLog(run, measure, environment)
        self._rows = {cell_id: row for cell_id in run.entries() if (row := run.read_result(cell_id))}

    def ask(self, entry: CellEntry, launches: int) -> None:
        """From now on this cell is to have so many launches."""
        self._asked_of[entry.cell.id] = launches

    def _asked(self, entry: CellEntry) -> int:
        return self._asked_of.get(entry.cell.id, self._launches_asked)

    def finish_if_complete(self, entry: CellEntry) -> bool:
        """Whether nothing is left to do for a cell; its row is written if it was not, or is outdated."""
        launches, asked = self._launches(entry), self._asked(entry)
        if not is_complete(launches, asked):
            return False
        alone = cell_result(entry, launches, asked=asked, environment=self._environment, swept=self._comm.swept)
        row = agreed(entry, alone, self._rows.values())
        if self._rows.get(entry.cell.id) != row:
            self._run.write_result(row)
            self._rows[entry.cell.id] = row
            self._run.event({"event": "cell", "cell": entry.cell.id, "outcome": row.outcome})
        return True

    def settle(self, entries: Iterable[CellEntry]) -> list[str]:
        """Holds each complete cell against all others, now that no row is to come; a sentence for each that differs."""
        complete = [entry.cell.id for entry in entries if self.finish_if_complete(entry)]
        return [text for cell_id in complete if (text := disagreement(self._rows[cell_id]))]

    @property
    def begun(self) -> bool:
        """Whether anything was launched in this sitting."""
        return self._sitting.begun

    def note(self, warnings: Sequence[str], progress: Progress) -> None:
        """Keep and say what makes the numbers doubtful; not before the sitting has begun."""
        self._sitting.note(warnings)
        _warn(progress, warnings)

    def run_all(self, entries: Sequence[CellEntry], progress: Progress, interrupt: Interrupt) -> None:
        """Launch in rounds until all cells are complete, the budget is spent, or Ctrl-C."""
        with self.serving(entries, progress, interrupt) as server:
            for number, order in enumerate(rounds(entries, self._launches_asked)):
                for entry in order:
                    if not self.give(server, entry, number, progress=progress, interrupt=interrupt):
                        return

    @contextmanager
    def serving(self, entries: Sequence[CellEntry], progress: Progress, interrupt: Interrupt) -> Iterator[LaunchServer]:
        """The server for :meth:`give`, started with the first launch; behind the last one comes a canary."""
        self._todo = entries
        for entry in entries:
            for launch in self._launches(entry):
                self._durations.learn(entry.cell, launch)
        library = open_nvml() if self._gpus else nullcontext()
        log = self._run.path / "server.log"
        here = ForkServer(self._variables, log, inherited=self._inherited, python=self._python, new_keys=self._new_keys)
        with over_nodes(here, self._members) as server, library as self._nvml:
            yield server
            if self._sitting.begun and not interrupt.seen:
                progress.does("canary after the last launch")
                with self._watch.of("canary"):
                    found = self._sitting.end(server, lambda: interrupt.seen)
                _warn(progress, found)
        if self._sitting.begun:
            self._sitting.spent(self._watch.seconds)

    def give(
        self, server: LaunchServer, entry: CellEntry, number: int, *, progress: Progress, interrupt: Interrupt
    ) -> bool:
        """Launches a cell until it has all that it needs up to and with round ``number``; -1 is its verification.

        False if the sitting is to end here: a spent budget, or Ctrl-C.
        """
        while (need := self._needed(entry, number)) and not interrupt.seen:
            if not self.affords(entry, number, progress):
                return False
            if not (self._sitting.begun or self._begin(server, interrupt=interrupt, progress=progress)):
                return False
            with self._watch.of("launches"):
                self._launch(server, entry, need, interrupt=interrupt, progress=progress)
        self.finish_if_complete(entry)
        return not interrupt.seen

    def affords(self, entry: CellEntry, number: int, progress: Progress, *, beside_s: float = 0.0) -> bool:
        """Whether the budget has room for what the cell needs next in round ``number``, and ``beside_s`` more."""
        elapsed_s = self._watch.elapsed_s
        if self._budget.allows(elapsed_s, self.rough_s(entry, number) + beside_s):
            return True
        progress.say(f"the budget ends here after {elapsed_s:.0f} s; cells that are not complete stay 'not run'")
        return False

    def rough_s(self, entry: CellEntry, number: int) -> float:
        """About how long the launch will take that the cell needs next in round ``number``; 0 if it needs none."""
        need = self._needed(entry, number)
        return self._durations.rough_s(Ahead(entry.cell, need.kind, first=need.detailed)) if need else 0.0

    def _begin(self, server: LaunchServer, *, interrupt: Interrupt, progress: Progress) -> bool:
        """All that comes before the first launch; False if Ctrl-C came meanwhile."""
        progress.does("importing torch, once for all launches")
        with self._watch.of("fork_server"):
            if not server.start(lambda: interrupt.seen):
                return False
        progress.does("canary before the first launch")
        before = memory_in_use(self._nvml, self._gpus)
        with self._watch.of("canary"):
            warnings = self._sitting.begin(server, lambda: interrupt.seen)
            wait_until_free(self._nvml, before, interrupted=lambda: interrupt.seen)
        _warn(progress, warnings)
        with self._watch.of("collectives_alone"):
            self._sweep(server, interrupt=interrupt, progress=progress)
            wait_until_free(self._nvml, before, interrupted=lambda: interrupt.seen)
        return not interrupt.seen

    def _sweep(self, server: LaunchServer, *, interrupt: Interrupt, progress: Progress) -> None:
        """Collectives alone, on the groups of the cells to run, once; a failure is a warning."""
        if not self._comm.wanted or interrupt.seen:
            return
        progress.does("collectives alone")
        layouts = [entry.cell.layout for entry in self._todo]
        self.note(self._comm.sweep(layouts, server, lambda: interrupt.seen), progress)

    def _needed(self, entry: CellEntry, number: int) -> Needed | None:
        return needed(self._launches(entry), asked=self._asked(entry), by_round=number)

    def _launch(
        self, server: LaunchServer, entry: CellEntry, need: Needed, *, interrupt: Interrupt, progress: Progress
    ) -> None:
        spec = self._spec(entry, need)
        shutil.rmtree(spec.directory, ignore_errors=True)
        expected = self._durations.estimate(Ahead(entry.cell, need.kind, first=need.detailed))
        progress.starts(spec, self._outlook(entry, running_s=expected.seconds if expected else 0.0))
        gpus = self._gpus[: spec.cell.world_size]
        before = memory_in_use(self._nvml, gpus)
        with sampling(self._nvml, gpus if self._measure.telemetry else (), spec.directory) as sampler:

            def moves(state: RankState) -> None:
                progress.moves(state, held_back_lately(sampler.recent) if sampler else "")

            end = watch_launch(server, spec, interrupted=lambda: interrupt.seen, on_progress=moves)
        verdict = judge(end)
        place = {"cell": entry.cell.id, "kind": spec.kind, "index": spec.index, "order": spec.order}
        self._run.event({"event": "launch"} | place | {"outcome": verdict.outcome, "reason": verdict.reason})
        if verdict.outcome == "interrupted":
            return
        require_fit(verdict, spec.directory)
        progress.does("reading what the ranks wrote")
        history = sampler.history if sampler else None
        record = measured(end, verdict, environment=self._environment.digest, history=history)
        write_launch(spec.directory, record)
        self._known[entry.cell.id].append(record)
        self._durations.learn(entry.cell, record)
        self._done += 1
        progress.ends(record, self._outlook(entry), _held_back(record))
        if verdict.outcome != "ok":
            wait_until_free(self._nvml, before, interrupted=lambda: interrupt.seen)

    def outlook(self) -> Outlook:
        """How far the sitting is."""
        ahead = [one for other in self._todo for one in self._ahead(other)]
        return Outlook(done=self._done, ahead=len(ahead), left=self._durations.total(ahead))

    def _outlook(self, entry: CellEntry, *, running_s: float = 0.0) -> Outlook:
        """How far the sitting is, and what is known of the cell that it works on."""
        values = [launch.value.step_s for launch in self._launches(entry) if launch.valid and launch.value]
        steps_s = [step_s for step_s in values if step_s is not None]
        return replace(self.outlook(), running_s=running_s, step=launch_interval(steps_s), launches=len(steps_s))

    def _ahead(self, entry: CellEntry) -> list[Ahead]:
        return launches_ahead(entry.cell, self._launches(entry), asked=self._asked(entry))

    def _spec(self, entry: CellEntry, need: Needed) -> LaunchSpec:
        name = "verify" if need.kind == "verify" else f"launch-{need.index}"
        return LaunchSpec(
            cell=entry.cell,
            kind=need.kind,
            index=need.index,
            order=self._orders.take(),
            repeats=need.repeats,
            device=self._environment.device,
            measure=self._measure,
            detailed=need.detailed,
            directory=(self._run.cell_path(entry.cell.id) / name).resolve(),
        )

    def _launches(self, entry: CellEntry) -> list[LaunchRecord]:
        """What is on disk of a cell, read once, and what this sitting added."""
        if entry.cell.id not in self._known:
            found = find_launches(
                self._run.cell_path(entry.cell.id),
                environment=self._environment.digest,
                protocol=protocol_digest(self._measure),
            )
            self._known[entry.cell.id] = found
            self._orders.skip(launch.order for launch in found)
        return self._known[entry.cell.id]


def _held_back(record: LaunchRecord) -> str:
    """What held the GPUs back while the launch was timed; nothing without telemetry."""
    telemetry = record.value.telemetry if record.value else None
    return held_back(gpu.clock_reasons for gpu in telemetry.gpus) if telemetry else ""


def _warn(progress: Progress, warnings: Sequence[str]) -> None:
    for warning in warnings:
        progress.say(f"warning: {warning}")
