"""``comm.json``: what collectives reach alone, on the groups of ranks that the layouts of a scenario use.

Bytes are those of a collective's row (:class:`epbench.records.CollectiveRow`): the whole buffer of the rank that has
most, own part included, and what of it crosses the bus.
"""

from typing import Literal

from pydantic import Field

from epbench.cells import Frozen
from epbench.rank_groups import Groups
from epbench.records import PROTOCOL_VERSION, SCHEMA_VERSION, Spread

__all__ = ["OPS", "WAYS", "CommFit", "CommPoint", "CommRecord", "Op", "Partition", "Swept", "Way", "axis_name"]

Op = Literal["all_to_all", "all_to_all_v", "all_gather", "reduce_scatter", "all_reduce"]
Way = Literal["drained", "chained", "traced"]

OPS: tuple[Op, ...] = ("all_to_all", "all_to_all_v", "all_gather", "reduce_scatter", "all_reduce")
WAYS: tuple[Way, ...] = ("drained", "chained", "traced")


def axis_name(index: int) -> str:
    """What labels of a sweep call the groups of its ``index``-th partition."""
    return f"partition{index}"


class Partition(Frozen):
    """All ranks of a world in groups of one size, which communicate at the same time, each within itself."""

    world_size: int
    groups: Groups
    used_by: dict[str, tuple[str, ...]] = Field(description="axis: slugs of the layouts where it makes these groups")

    @property
    def group_size(self) -> int:
        """Ranks of each group."""
        return len(self.groups[0])


class CommPoint(Frozen):
    """One op of one size, timed in one way; a repetition takes as long as its slowest group.

    ``drained``: one call on an idle device, the host's launch included, on the rank that came last. ``chained``: calls
    back to back, by device events. ``traced``: the transfer as rows of steps have it, from the profiler. ``seconds``
    are the median and the quartiles over the repetitions.
    """

    op: Op
    way: Way
    bytes: int
    bus_bytes: float
    seconds: Spread
    repetitions: int
    group_s: dict[int, Spread] = Field(
        default_factory=dict, description="traced, of several groups: each one's own, by its lowest rank"
    )

    @property
    def algbw_bytes_per_s(self) -> float:
        """Bytes over the median."""
        return self.bytes / self.seconds.median

    @property
    def busbw_bytes_per_s(self) -> float:
        """Bytes over the bus, over the median."""
        return self.bus_bytes / self.seconds.median


class CommFit(Frozen):
    """``seconds = latency_s + bytes / bandwidth_bytes_per_s`` over the medians of one op and way."""

    op: Op
    way: Way
    latency_s: float
    bandwidth_bytes_per_s: float | None = Field(description="of the buffer; None: time does not grow with the bytes")
    busbw_bytes_per_s: float | None = Field(description="the same of what crosses the bus")
    sizes: int
    median_error: float = Field(description="of the fit, relative to what was measured")
    worst_error: float


class Swept(Frozen):
    """The sweep of one partition. No fit of an op and way with too few sizes."""

    partition: Partition
    points: tuple[CommPoint, ...]
    fits: tuple[CommFit, ...] = ()


class CommRecord(Frozen):
    """``comm.json``. Reused only in the same environment and by the same protocol."""

    schema_version: int = SCHEMA_VERSION
    protocol: int = PROTOCOL_VERSION
    environment: str = Field(description="digest")
    device: Literal["cpu", "cuda"]
    dtype: str = Field(description="of the buffers")
    data: str = Field(description="what the buffers hold")
    swept: tuple[Swept, ...] = ()
    warnings: tuple[str, ...] = ()
    elapsed_s: float = Field(0.0, description="of the launches, start-up included")
