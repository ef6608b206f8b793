"""Every record that epbench writes or prints, and the numbers of their schema and of the measuring protocol.

Seconds and bytes inside; GiB and GB/s only where text is made. A value that a device cannot give is ``None``,
never zero. ``show --json`` prints :class:`RunView`; ``cells/<id>/result.json`` holds a :class:`CellResult`.
"""

from typing import Any, Literal

from pydantic import Field

from epbench.cells import Frozen
from epbench.gate_records import GateSpec
from epbench.memory_records import MemoryBytes, MemoryDetail

__all__ = [
    "PROTOCOL_VERSION",
    "SCHEMA_VERSION",
    "Breakdown",
    "CanaryRecord",
    "CellResult",
    "CollectiveRow",
    "CompileRecord",
    "EnvironmentRecord",
    "ExpertCopies",
    "ExpertLoad",
    "GpuTelemetry",
    "Idle",
    "LaunchValue",
    "MachineCheck",
    "MemoryBytes",
    "Outcome",
    "OwnDtypeRecord",
    "Predicted",
    "RunRecord",
    "RunView",
    "Sitting",
    "Spread",
    "Telemetry",
    "VerifyRecord",
]

SCHEMA_VERSION = 1
PROTOCOL_VERSION = 3  # bumped when the way of measuring changes; results of two protocols are never compared

Outcome = Literal["ok", "skipped", "oom", "timeout", "crashed", "wrong", "unstable", "interrupted"]


class Spread(Frozen):
    """Of some samples, or of some repetitions."""

    median: float
    low: float
    high: float


class GpuTelemetry(Frozen):
    """One GPU during the timed window of a launch; None where the driver cannot tell."""

    uuid: str
    samples: int = Field(description="within the window")
    sm_clock_mhz: Spread | None = None
    memory_clock_mhz: Spread | None = None
    power_w: Spread | None = None
    temperature_c: Spread | None = None
    utilization: Spread | None = Field(None, description="share of the time in which any kernel ran, 0 to 1")
    memory_used_bytes: Spread | None = Field(None, description="of all processes, as the driver counts it")
    clock_reasons: dict[str, float] | None = Field(None, description="why clocks were held back: share of the samples")
    power_violation_s: float | None = Field(None, description="time that the power limit took, by the driver's counter")
    thermal_violation_s: float | None = None
    energy_j: float | None = None


class Telemetry(Frozen):
    """What NVML said of the GPUs of a launch while it was timed. ``low`` and ``high`` are extremes."""

    window_s: float
    interval_s: float = Field(description="between samples, the median over the window")
    cost: float = Field(description="of sampling, in the parent: share of one core")
    gpus: list[GpuTelemetry] = Field(default_factory=list)


class LaunchValue(Frozen):
    """One launch (a fresh process group) of one cell: the unit of replication."""

    index: int
    order: int = Field(description="place among all launches of the run, from 0")
    step_s: float | None = Field(description="median over timed steps of the maximum over ranks")
    device_work_s: float | None = None
    device_work_sd_s: float | None = Field(None, description="standard deviation over the traced steps")
    kernel_union_s: float | None = Field(None, description="any kernel ran, waiting for ranks included: to look at")
    steps: int | None = None
    warmup_steps: int | None = None
    step_sd_s: float | None = Field(None, description="standard deviation over the timed steps")
    exposed_s: float | None = Field(None, description="exposed communication of the critical rank, a traced step")
    transfers_s: dict[str, float] = Field(
        default_factory=dict, description="transfer a traced step of each op/purpose/phase/axis, as CollectiveRow says"
    )
    compile_s: float | None = Field(None, description="None in eager mode")
    valid: bool = True
    invalid_reason: str | None = None
    host: dict[str, Any] = Field(default_factory=dict, description="host name, GPU UUIDs, start time: per launch")
    telemetry: Telemetry | None = Field(None, description="None: not asked for, or no NVIDIA driver")
    energy_j_per_token: float | None = None


class Idle(Frozen):
    """Idle seconds, split by what the device waited for."""

    host: float | None = None
    kernel: float | None = None


class Breakdown(Frozen):
    """Where one step of a rank goes in its trace; the parts are exclusive and sum to ``step_s``."""

    rank: int | None = None
    step_s: float | None = Field(None, description="of the trace, which is slower than a timed step")
    compute: float | None = None
    overlapped: float | None = None
    exposed: float | None = None
    idle: Idle = Idle()


class CollectiveRow(Frozen):
    """All calls of one op x purpose x phase x axis in a step, over the ranks of its groups.

    Seconds a step, the median over the traced steps: ``transfer_s`` of the group that transfers
    longest, ``wait_s`` of the rank that waits longest, ``exposed_s`` and ``overlapped_s`` of the
    transfers of the rank where most is exposed; likewise ``bytes_per_step`` and ``bus_bytes_per_step`` of
    the rank with the largest sum, which need not be calls x the median call. Of single calls: ``bytes``, the median
    over calls of the heaviest rank's buffer (the larger of sent and received, own part included),
    ``bytes_mean`` likewise of the mean rank, the percentiles of the transfer, and the bandwidths, medians of ``bytes``
    (bus: of what the rank that moves most sends or receives over the wire) over the transfer.
    """

    op: str
    purpose: str
    phase: str
    axis: str
    calls_per_step: float
    bytes: int
    bytes_mean: float
    bus_bytes: float | None = Field(None, description="of a call, over the wire, of the rank that moves most; median")
    bytes_per_step: float | None = Field(None, description="summed over a step's calls; None: an older record")
    bus_bytes_per_step: float | None = Field(None, description="likewise over the wire; None also for a group of one")
    transfer_s: float
    wait_s: float
    exposed_s: float | None = None
    overlapped_s: float | None = None
    p50_s: float
    p95_s: float
    last_rank_share: dict[int, float] = Field(
        default_factory=dict, description="rank: share of the calls for which the others waited for it"
    )
    algbw_bytes_per_s: float | None
    busbw_bytes_per_s: float | None
    ceiling_busbw_bytes_per_s: float | None = Field(None, description="best of the isolated sweep for these bytes")
    isolated_s: float | None = Field(None, description="transfer of one such call, alone on the same groups")


class ExpertLoad(Frozen):
    """How evenly the routed copies fell: 1.0 is even. Worst MoE layer of the last step."""

    max_over_mean: float | None = Field(None, description="heaviest expert over the mean expert")
    rank_max_over_mean: float | None = Field(None, description="heaviest ep rank over the mean ep rank")
    fan_out: float | None = Field(None, description="mean number of ep ranks that hold a token's experts")


class ExpertCopies(Frozen):
    """``cells/<id>/routing.json``: routed copies of the launch's last micro-batch, over all ranks.

    A copy is a token on its way to one of its K experts.
    """

    routing: str
    layers: list[int] = Field(description="index in the model of each MoE layer")
    experts: list[list[int]] = Field(description="copies per MoE layer and expert")
    ranks: list[list[int]] = Field(description="copies per MoE layer and ep rank, which holds a block of experts")
    hot_experts: int | None = Field(None, description="of hot_rank:F, how many experts rank 0 of this layout's ep has")


class CompileRecord(Frozen):
    """What torch.compile did in the timed launch."""

    seconds: float | None = None
    graph_breaks: int | None = None
    recompiles: int | None = Field(None, description="after warm-up; must be 0 for a valid launch")
    strategy: str | None = None


class OwnDtypeRecord(Frozen):
    """The layout in the cell's own dtype against one rank in fp32 with the same routing.

    Errors are relative; a gradient's is the norm of its difference over its own norm.
    """

    dtype: str
    loss_error: float
    grad_error: float | None = None
    worst_parameter: str | None = None
    norm_error: float | None = None
    loss_bound: float
    grad_bound: float
    norm_bound: float
    passed: bool


class VerifyRecord(Frozen):
    """The layout against one rank in fp32; errors relative (gradients to their largest entry)."""

    scope: Literal["full", "loss", "none"] = "none"
    loss_error: float | None = None
    grad_error: float | None = None
    worst_parameter: str | None = None
    norm_error: float | None = None
    step_error: float | None = Field(None, description="of the loss after one optimizer step")
    tolerance: float | None = None
    own_dtype: OwnDtypeRecord | None = Field(None, description="None: the cell's dtype is fp32, or the stack cannot")
    losses_error: float | None = Field(None, description="of the first losses at full size, against other layouts")
    passed: bool | None = None


class Predicted(Frozen):
    """What the planner said before the run."""

    peak_bytes: int | None = None
    step_s: float | None = None


class CellResult(Frozen):
    """One cell of a run as ``show --json`` prints it. No cell disappears: each has an outcome and a reason."""

    cell: str
    layout: str
    mode: str
    routing: str
    model: dict[str, Any]
    train: dict[str, Any]
    varied: list[str] = Field(default_factory=list)
    outcome: Outcome | None = Field(description="None: not run yet")
    reason: str | None = None
    requested_bytes: int | None = Field(None, description="of oom: what the allocator was asked for, if it said")
    expected: bool = True
    world_size: int
    device: str | None = None
    launches: int = 0
    launch_values: list[LaunchValue] = Field(default_factory=list)
    phases_s: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="verify, measure: wall seconds of each phase of a launch, the median"
    )
    elapsed_s: float | None = Field(None, description="wall seconds of all launches of this cell together")
    step_s: float | None = None
    step_s_low: float | None = None
    step_s_high: float | None = None
    device_work_s: float | None = None
    device_work_s_low: float | None = None
    device_work_s_high: float | None = None
    kernel_union_s: float | None = Field(None, description="median over launches; never gated on")
    tokens_per_s_per_rank: float | None = None
    tflops_causal: float | None = None
    tflops_full: float | None = None
    mfu: float | None = None
    peak_allocated_bytes: int | None = Field(None, description="the highest of all ranks")
    peak_reserved_bytes: int | None = Field(
        None, description="likewise, so not always of the rank that allocates most; of that rank in older records"
    )
    memory_bytes: MemoryBytes = MemoryBytes()
    memory: MemoryDetail = MemoryDetail()
    breakdown_s: Breakdown = Field(Breakdown(), description="of the critical rank, the one with most device work")
    breakdown_per_rank_s: list[Breakdown] = Field(default_factory=list)
    kernels_s: dict[str, float] = Field(default_factory=dict, description="a step, by kind; of the critical rank")
    kernel_count: float | None = Field(None, description="kernels a step of the critical rank; None without a GPU")
    unclassified_share: float | None = Field(None, description="of kernels_s: kernels whose kind is not known")
    collectives: list[CollectiveRow] = Field(default_factory=list)
    all_to_all: list[CollectiveRow] = Field(default_factory=list)
    expert_load: ExpertLoad = ExpertLoad()
    compile: CompileRecord = CompileRecord()
    verify: VerifyRecord = VerifyRecord()
    loss: list[float] = Field(default_factory=list, description="of the first steps")
    energy_j_per_token: float | None = None
    predicted: Predicted = Predicted()


class EnvironmentRecord(Frozen):
    """What a result depends on besides the cell; ``digest`` decides whether two results may be compared."""

    device: Literal["cpu", "cuda"]
    device_name: str
    device_memory_bytes: int | None
    world_size: int
    nodes: int = Field(1, description="that share the ranks")
    driver: str | None
    torch: str
    cuda: str | None
    nccl: str | None
    python: str
    variables: dict[str, str]
    code: str = Field(description="digest of epbench's own sources, and of a foreign stack's")
    digest: str


class MachineCheck(Frozen):
    """One line of ``epbench doctor``; ``fix`` is what a person can do, empty where nothing need be done."""

    name: str
    status: Literal["ok", "warn", "fail", "unknown"]
    found: str
    fix: str = ""


class CanaryRecord(Frozen):
    """Three fixed pieces of work, timed apart from any cell: seconds; ``low`` and ``high`` are quartiles."""

    outcome: Literal["ok", "oom", "timeout", "crashed"]
    reason: str | None = None
    seconds: dict[str, Spread] = Field(default_factory=dict, description="gemm, all_reduce, all_to_all")


class Sitting(Frozen):
    """One time that ``epbench run`` worked on a run: the machine before, and the same work before and after."""

    started: str = Field(description="UTC, ISO 8601")
    checks: list[MachineCheck] = Field(default_factory=list, description="made before launching on CUDA")
    canary_before: CanaryRecord | None = None
    canary_after: CanaryRecord | None = None
    warnings: list[str] = Field(default_factory=list)
    spent_s: dict[str, float] = Field(default_factory=dict, description="wall seconds by what was done; empty: cut off")


class RunRecord(Frozen):
    """``run.json``: what was asked, where and with what."""

    schema_version: int = SCHEMA_VERSION
    protocol: int = PROTOCOL_VERSION
    name: str
    description: str
    started: str = Field(description="UTC, ISO 8601")
    scenario_path: str
    scenario_digest: str
    device_reason: str = Field(description="why this device was chosen")
    gate: GateSpec | None = Field(None, description="what a comparison judges by; None: an older record, the defaults")
    command: list[str]
    environment: EnvironmentRecord
    sittings: list[Sitting] = Field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What makes the numbers of this run doubtful, each once, in the order in which it was found."""
        return list(dict.fromkeys(text for sitting in self.sittings for text in sitting.warnings))


class RunView(Frozen):
    """What ``show --json`` prints."""

    run: RunRecord
    protocol: int
    environment: EnvironmentRecord
    cells: list[CellResult]
    damaged: list[str] = Field(default_factory=list, description="files of cells that are there and cannot be read")

    @property
    def warnings(self) -> list[str]:
        """Those of the run, and what of it cannot be read."""
        count = len(self.damaged)
        files = f"{count} file{'s' * (count > 1)} of cells cannot be read: {', '.join(self.damaged[:3])}"
        return self.run.warnings + ([files + ", ..." * (count > 3)] if count else [])
