"""``comm.json``: the sweep of collectives alone, a launch of its own on each number of ranks that is used.

Like a canary it is no cell: whatever happens to it, a run goes on, and its collectives stand without an isolated
figure beside them. What was swept in the same environment by the same protocol is not swept again.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from epbench.analysis.comm import fits_of, slow_groups, traced_points
from epbench.cells import Cell, MeasureSpec
from epbench.comm_records import CommPoint, CommRecord, Partition, Swept
from epbench.errors import RunError
from epbench.layout import Layout
from epbench.rank_groups import axes_by_groups
from epbench.records import PROTOCOL_VERSION, EnvironmentRecord
from epbench.runner.outcome import judge, require_fit
from epbench.runner.server import LaunchServer
from epbench.runner.spec import LaunchSpec
from epbench.runner.watch import LaunchEnd, watch_launch
from epbench.store import RunDirectory, read_record, write_record

__all__ = ["FILE", "CommLog", "partitions_of", "read_comm"]

FILE = "comm.json"


def partitions_of(layouts: Iterable[Layout]) -> list[Partition]:
    """Every partition of ranks into groups that the layouts use, each once, with the axes that make it."""
    return [
        Partition(
            world_size=sum(map(len, groups)),
            groups=groups,
            used_by={axis: tuple(slugs) for axis, slugs in axes.items()},
        )
        for groups, axes in axes_by_groups(layouts).items()
    ]


def read_comm(run: RunDirectory) -> CommRecord | None:
    """The sweep of a run, or None if it has none that is whole."""
    return read_record(run.path / FILE, CommRecord)


class CommLog:
    """The sweeps of one run: read from its directory, and completed there."""

    def __init__(self, run: RunDirectory, measure: MeasureSpec, environment: EnvironmentRecord) -> None:
        self._run = run
        self._measure = measure
        self._environment = environment
        found = read_comm(run)
        asked = (environment.digest, PROTOCOL_VERSION)
        self.record = found if found and (found.environment, found.protocol) == asked else None

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self._run.path

    @property
    def wanted(self) -> bool:
        """Whether a run of this scenario sweeps: as it says, else on GPUs only, for gloo tells nothing of a link."""
        asked = self._measure.comm
        return self._environment.device == "cuda" if asked == "auto" else asked

    @property
    def swept(self) -> tuple[Swept, ...]:
        """What is known so far."""
        return self.record.swept if self.record else ()

    def sweep(self, layouts: Iterable[Layout], server: LaunchServer, interrupted: Callable[[], bool]) -> Sequence[str]:
        """Sweeps what of the layouts' groups is not known yet; returns what a person should know now."""
        known = {one.partition.groups for one in self.swept}
        missing = [partition for partition in partitions_of(layouts) if partition.groups not in known]
        said: list[str] = []
        for world_size in sorted({partition.world_size for partition in missing}):
            alike = [partition for partition in missing if partition.world_size == world_size]
            said += self._launch(alike, server, interrupted)
        return said

    def _launch(
        self, partitions: Sequence[Partition], server: LaunchServer, interrupted: Callable[[], bool]
    ) -> Sequence[str]:
        spec = self._spec(partitions)
        shutil.rmtree(spec.directory, ignore_errors=True)
        end = watch_launch(server, spec, interrupted=interrupted, on_progress=lambda _: None)
        verdict = judge(end)
        how = {"outcome": verdict.outcome, "reason": verdict.reason, "elapsed_s": end.elapsed_s}
        self._run.event({"event": "comm", "partitions": len(partitions)} | how)
        if verdict.outcome == "interrupted":
            return []
        require_fit(verdict, spec.directory)
        if verdict.outcome != "ok":
            world_size = partitions[0].world_size
            return [f"no sweep of collectives on {world_size} ranks: it {verdict.outcome}: {verdict.reason}"]
        return self._keep(end)

    def _spec(self, partitions: Sequence[Partition]) -> LaunchSpec:
        world_size = partitions[0].world_size
        return LaunchSpec(
            cell=Cell(layout=Layout(dp_shard=world_size)),
            kind="comm",
            index=0,
            order=0,
            device=self._environment.device,
            measure=self._measure,
            detailed=False,
            partitions=tuple(partitions),
            directory=(self._run.path / "comm" / f"{world_size}-ranks").resolve(),
        )

    def _keep(self, end: LaunchEnd) -> Sequence[str]:
        """Adds what a launch found to ``comm.json``; returns its warnings."""
        told = end.tails[0].results["comm"]
        traced, warnings = _traced(end.spec, told["traced_steps"])
        found = []
        for partition, timed, from_traces in zip(end.spec.partitions, told["points"], traced, strict=True):
            points = (*map(CommPoint.model_validate, timed), *from_traces)
            found.append(Swept(partition=partition, points=points, fits=fits_of(points)))
        warnings += told["warnings"]
        if self._environment.device == "cuda":  # gloo's ranks share cores, and no group has a link of its own
            warnings += [text for one in found for text in slow_groups(one)]
        before = self.record or CommRecord(
            environment=self._environment.digest,
            device=self._environment.device,
            dtype=told["dtype"],
            data=told["data"],
        )
        self.record = before.model_copy(
            update={
                "swept": (*before.swept, *found),
                "warnings": (*before.warnings, *warnings),
                "elapsed_s": before.elapsed_s + end.elapsed_s,
            }
        )
        write_record(self._run.path / FILE, self.record)
        return warnings


def _traced(spec: LaunchSpec, steps: int) -> tuple[list[list[CommPoint]], list[str]]:
    """The traced points of each partition, and what to know of them; none if the traces cannot be used.

    Deletes the traces.
    """
    from epbench.analysis.collectives import clock_note, match
    from epbench.analysis.reading import read_traces

    try:
        traces = read_traces(spec.trace_directory, steps=steps)
        found = match(traces)
        note = clock_note(traces, found)
        return traced_points(found, spec.partitions), [f"collectives alone: {note}"] if note else []
    except RunError as error:
        return [[] for _ in spec.partitions], [f"the sweep of collectives has no traced figures: {error}"]
    finally:
        shutil.rmtree(spec.trace_directory, ignore_errors=True)
