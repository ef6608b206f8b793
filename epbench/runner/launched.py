"""``launch.json``: what one launch gave, written by the parent when the launch is over and never before.

A launch's value is the median over its timed steps of the per-step maximum over ranks: a step is done when
the slowest rank is. Memory is that of the rank with the highest peak. A launch that does not measure the
steady state (recompiled while it was timed, never became stationary, lost its loss) is kept and marked
invalid.
"""

import platform
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import median, stdev
from typing import Any, Literal

from pydantic import Field

from epbench.cells import Cell, Frozen, MeasureSpec, digest
from epbench.memory_records import PeakMemory, RankMemory
from epbench.records import (
    PROTOCOL_VERSION,
    SCHEMA_VERSION,
    Breakdown,
    CollectiveRow,
    CompileRecord,
    ExpertLoad,
    LaunchValue,
    Outcome,
    VerifyRecord,
)
from epbench.runner.outcome import Verdict
from epbench.runner.phases import launch_phases
from epbench.runner.telemetry import History, energy_j_per_token, slowed_down, telemetry_of, timed_window
from epbench.runner.traced import TRACED_TIMES, traced
from epbench.runner.watch import LaunchEnd
from epbench.store import read_record, write_record

__all__ = ["LaunchRecord", "find_launches", "measured", "protocol_digest", "write_launch"]

FILE = "launch.json"


class LaunchRecord(Frozen):
    """One launch. ``value`` is None where nothing was timed, details where they were not looked at."""

    schema_version: int = SCHEMA_VERSION
    cell: str
    kind: Literal["verify", "measure"]
    index: int
    order: int
    repeats: int | None = Field(None, description="index of the invalid launch that this one replaces")
    environment: str = Field(description="digest of the environment")
    protocol: str = Field(description="digest of how it was measured")
    outcome: Outcome
    reason: str | None
    requested_bytes: int | None = Field(None, description="of oom: what the allocator was asked for")
    elapsed_s: float = Field(description="wall time of the whole launch, from its order to this record")
    phases_s: dict[str, float] = Field(default_factory=dict, description="sum to elapsed_s")
    value: LaunchValue | None = None
    losses: list[float] = Field(default_factory=list, description="of the first steps, up to one that is not finite")
    compile: CompileRecord = CompileRecord()
    memory: PeakMemory | None = None
    expert_load: ExpertLoad | None = None
    collectives: list[CollectiveRow] = Field(default_factory=list)
    breakdown: Breakdown = Breakdown()
    breakdown_per_rank: list[Breakdown] = Field(default_factory=list)
    kernels_s: dict[str, float] = Field(default_factory=dict)
    kernel_count: float | None = None
    unclassified_share: float | None = None
    note: str | None = Field(None, description="what could not be looked at, and why; the value stands")
    verify: VerifyRecord | None = None

    @property
    def valid(self) -> bool:
        """Whether its value counts."""
        return self.value is not None and self.value.valid

    @property
    def detailed(self) -> bool:
        """Whether the memory, routing and trace passes were run."""
        return self.memory is not None


def protocol_digest(measure: MeasureSpec) -> str:
    """Digest of what a number depends on besides cell and environment; how many launches is no part."""
    unrelated = {"launches", "progress_timeout_s", "launch_timeout_s", "telemetry", "canary", "comm", "record_routing"}
    return digest([PROTOCOL_VERSION, measure.model_dump(mode="json", exclude=unrelated)])


def measured(end: LaunchEnd, verdict: Verdict, *, environment: str, history: History | None = None) -> LaunchRecord:
    """The record of a launch that has ended; trace files are read for the rows of its collectives.

    ``history`` is what was sampled of its GPUs meanwhile.
    """
    began_s = time.monotonic()
    record = _measured(end, verdict, environment=environment, history=history)
    analysis_s = time.monotonic() - began_s
    phases_s = launch_phases(end, analysis_s=analysis_s, compile_s=record.compile.seconds)
    return record.model_copy(update={"elapsed_s": end.elapsed_s + analysis_s, "phases_s": phases_s})


def _measured(end: LaunchEnd, verdict: Verdict, *, environment: str, history: History | None) -> LaunchRecord:
    spec = end.spec
    lost = history.loss if history else None
    record = LaunchRecord(
        cell=spec.cell.id,
        kind=spec.kind,
        index=spec.index,
        order=spec.order,
        repeats=spec.repeats,
        environment=environment,
        protocol=protocol_digest(spec.measure),
        outcome=verdict.outcome,
        reason=f"{lost}; {verdict.reason}" if lost and verdict.outcome != "ok" else verdict.reason,
        requested_bytes=verdict.requested_bytes,
        elapsed_s=end.elapsed_s,
    )
    if verdict.outcome != "ok":
        return record
    results = [tail.results for tail in end.tails]
    found = _verified(results) if spec.kind == "verify" else _timed(end, results)
    if history is not None and spec.kind == "measure":
        found["value"] = _watched(found["value"], end, history)
    return record.model_copy(update=found)


def _watched(value: LaunchValue, end: LaunchEnd, history: History) -> LaunchValue:
    """The value with what its GPUs did meanwhile; it does not stand if they were held back, or lost.

    Only this node's GPUs are sampled, so of several nodes there is no energy of a token.
    """
    window = timed_window(end.tails[: end.spec.ranks_per_node])
    if window is None or value.step_s is None:
        return value
    telemetry = telemetry_of(history, window)
    reasons = (history.loss, slowed_down(telemetry), value.invalid_reason)  # causes before what follows from them
    invalid = "; ".join(reason for reason in reasons if reason) or None
    tokens = end.spec.cell.tokens_per_step
    energy = energy_j_per_token(telemetry, step_s=value.step_s, tokens_per_step=tokens) if end.spec.nodes == 1 else None
    found = {"telemetry": telemetry, "energy_j_per_token": energy, "valid": invalid is None, "invalid_reason": invalid}
    return value.model_copy(update=found)


def _verified(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"verify": VerifyRecord.model_validate(results[0]["verify"])}


def _timed(end: LaunchEnd, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    timings = [result["timing"] for result in results]
    compiled = _compiled(timings, results[0]["description"]["compile_strategy"], end.spec.cell)
    value = _value(end, timings).model_copy(update={"compile_s": compiled.seconds})
    found: dict[str, Any] = {
        "value": value,
        "losses": first_losses(timings[0]["losses"]),
        "compile": compiled,
    }
    if end.spec.detailed:
        found["memory"] = PeakMemory.of([RankMemory.model_validate(result["memory"]) for result in results])
        found["expert_load"] = ExpertLoad.model_validate(results[0]["expert_load"])
    if end.spec.traced:
        found |= traced(end.spec)
        times = {name: found.pop(name) for name in TRACED_TIMES if name in found}
        found["value"] = value.model_copy(update=times)
    return found


def _value(end: LaunchEnd, timings: Sequence[dict[str, Any]]) -> LaunchValue:
    steps_s = slowest_per_step([timing["steps_s"] for timing in timings])
    invalid = _why_invalid(timings)
    return LaunchValue(
        index=end.spec.index,
        order=end.spec.order,
        step_s=median(steps_s),
        steps=len(steps_s),
        warmup_steps=timings[0]["warmup_steps"],
        step_sd_s=stdev(steps_s) if len(steps_s) > 1 else None,
        valid=invalid is None,
        invalid_reason=invalid,
        host=_hosts(end),
    )


def slowest_per_step(ranks: Sequence[Sequence[float]]) -> list[float]:
    """Seconds of each step on its slowest rank; all ranks have timed the same steps."""
    assert len({len(steps) for steps in ranks}) == 1, "ranks timed different numbers of steps"
    return [max(step) for step in zip(*ranks, strict=True)]


def first_losses(losses: Sequence[float | None]) -> list[float]:
    """Up to the first that is not finite: what stands at a place in the list is the loss of that step."""
    return [loss for loss in takewhile(lambda loss: loss is not None, losses) if loss is not None]


def _why_invalid(timings: Sequence[dict[str, Any]]) -> str | None:
    if any(loss is None for timing in timings for loss in timing["losses"]):
        return "the loss was not finite within the first steps"
    recompiles = max(timing["recompiles"] or 0 for timing in timings)
    if recompiles:
        return f"compiled {recompiles} more times while it was timed"
    if not all(timing["settled"] for timing in timings):
        return f"step times were not stationary after {timings[0]['warmup_steps']} warm-up steps"
    return None


def _compiled(timings: Sequence[dict[str, Any]], strategy: str | None, cell: Cell) -> CompileRecord:
    """The slowest rank's compile time and the worst counts; all None in eager mode."""
    if cell.mode == "eager":
        return CompileRecord()
    return CompileRecord(
        seconds=_largest(timings, "compile_s"),
        graph_breaks=_largest(timings, "graph_breaks"),
        recompiles=_largest(timings, "recompiles"),
        strategy=strategy,
    )


def _largest(timings: Sequence[dict[str, Any]], key: str) -> Any:
    return max((timing[key] for timing in timings if timing[key] is not None), default=None)


def _hosts(end: LaunchEnd) -> dict[str, Any]:
    """What the environment's digest leaves out: machine, GPUs and time."""
    hosts = [tail.results["host"] for tail in end.tails]
    return {
        "names": sorted({host["name"] for host in hosts}),
        "gpu_uuids": [host["gpu_uuid"] for host in hosts if "gpu_uuid" in host],
        "nccl": hosts[0].get("nccl"),
        "started_s": end.tails[0].started["t"],
        "kernel": platform.release(),
    }


def write_launch(directory: Path, record: LaunchRecord) -> None:
    """Complete a launch: from now on ``--resume`` reuses it."""
    write_record(directory / FILE, record)


def find_launches(cell_directory: Path, *, environment: str, protocol: str) -> list[LaunchRecord]:
    """The finished launches of a cell that were made in this environment and in this way, by index."""
    found = [read_record(path, LaunchRecord) for path in cell_directory.glob(f"*/{FILE}")]
    same = [one for one in found if one and (one.environment, one.protocol) == (environment, protocol)]
    return sorted(same, key=lambda one: (one.kind, one.index))
