"""One time that a person runs a scenario, in ``run.json``: the machine's checks, and a canary before and after.

The canary is a launch of its own on the same ranks (:mod:`epbench.measure.canary`). It is no cell: whatever
happens to it, the run goes on, and carries a warning that ``show`` and the report print.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from epbench.cells import Cell, MeasureSpec
from epbench.layout import Layout
from epbench.records import CanaryRecord, EnvironmentRecord, MachineCheck, Sitting, Spread
from epbench.runner.outcome import judge, require_fit
from epbench.runner.server import LaunchServer
from epbench.runner.spec import LaunchSpec
from epbench.runner.watch import watch_launch
from epbench.store import RunDirectory

__all__ = ["TOLERATED", "SittingLog", "differences"]

TOLERATED = 0.10  # between the medians before and after; less is how machines are


class SittingLog:
    """The sitting that is going on: an entry of ``run.json`` that is written when it begins and when it ends."""

    def __init__(
        self,
        run: RunDirectory,
        measure: MeasureSpec,
        environment: EnvironmentRecord,
        *,
        checks: Sequence[MachineCheck] = (),
    ) -> None:
        self._run = run
        self._measure = measure
        self._environment = environment
        self._checks = list(checks)
        self._sitting: Sitting | None = None

    @property
    def begun(self) -> bool:
        """Whether there was anything to launch."""
        return self._sitting is not None

    def begin(self, server: LaunchServer, interrupted: Callable[[], bool]) -> list[str]:
        """Before the first launch; returns what a person should know now."""
        warnings = [f"{check.name}: {check.found}" for check in self._checks if check.status == "warn"]
        sitting = Sitting(started=datetime.now(UTC).isoformat(), checks=self._checks, warnings=warnings)
        before = self._canary(server, "before", interrupted)
        self._sitting = sitting.model_copy(update={"canary_before": before, "warnings": warnings + _troubles(before)})
        record = self._run.record
        self._run.write_run(record.model_copy(update={"sittings": [*record.sittings, self._sitting]}))
        return self._sitting.warnings

    def note(self, warnings: Sequence[str]) -> None:
        """Keep what was found since :meth:`begin` and makes the numbers of the run doubtful."""
        assert self._sitting is not None, "a sitting is noted on after it began"
        if warnings:
            self._sitting = self._sitting.model_copy(update={"warnings": [*self._sitting.warnings, *warnings]})
            record = self._run.record
            self._run.write_run(record.model_copy(update={"sittings": [*record.sittings[:-1], self._sitting]}))

    def end(self, server: LaunchServer, interrupted: Callable[[], bool]) -> list[str]:
        """After the last launch; returns what was found to have changed since :meth:`begin`."""
        assert self._sitting is not None, "a sitting ends after it began"
        after = self._canary(server, "after", interrupted)
        found = _troubles(after) + differences(self._sitting.canary_before, after)
        changes = {"canary_after": after, "warnings": self._sitting.warnings + found}
        self._sitting = self._sitting.model_copy(update=changes)
        record = self._run.record
        self._run.write_run(record.model_copy(update={"sittings": [*record.sittings[:-1], self._sitting]}))
        return found

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Keep what the sitting's time went to."""
        assert self._sitting is not None, "a sitting ends after it began"
        self._sitting = self._sitting.model_copy(update={"spent_s": dict(seconds)})
        record = self._run.record
        self._run.write_run(record.model_copy(update={"sittings": [*record.sittings[:-1], self._sitting]}))

    def _canary(self, server: LaunchServer, when: str, interrupted: Callable[[], bool]) -> CanaryRecord | None:
        """What a canary gave, or None when none was wanted, or Ctrl-C ended it."""
        if not self._measure.canary:
            return None
        spec = self._spec(when)
        shutil.rmtree(spec.directory, ignore_errors=True)  # of a sitting that ended before it began
        end = watch_launch(server, spec, interrupted=interrupted, on_progress=lambda _: None)
        verdict = judge(end)
        how = {"outcome": verdict.outcome, "reason": verdict.reason, "elapsed_s": end.elapsed_s}
        self._run.event({"event": "canary", "when": when} | how)
        if verdict.outcome == "interrupted":
            return None
        require_fit(verdict, end.spec.directory)
        seconds = end.tails[0].results["canary"] if verdict.outcome == "ok" else {}
        return CanaryRecord(outcome=verdict.outcome, reason=verdict.reason, seconds=seconds)

    def _spec(self, when: str) -> LaunchSpec:
        number = len(self._run.record.sittings) - self.begun
        return LaunchSpec(
            cell=Cell(layout=Layout(dp_shard=self._environment.world_size)),
            kind="canary",
            index=number,
            order=0,
            device=self._environment.device,
            measure=self._measure,
            detailed=False,
            directory=(self._run.path / "canary" / f"{number}-{when}").resolve(),
        )


def _troubles(canary: CanaryRecord | None) -> list[str]:
    return [f"a canary {canary.outcome}: {canary.reason}"] if canary and canary.outcome != "ok" else []


def differences(before: CanaryRecord | None, after: CanaryRecord | None) -> list[str]:
    """A sentence for each piece of work that took another time after the run than before it.

    It did when the medians differ by more than ``TOLERATED`` and the middle halves of the repetitions lie apart:
    on a machine too noisy to tell, nothing is claimed.
    """
    if before is None or after is None:
        return []
    both = [name for name in before.seconds if name in after.seconds]
    return [text for name in both if (text := _difference(name, before.seconds[name], after.seconds[name]))]


def _difference(name: str, before: Spread, after: Spread) -> str | None:
    change = after.median / before.median - 1
    apart = after.low > before.high or after.high < before.low
    if abs(change) <= TOLERATED or not apart:
        return None
    times = f"{before.median * 1e3:.3g} ms before and {after.median * 1e3:.3g} ms after"
    return f"the machine changed during the run: the same {name} took {times} ({change:+.0%})".replace("%", " %")
