"""What the parent asks of one launch, and the names of the files through which the two talk.

A launch's directory holds ``spec.json`` (this order), ``rank-N.jsonl`` (what rank N says, see
:mod:`epbench.runner.ranklog`), ``stack-N.txt`` and ``flight-N.json`` (where rank N stood when the watchdog
asked), ``agent.json`` (how the elastic agent saw the ranks end), ``stderr.log`` and
``trace/rank-N.json.gz``. The parent adds ``launch.json`` last. Of several nodes the first writes these names, and
node N ``agent-node-N.json`` and ``stderr-node-N.log``.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from epbench.cells import Cell, Frozen, MeasureSpec
from epbench.comm_records import Partition
from epbench.provenance import Device

__all__ = ["PHASES", "LaunchSpec"]

# In the order in which a rank passes them; who is in an earlier one is further behind.
PHASES = (
    "fork",
    "start",
    "ready",  # the first collective is done
    "build",
    "verify_reference",
    "verify_layout",
    "verify_own_dtype",
    "canary",
    "comm",
    "warmup",
    "timing",
    "memory",
    "routing",
    "trace",
    "done",
)


class LaunchSpec(Frozen):
    """One fresh process group for one cell; a canary and a sweep of collectives only need its ranks."""

    cell: Cell
    kind: Literal["verify", "measure", "canary", "comm"]
    index: int = Field(ge=0, description="of the launches of this cell")
    order: int = Field(ge=0, description="place among all launches of the run")
    repeats: int | None = Field(None, description="index of the invalid launch that this one replaces")
    device: Device
    measure: MeasureSpec
    detailed: bool = Field(True, description="memory and routing passes after the timing pass, and a trace that stays")
    partitions: tuple[Partition, ...] = Field((), description="of the ranks, for a sweep of collectives")
    directory: Path
    nodes: int = Field(1, ge=1, description="that share the ranks equally, node 0 has the first ones")
    rendezvous: str | None = Field(None, description="HOST:PORT at which nodes meet for this launch; None on one node")

    @property
    def ranks_per_node(self) -> int:
        """Ranks that each node forks."""
        return self.cell.world_size // self.nodes

    @property
    def traced(self) -> bool:
        """Whether there is a trace pass: device work time, unlike memory or routing, has a spread over launches."""
        return self.detailed or self.device == "cuda"

    @property
    def group_timeout_s(self) -> float:
        """Time-out of the process group: later than the watchdog, which knows better who is to blame."""
        return self.measure.progress_timeout_s + 30

    def rank_log(self, rank: int) -> Path:
        """What rank ``rank`` says, one JSON object a line."""
        return self.directory / f"rank-{rank}.jsonl"

    def stack_dump(self, rank: int) -> Path:
        """Where rank ``rank`` stood when the watchdog asked."""
        return self.directory / f"stack-{rank}.txt"

    def flight_record(self, rank: int) -> Path:
        """Which collectives rank ``rank`` had issued when the watchdog asked (torch's flight recorder)."""
        return self.directory / f"flight-{rank}.json"

    def agent_file(self, node: int = 0) -> Path:
        """How the elastic agent of a node saw its ranks end."""
        return self.directory / (f"agent-node-{node}.json" if node else "agent.json")

    def error_log(self, node: int = 0) -> Path:
        """Standard error (and output) of a node's agent and ranks."""
        return self.directory / (f"stderr-node-{node}.log" if node else "stderr.log")

    @property
    def trace_directory(self) -> Path:
        """Profiler traces, one a rank."""
        return self.directory / "trace"

    @property
    def expert_copies(self) -> Path:
        """Of the cell: how many copies each expert got, as :class:`epbench.records.ExpertCopies`."""
        return self.directory.parent / "routing.json"

    @property
    def memory_timeline(self) -> Path:
        """Of the cell: one step of the worst rank, as :class:`epbench.memory_records.MemoryTimeline`."""
        return self.directory.parent / "memory.json"

    @property
    def recorded_routing(self) -> Path:
        """Of the cell: the expert ids of its first step, which ``replay:FILE`` takes."""
        return self.directory.parent / "routing.npy"

    @property
    def path(self) -> Path:
        """This order as a file."""
        return self.directory / "spec.json"

    @classmethod
    def read(cls, path: Path) -> "LaunchSpec":
        """The order in a file."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
