"""What the gate is told and what it answers: thresholds of a scenario, the verdict of a comparison, nothing else.

An **arm** is one side of a comparison: *base* is what was, *head* what is to be judged. Ratios are head over base, so
that more than 1 is slower, or more, and worse. Seconds and bytes; a value that is not known is ``None``.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from epbench.cells import Frozen

__all__ = [
    "COUNTERS",
    "TIMINGS",
    "ArmRecord",
    "CellVerdict",
    "EnvironmentDifference",
    "GateSpec",
    "MetricChange",
    "Verdict",
    "Word",
]

# Allowed relative growth where the scenario does not say. Counts of an eager or compiled step are the same in every
# launch; bytes follow the routing, which rounding may move by a token here and there.
COUNTERS: dict[str, float] = {
    "peak_allocated_bytes": 0.01,
    "collective_count": 0.0,
    "collective_bytes": 0.01,
    "kernel_count": 0.01,
    "graph_breaks": 0.0,
    "recompiles": 0.0,
}
TIMINGS = ("device_work_s", "step_s", "exposed_s", "compile_s")  # that have one value a launch, and may be gated

Word = Literal[
    "regression",  # slower or more than allowed, beyond doubt
    "broken",  # had a number in base, has none in head
    "inconclusive",  # too few launches, or they scatter too much to find what the scenario wants found
    "failing",  # no number in either arm
    "new",  # base does not have it, or has not seen it often enough to judge
    "missing",  # head does not have it
    "improvement",
    "fixed",
    "no change",
]


class GateSpec(Frozen):
    """``[gate]`` of a scenario: what a comparison of two runs of it judges by."""

    cells: str | tuple[str, ...] = Field("*", description="globs on cell ids")
    primary: Literal["device_work_s", "step_s"] = Field(
        "device_work_s", description="judged by practical_limit; step_s where a device gives no device work"
    )
    practical_limit: float = Field(0.02, ge=0, le=10, description="relative growth that is worth a stop")
    also: dict[str, float] = Field(
        default_factory=lambda: {"step_s": 0.05}, description="further timings: allowed relative growth"
    )
    absolute_floor_s: float = Field(0.001, ge=0, description="a smaller change of a timing is never a regression")
    absolute_floor_bytes: int = Field(2**20, ge=0, description="likewise of peak memory")
    alpha: float = Field(0.01, gt=0, lt=0.5, description="false alarms a night, over all cells and looks")
    detectable: float = Field(
        0.25,
        gt=0,
        description="launches that scatter so much that a growth of this size would be missed decide nothing",
    )
    looks: tuple[int, ...] = Field(
        (), description="launches after which the arms are compared, fixed in advance, two at most; (): after all"
    )
    counters: dict[str, float] = Field(default_factory=dict, description="allowed relative growth, over COUNTERS")

    @field_validator("looks")
    @classmethod
    def _two_looks(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if len(looks) > 2 or any(look < 3 for look in looks) or sorted(set(looks)) != list(looks):
            raise ValueError("Looks should be one or two numbers of launches, growing, 3 or more each")
        return looks

    @field_validator("also")
    @classmethod
    def _known_timings(cls, also: dict[str, float]) -> dict[str, float]:
        return _known(also, TIMINGS)

    @field_validator("counters")
    @classmethod
    def _known_counters(cls, counters: dict[str, float]) -> dict[str, float]:
        return _known(counters, tuple(COUNTERS))

    @property
    def look_alpha(self) -> float:
        """False alarms of one look: looks share ``alpha`` (Bonferroni)."""
        return self.alpha / max(1, len(self.looks))

    @property
    def allowed(self) -> dict[str, float]:
        """Allowed relative growth of every counter that is gated."""
        return COUNTERS | self.counters


def _known(given: dict[str, float], names: tuple[str, ...]) -> dict[str, float]:
    for name, growth in given.items():
        if name not in names:
            raise ValueError(f"Names should be of {', '.join(names)}")
        if not 0 <= growth <= 10:
            raise ValueError("Growth should be between 0 and 10 (0.05 is 5 %)")
    return given


class MetricChange(Frozen):
    """One metric of one cell in both arms."""

    metric: str = Field(description="as in LaunchValue or COUNTERS; transfer_s:OP/PURPOSE/PHASE/AXIS of a collective")
    kind: Literal["timing", "counter"]
    gated: bool = Field(description="whether it can make the cell a regression")
    base: float | None = Field(description="median over launches (of nights: over nights); a counter's own value")
    head: float | None
    base_half: float | None = Field(None, description="half of the 95 % interval of this arm alone, relative")
    head_half: float | None = None
    base_launches: int
    head_launches: int
    base_nights: int = Field(1, description="runs that base was gathered from")
    ratio: float | None = Field(None, description="head over base")
    ratio_low: float | None = Field(None, description="95 % interval, two-sided")
    ratio_high: float | None = None
    paired: bool = False
    p: float | None = Field(None, description="one-sided, that the growth (or fall) passes the limit; not adjusted")
    p_holm: float | None = Field(None, description="adjusted for all that is gated (Holm 1979)")
    p_rank: float | None = Field(None, description="Mann-Whitney, two-sided, of any difference; shown, never decides")
    limit: float | None = Field(None, description="allowed relative growth, the absolute floor included")
    detectable: float | None = Field(None, description="relative growth that is found in 95 % of nights")
    word: Word
    why: str = Field("", description="a sentence, where the word needs one")


class CellVerdict(Frozen):
    """One cell in both arms; its word is the worst of what is gated."""

    cell: str = Field(description="id in head; in base where head does not have it")
    name: str
    layout: str
    mode: str
    routing: str
    base_outcome: str | None
    head_outcome: str | None
    word: Word
    why: str = ""
    acknowledged: str | None = Field(None, description="reason that a person gave; the cell then fails nothing")
    metrics: list[MetricChange] = Field(default_factory=list)


class EnvironmentDifference(Frozen):
    """One thing in which the arms' machines or software differ."""

    what: str
    base: str
    head: str


class ArmRecord(Frozen):
    """Where one side of a comparison comes from."""

    label: str = Field(description="what a person calls it: a run's name, a baseline's, a revision")
    path: str
    started: str | None = None
    nights: int = 1
    launches: int | None = Field(None, description="of all cells, valid or not, when it was judged; of a run")
    environment: dict[str, Any] = Field(default_factory=dict, description="as EnvironmentRecord, of its last run")


class Verdict(Frozen):
    """``verdict.json``: the whole answer of ``epbench gate`` or ``epbench ab``."""

    schema_version: int
    protocol: int
    scenario: str
    gate: GateSpec
    base: ArmRecord
    head: ArmRecord
    paired: bool = Field(description="launches of the arms were interleaved, so that those of one round are pairs")
    look: int = Field(1, description="which of the looks decided, from 1")
    alpha: float = Field(description="of this look; all looks together have gate.alpha")
    family: int = Field(description="tests that Holm's correction spans")
    differences: list[EnvironmentDifference] = Field(default_factory=list)
    cells: list[CellVerdict]
    warnings: list[str] = Field(default_factory=list)
    summary: str = Field(description="one sentence")
    exit_code: int
