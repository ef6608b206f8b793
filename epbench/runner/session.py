"""One sitting: the launches of a run that are made now, one at a time, in rounds.

A launch that ends badly is a row of the result and the next one goes on; only Ctrl-C and a spent budget end a
sitting early, and both leave what is finished where ``--resume`` finds it.
"""

import shutil
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType

from epbench.cells import MeasureSpec
from epbench.nvml import Nvml, open_nvml
from epbench.records import EnvironmentRecord
from epbench.runner.aggregate import cell_result
from epbench.runner.launched import LaunchRecord, find_launches, measured, protocol_digest, write_launch
from epbench.runner.outcome import judge
from epbench.runner.progress import Progress
from epbench.runner.schedule import Budget, Needed, is_complete, needed, rounds
from epbench.runner.server import ForkServer, launch_variables
from epbench.runner.sitting import SittingLog
from epbench.runner.spec import LaunchSpec
from epbench.runner.telemetry import sampling
from epbench.runner.watch import watch_launch
from epbench.store import CellEntry, RunDirectory

__all__ = ["Interrupt", "Session"]


class Interrupt:
    """Ctrl-C: the first ends the launch that runs and then the run, the second ends at once."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> "Interrupt":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True


class Session:
    """One sitting: the launches of a run that are made now."""

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
    ) -> None:
        self._run = run
        self._measure = measure
        self._environment = environment
        self._asked = launches
        self._budget = budget
        self._sitting = sitting
        self._gpus = gpus if measure.telemetry else ()  # UUIDs in the order of local ranks
        self._nvml: Nvml | None = None
        self._started = time.monotonic()
        self._order = 0
        self._known: dict[str, list[LaunchRecord]] = {}

    def finish_if_complete(self, entry: CellEntry) -> bool:
        """Whether nothing is left to do for a cell; its row is written if it was not, or is outdated."""
        launches = self._launches(entry)
        if not is_complete(launches, self._asked):
            return False
        result = cell_result(entry, launches, asked=self._asked, environment=self._environment)
        if self._run.read_result(entry.cell.id) != result:
            self._run.write_result(result)
            self._run.event({"event": "cell", "cell": entry.cell.id, "outcome": result.outcome})
        return True

    def launches_left(self, entry: CellEntry) -> int:
        """About how many launches a cell still needs; repeats and early ends are not foreseen."""
        launches = self._launches(entry)
        verified = any(launch.kind == "verify" for launch in launches)
        return max(1, self._asked - sum(launch.kind == "measure" for launch in launches)) + (not verified)

    def run_all(self, entries: Sequence[CellEntry], progress: Progress, interrupt: Interrupt) -> None:
        """Launch in rounds until all cells are complete, the budget is spent, or Ctrl-C."""
        variables = launch_variables(self._environment.device)
        library = open_nvml() if self._gpus else nullcontext()
        with ForkServer(variables, self._run.path / "server.log") as server, library as self._nvml:
            self._run_rounds(server, entries, progress=progress, interrupt=interrupt)
            if self._sitting.begun and not interrupt.seen:
                _warn(progress, self._sitting.end(server, lambda: interrupt.seen))

    def _run_rounds(
        self, server: ForkServer, entries: Sequence[CellEntry], *, progress: Progress, interrupt: Interrupt
    ) -> None:
        for number, order in enumerate(rounds(entries, self._asked)):
            for entry in order:
                while (need := self._needed(entry, number)) and not interrupt.seen:
                    if not self._affords(entry, need, progress):
                        return
                    if not self._sitting.begun:
                        _warn(progress, self._sitting.begin(server, lambda: interrupt.seen))
                    self._launch(server, entry, need, interrupt=interrupt, progress=progress)
                if interrupt.seen:
                    return
                self.finish_if_complete(entry)

    def _needed(self, entry: CellEntry, number: int) -> Needed | None:
        return needed(self._launches(entry), asked=self._asked, by_round=number)

    def _affords(self, entry: CellEntry, need: Needed, progress: Progress) -> bool:
        elapsed_s = time.monotonic() - self._started
        if self._budget.allows(elapsed_s, entry.cell.id, need.kind):
            return True
        progress.say(f"the budget ends here after {elapsed_s:.0f} s; cells that are not complete stay 'not run'")
        return False

    def _launch(
        self, server: ForkServer, entry: CellEntry, need: Needed, *, interrupt: Interrupt, progress: Progress
    ) -> None:
        spec = self._spec(entry, need)
        shutil.rmtree(spec.directory, ignore_errors=True)
        progress.starts(spec)
        with sampling(self._nvml, self._gpus[: spec.cell.world_size], spec.directory) as sampler:
            end = watch_launch(server, spec, interrupted=lambda: interrupt.seen, on_progress=progress.moves)
        verdict = judge(end)
        place = {"cell": entry.cell.id, "kind": spec.kind, "index": spec.index, "order": spec.order}
        self._run.event({"event": "launch"} | place | {"outcome": verdict.outcome, "reason": verdict.reason})
        if verdict.outcome == "interrupted":
            return
        history = sampler.history if sampler else None
        record = measured(end, verdict, environment=self._environment.digest, history=history)
        write_launch(spec.directory, record)
        self._known[entry.cell.id].append(record)
        self._budget.learn(record)
        progress.ends(record)

    def _spec(self, entry: CellEntry, need: Needed) -> LaunchSpec:
        name = "verify" if need.kind == "verify" else f"launch-{need.index}"
        order, self._order = self._order, self._order + 1
        return LaunchSpec(
            cell=entry.cell,
            kind=need.kind,
            index=need.index,
            order=order,
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
            self._order = max([self._order, *(launch.order + 1 for launch in found)])
        return self._known[entry.cell.id]


def _warn(progress: Progress, warnings: Sequence[str]) -> None:
    for warning in warnings:
        progress.say(f"warning: {warning}")
