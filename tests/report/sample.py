"""A made-up run for the tests of frames and report: many outcomes, two modes, two sizes. Nothing is measured.

Step times follow from a fixed base and a fixed launch pattern, so that tests can state what must be said of
them.
"""

from typing import Any, Literal

from epbench.analysis.statistics import launch_interval
from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.flops import mfu, tflops
from epbench.layout import Layout
from epbench.records import (
    CellResult,
    CollectiveRow,
    CompileRecord,
    EnvironmentRecord,
    ExpertLoad,
    LaunchValue,
    MemoryBytes,
    RunRecord,
    RunView,
    VerifyRecord,
)

__all__ = [
    "HOSTILE",
    "environment",
    "measured_cell",
    "run_record",
    "sample_view",
    "unmeasured_cell",
    "view_of",
]

Device = Literal["cpu", "cuda"]
HOSTILE = "</script><script>window.hostile=1</script>\u202e\u2028\"'&<img src=x onerror=window.hostile=1>{{ 7*7 }}"

WIDE = ModelSpec(
    preset="qwen3-30b-a3b",
    num_layers=8,
    total_layers=48,
    num_experts=128,
    num_experts_per_tok=8,
    hidden_size=2048,
    moe_intermediate_size=768,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=151936,
)
FEW = WIDE.model_copy(
    update={"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536},
)
TRAIN = TrainSpec(seq_len=4096, global_batch_size=8, compute_dtype="bf16")

DP4 = Layout(dp_shard=4)
DP4_EP4 = Layout(dp_shard=4, ep=4)
TP2_EP4 = Layout(dp_shard=2, tp=2, ep=4)
CP2_EP4 = Layout(dp_shard=2, cp=2, ep=4)
TP4 = Layout(tp=4, etp=4)
REP2 = Layout(dp_replicate=2, dp_shard=2)

LAUNCH_PATTERN = (1.0, 0.99, 1.01, 1.004, 0.996)  # between-launch noise that every arm shares ...
ARM_PATTERN = (0.0005, -0.0005, 0.0, 0.0003, -0.0003)  # ... and the part that it does not


def _launches(step_s: float, count: int, sign: int) -> list[LaunchValue]:
    return [
        LaunchValue(
            index=index,
            order=index * 10,
            step_s=step_s * (LAUNCH_PATTERN[index] + sign * ARM_PATTERN[index]),
            steps=30,
            warmup_steps=8,
            step_sd_s=step_s * 0.013,
            host={"hostname": "host-a", "started": "2026-11-22T10:15:00Z"},
        )
        for index in range(count)
    ]


def _all_to_all(scale: float, *, ulysses: bool) -> list[CollectiveRow]:
    purposes = [("count_exchange", 8192, 30e-6), ("dispatch", 1 << 27, 3e-3), ("combine", 1 << 27, 2.8e-3)]
    purposes += [("ulysses_in", 1 << 25, 0.9e-3), ("ulysses_out", 1 << 25, 0.8e-3)] if ulysses else []
    return [
        CollectiveRow(
            op="all_to_all",
            purpose=purpose,
            phase=phase,
            axis="ep" if not purpose.startswith("ulysses") else "cp",
            calls_per_step=8.0,
            bytes=size,
            bytes_mean=size * 0.93,
            bytes_per_step=8.0 * size,
            bus_bytes_per_step=6.0 * size,
            transfer_s=scale * seconds,
            wait_s=scale * (2.4e-3 if purpose == "count_exchange" else 0.7e-3),
            p50_s=scale * seconds / 8,
            p95_s=scale * seconds / 8 * 1.6,
            algbw_bytes_per_s=size / (scale * seconds / 8),
            busbw_bytes_per_s=0.75 * size / (scale * seconds / 8),
        )
        for phase in ("forward", "backward")
        for purpose, size, seconds in purposes
        if phase == "forward" or purpose != "count_exchange"
    ]


def _plan(cell: Cell, **fields: Any) -> dict[str, Any]:
    return {
        "cell": cell.id,
        "layout": cell.layout.slug,
        "mode": cell.mode,
        "routing": cell.routing,
        "model": cell.model.model_dump(mode="json"),
        "train": cell.train.model_dump(mode="json"),
        "varied": ["layout", "mode"],
        "world_size": cell.world_size,
    } | fields


def unmeasured_cell(cell: Cell, outcome: str | None, reason: str, **fields: Any) -> CellResult:
    """A row without a number."""
    return CellResult.model_validate(_plan(cell, outcome=outcome, reason=reason) | fields)


def measured_cell(
    cell: Cell, step_s: float, *, device: Device = "cuda", launches: int = 3, sign: int = 1, **fields: Any
) -> CellResult:
    """A row with a number; ``sign`` sets the part of its noise that other cells do not share."""
    values = _launches(step_s, launches, sign)
    step = launch_interval([value.step_s for value in values if value.step_s is not None])
    assert step is not None
    tokens = cell.tokens_per_step / step.value / cell.world_size
    speed = tflops(cell.model, seq_len=cell.train.seq_len, tokens_per_s_per_rank=tokens)
    on_gpu = device == "cuda"
    rows = _all_to_all(step_s / 0.3, ulysses=cell.layout.cp > 1) if cell.layout.ep * cell.layout.cp > 1 else []
    peak = int(
        (30 + 40 * step_s + 10 / cell.layout.ep + 6 * (cell.mode == "eager") - 14 * (cell.layout.tp > 1)) * 2**30
    )
    found: dict[str, Any] = {
        "outcome": "ok",
        "device": "NVIDIA H200" if on_gpu else "cpu",
        "launches": launches,
        "launch_values": values,
        "step_s": step.value,
        "step_s_low": step.low,
        "step_s_high": step.high,
        "tokens_per_s_per_rank": tokens,
        "tflops_causal": speed.causal if on_gpu else None,
        "tflops_full": speed.full if on_gpu else None,
        "mfu": mfu(speed.causal, device_name="NVIDIA H200") if on_gpu else None,
        "peak_allocated_bytes": peak,
        "peak_reserved_bytes": int(peak * 1.08) if on_gpu else None,
        "memory_bytes": MemoryBytes(params=10 * 2**30, optimizer=20 * 2**30),
        "collectives": rows,
        "all_to_all": rows,
        "expert_load": ExpertLoad(max_over_mean=1.9, rank_max_over_mean=1.12, fan_out=3.6),
        "compile": CompileRecord(seconds=41.0, graph_breaks=0, recompiles=0) if cell.mode == "compiled" else {},
        "verify": _verified(),
        "loss": [12.1, 11.8, 11.2],
    }
    return CellResult.model_validate(_plan(cell) | found | fields)


def _verified() -> VerifyRecord:
    return VerifyRecord(
        scope="full",
        loss_error=3e-8,
        grad_error=1.2e-6,
        norm_error=2e-7,
        step_error=5e-8,
        worst_parameter="layers.1.moe.router.gate",
        tolerance=1e-5,
        passed=True,
    )


def environment(device: Device = "cuda") -> EnvironmentRecord:
    """A machine that looks like one."""
    on_gpu = device == "cuda"
    return EnvironmentRecord(
        device=device,
        device_name="NVIDIA H200" if on_gpu else "cpu",
        device_memory_bytes=141 * 2**30 if on_gpu else None,
        world_size=4,
        driver="570.1" if on_gpu else None,
        torch="2.11.0+cu130" if on_gpu else "2.13.0+cpu",
        cuda="13.0" if on_gpu else None,
        nccl="2.28.9" if on_gpu else None,
        python="3.12.3",
        variables={"NCCL_NVLS_ENABLE": "0"} if on_gpu else {},
        code="0" * 64,
        digest="1" * 64,
    )


def run_record(device: Device = "cuda", **fields: Any) -> RunRecord:
    """What was asked."""
    return RunRecord.model_validate(
        {
            "name": "made-up-sizes",
            "description": "Made-up numbers for the tests of the report: no machine measured them",
            "started": "2026-11-22T10:15:00Z",
            "scenario_path": "scenarios/made-up.toml",
            "scenario_digest": "2" * 64,
            "device_reason": "auto: this machine has 4 GPUs",
            "command": ["epbench", "run", "scenarios/made-up.toml"],
            "environment": environment(device),
        }
        | fields
    )


def view_of(cells: list[CellResult], *, device: Device = "cuda", **fields: Any) -> RunView:
    """A run of these cells."""
    record = run_record(device, **fields)
    return RunView(run=record, protocol=record.protocol, environment=record.environment, cells=cells)


def _cell(layout: Layout, mode: str = "eager", model: ModelSpec = WIDE) -> Cell:
    return Cell.model_validate({"layout": layout, "mode": mode, "model": model, "train": TRAIN})


def sample_view(device: Device = "cuda", *, launches: int = 3, **fields: Any) -> RunView:
    """16 cells: dp4-ep4 compiled wins the wide size, tp2 and cp2 tie behind it, and rows of six failures."""
    options: dict[str, Any] = {"device": device, "launches": launches}
    cells = [
        measured_cell(_cell(DP4), 0.412, sign=-1, **options),
        measured_cell(_cell(DP4, "compiled"), 0.352, **options),
        measured_cell(_cell(DP4_EP4), 0.371, **options),
        measured_cell(_cell(DP4_EP4, "compiled"), 0.318, sign=-1, **options),
        measured_cell(_cell(TP2_EP4), 0.398, **options),
        measured_cell(_cell(TP2_EP4, "compiled"), 0.369, **options),
        measured_cell(_cell(CP2_EP4), 0.430, sign=-1, **options),
        measured_cell(_cell(CP2_EP4, "compiled"), 0.3692, sign=-1, **options),
        measured_cell(_cell(DP4_EP4, "compiled", FEW), 0.301, sign=-1, **options),
        measured_cell(_cell(DP4_EP4, "eager", FEW), 0.333, **options),
        unmeasured_cell(_cell(TP4), "oom", "rank 2: CUDA out of memory: tried to allocate 9.77 GiB in backward"),
        unmeasured_cell(
            _cell(TP4, "compiled"),
            "wrong",
            "verify: gradient of layers.0.moe.router.gate is off by 4.9e-01, allowed 1.0e-05",
            expected=False,
            verify=VerifyRecord(
                scope="full",
                grad_error=0.49,
                tolerance=1e-5,
                passed=False,
                worst_parameter="layers.0.moe.router.gate",
            ),
        ),
        measured_cell(_cell(REP2), 0.5, sign=5, outcome="unstable", reason="1 of 3 launches was valid", **options),
        unmeasured_cell(_cell(REP2, "compiled"), "crashed", "rank 1 ended with signal 9 in the timing pass"),
        unmeasured_cell(
            _cell(Layout(dp_shard=2, tp=2, ep=2, etp=2), model=FEW),
            "skipped",
            "moe_intermediate_size 1537 is not a multiple of etp 2",
        ),
        unmeasured_cell(_cell(TP2_EP4, model=FEW), None, "not run yet"),
    ]
    return view_of(cells, device=device, **fields)
