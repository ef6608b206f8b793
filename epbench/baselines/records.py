"""What a baseline file holds: for each cell on each kind of machine the last runs that it was accepted from."""

from typing import Annotated, Any, Literal

from pydantic import Field

from epbench.cell_content import content_key
from epbench.cells import Frozen
from epbench.records import Outcome

__all__ = [
    "BASELINE_SCHEMA",
    "KEPT_RUNS",
    "Acknowledgement",
    "Baseline",
    "BaselineRun",
    "Entry",
    "EntryKey",
    "Level",
    "torch_minor",
]

BASELINE_SCHEMA = 1
KEPT_RUNS = 20  # of an entry; older ones are dropped

EntryKey = tuple[str, str, str, str, int]  # content of the cell, kind of device, its model, torch's minor, protocol
Value = Annotated[float, Field(allow_inf_nan=False)]


class BaselineRun(Frozen):
    """One run of one cell."""

    run: str = Field(description="name of the run directory")
    started: str = Field(description="UTC, ISO 8601")
    outcome: Outcome
    reason: str | None = None
    environment: str = Field(description="first characters of the environment's digest")
    code: str = Field(description="likewise of epbench's own sources")
    torch: str
    driver: str | None = None
    machine: list[str] = Field(default_factory=list, description="hosts, and the first characters of their GPUs")
    timings: dict[str, list[Value]] = Field(
        default_factory=dict, description="seconds of each valid launch, by metric as in MetricChange"
    )
    counters: dict[str, Value] = Field(default_factory=dict)


class Level(Frozen):
    """A change that a person accepted: the runs before it were dropped."""

    date: str
    run: str = Field(description="the first of the new level")
    reason: str
    ratio: Value | None = Field(None, description="of the gated timing, new over old; None where one has no number")
    dropped: int = Field(description="runs of the old level")


class Acknowledgement(Frozen):
    """A regression that is known: shown, and fails nothing until ``until`` has passed."""

    reason: str
    given: str = Field(description="date")
    until: str | None = Field(None, description="last day on which it holds; None: until a new level is accepted")
    metric: str | None = Field(None, description="only this one; None: whatever regresses, and a cell that breaks")


class Entry(Frozen):
    """One cell on one kind of machine."""

    cell: str = Field(description="id in the run that was accepted last")
    layout: str
    mode: str
    routing: str
    world_size: int
    device: Literal["cpu", "cuda"]
    device_name: str
    torch: str = Field(description="minor version")
    protocol: int
    model: dict[str, Any]
    train: dict[str, Any]
    expected: bool = True
    runs: list[BaselineRun] = Field(min_length=1, description="oldest first")
    levels: list[Level] = Field(default_factory=list)
    acknowledged: list[Acknowledgement] = Field(default_factory=list)

    @property
    def key(self) -> EntryKey:
        """What tells entries apart."""
        return content_key(self), self.device, self.device_name, self.torch, self.protocol

    @property
    def outcome(self) -> Outcome:
        """How the cell ends at this level."""
        return self.runs[-1].outcome


class Baseline(Frozen):
    """``NAME.baseline.json``."""

    schema_version: int = BASELINE_SCHEMA
    scenario: str
    entries: list[Entry] = Field(default_factory=list)

    def by_key(self) -> dict[EntryKey, Entry]:
        """Entries by what tells them apart."""
        return {entry.key: entry for entry in self.entries}


def torch_minor(version: str) -> str:
    """``2.11`` of ``2.11.0+cu130``: a patch keeps the baseline, a minor version starts one."""
    return ".".join(version.partition("+")[0].split(".")[:2])
