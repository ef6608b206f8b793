"""The made-up run of ``sample.py`` with all that lies beside its results: traces, timelines, routings, a sweep.

Every number follows from a cell's step time by fixed shares, so that tests can state what a chart must show.
"""

from collections.abc import Sequence
from itertools import pairwise

from epbench.cells import Cell
from epbench.comm_records import CommFit, CommPoint, CommRecord, Op, Partition, Swept, Way
from epbench.layout import parse_slug
from epbench.memory_records import MemoryBytes, MemoryDetail, MemoryTimeline
from epbench.rank_groups import axes_by_groups
from epbench.records import (
    Breakdown,
    CanaryRecord,
    CellResult,
    CollectiveRow,
    ExpertCopies,
    GpuTelemetry,
    Idle,
    MachineCheck,
    RunView,
    Sitting,
    Spread,
    Telemetry,
)
from epbench.report.data import RunData
from tests.report.sample import Device, measured_cell, sample_view

__all__ = ["data_of", "enriched", "many_cells", "sample_data"]

GIB = 2**30
SHARES = {"compute": 0.58, "overlapped": 0.14, "exposed": 0.19}  # of a traced step; the rest is idle
KINDS = {"gemm": 0.62, "attention": 0.17, "elementwise": 0.12, "permute": 0.05, "optimizer": 0.04}
OPS: tuple[Op, ...] = ("all_to_all", "all_gather", "reduce_scatter", "all_reduce")
WAYS: tuple[tuple[Way, float], ...] = (("drained", 28e-6), ("chained", 12e-6), ("traced", 20e-6))
SIZES = tuple(2**exponent for exponent in range(16, 30, 2))


def sample_data(device: Device = "cuda", *, launches: int = 3) -> RunData:
    """``sample_view`` with traces, timelines, copies, a sweep, telemetry and two sittings."""
    return data_of(sample_view(device, launches=launches, sittings=[_sitting("10:15"), _sitting("14:40", drift=1.08)]))


def data_of(view: RunView) -> RunData:
    """The view with every measured cell enriched, and files beside it."""
    cells = [enriched(cell) if cell.step_s else cell for cell in view.cells]
    measured = [cell for cell in cells if cell.step_s]
    return RunData(
        view.model_copy(update={"cells": cells}),
        timelines={cell.cell: _timeline(cell) for cell in measured},
        copies={cell.cell: _copies(cell) for cell in measured},
        comm=_sweep(measured),
    )


def many_cells(count: int) -> RunData:
    """A run of ``count`` measured cells that differ in step time and routing seed; for sizes and speeds of pages."""
    base = sample_view()
    model = [cell for cell in base.cells if cell.outcome == "ok"]
    cells = []
    for index in range(count):
        one = model[index % len(model)]
        cell = Cell.model_validate(
            {
                "layout": parse_slug(one.layout, world_size=one.world_size),
                "mode": one.mode,
                "model": one.model,
                "train": one.train,
            }
        )
        routing = f"zipf-{1 + index // len(model) / 10:.1f}"
        found = measured_cell(cell, 0.3 + 0.002 * (index * 7 % count), sign=(-1) ** index)
        cells.append(found.model_copy(update={"cell": f"{cell.id}-{index}", "routing": routing}))
    return data_of(base.model_copy(update={"cells": cells}))


def enriched(cell: CellResult) -> CellResult:
    """A measured cell with the rows that a trace and the memory pass give."""
    step_s = cell.step_s
    assert step_s is not None, f"{cell.cell} has no step"
    ranks = [_breakdown(rank, step_s) for rank in range(cell.world_size)]
    peak = cell.peak_allocated_bytes or 0
    rows = [*cell.all_to_all, *_fsdp(step_s)]
    launches = [
        launch.model_copy(
            update={"device_work_s": 0.81 * (launch.step_s or 0), "kernel_union_s": 0.9 * (launch.step_s or 0)}
            | ({"telemetry": _telemetry(cell.world_size)} if cell.device != "cpu" else {})
        )
        for launch in cell.launch_values
    ]
    work = [bound and 0.81 * bound for bound in (step_s, cell.step_s_low, cell.step_s_high)]
    return cell.model_copy(
        update={
            "launch_values": launches,
            "breakdown_s": ranks[1],
            "breakdown_per_rank_s": ranks,
            "kernels_s": {kind: share * 0.72 * step_s for kind, share in KINDS.items()},
            "unclassified_share": 0.004,
            **dict(zip(("device_work_s", "device_work_s_low", "device_work_s_high"), work, strict=True)),
            "kernel_union_s": 0.9 * step_s,
            "memory_bytes": _parts(peak),
            "memory": _detail(cell, peak),
            "collectives": rows,
            "phases_s": {
                "verify": {"start": 1.9, "build": 3.1, "verify": 14.2},
                "measure": {"start": 1.8, "build": 6.5, "compile": cell.compile.seconds or 0.0, "timing": 60 * step_s},
            },
            "elapsed_s": 210.0,
            "energy_j_per_token": 0.11 * step_s if cell.device != "cpu" else None,
        }
    )


def _breakdown(rank: int, step_s: float) -> Breakdown:
    """Each rank a little more exposed and less idle than the one before; the parts sum to the traced step."""
    traced_s, shift = 1.02 * step_s, 0.01 * rank
    idle = 1 - sum(SHARES.values()) - shift
    return Breakdown(
        rank=rank,
        step_s=traced_s,
        compute=SHARES["compute"] * traced_s,
        overlapped=SHARES["overlapped"] * traced_s,
        exposed=(SHARES["exposed"] + shift) * traced_s,
        idle=Idle(host=0.7 * idle * traced_s, kernel=0.3 * idle * traced_s),
    )


def _fsdp(step_s: float) -> list[CollectiveRow]:
    wanted: tuple[tuple[Op, str, float], ...] = (
        ("all_gather", "forward", 0.035),
        ("all_gather", "backward", 0.038),
        ("reduce_scatter", "backward", 0.06),
    )
    return [
        CollectiveRow(
            op=op,
            purpose="fsdp",
            phase=phase,
            axis="fsdp",
            calls_per_step=9.0,
            bytes=1 << 28,
            bytes_mean=float(1 << 28),
            bus_bytes=0.75 * (1 << 28),
            bytes_per_step=9.0 * (1 << 28),
            bus_bytes_per_step=9 * 0.75 * (1 << 28),
            transfer_s=share * step_s,
            wait_s=0.2 * share * step_s,
            exposed_s=0.4 * share * step_s,
            overlapped_s=0.6 * share * step_s,
            p50_s=share * step_s / 9,
            p95_s=share * step_s / 9 * 1.3,
            last_rank_share={0: 0.1, 1: 0.75, 2: 0.15},
            algbw_bytes_per_s=(1 << 28) / (share * step_s / 9),
            busbw_bytes_per_s=0.75 * (1 << 28) / (share * step_s / 9),
            ceiling_busbw_bytes_per_s=0.9 * (1 << 28) / (share * step_s / 9),
            isolated_s=share * step_s / 9 * 0.8,
        )
        for op, phase, share in wanted
    ]


def _parts(peak: int) -> MemoryBytes:
    parts = [int(share * peak) for share in (0.16, 0.08, 0.32, 0.38)]
    return MemoryBytes(
        params=parts[0], grads=parts[1], optimizer=parts[2], activations=parts[3], other=peak - sum(parts)
    )


def _detail(cell: CellResult, peak: int) -> MemoryDetail:
    ranks = [int(peak * (1 - 0.01 * rank)) for rank in range(cell.world_size)]
    reserved = [int(1.08 * rank) for rank in ranks] if cell.peak_reserved_bytes is not None else []
    on_gpu = bool(reserved)
    return MemoryDetail(
        rank=0,
        peak_allocated_bytes_per_rank=ranks,
        peak_reserved_bytes_per_rank=reserved,
        parts_of="peak",
        peak_at_s=0.55 * (cell.step_s or 0),
        step_s=1.3 * (cell.step_s or 0),
        peak_phase="backward",
        alloc_retries=0 if on_gpu else None,
        ooms=0 if on_gpu else None,
        fragmentation=0.031 if on_gpu else None,
        driver_process_bytes=int(1.08 * peak + 1.4 * GIB) if on_gpu else None,
        outside_torch_bytes=int(1.4 * GIB) if on_gpu else None,
    )


def _timeline(cell: CellResult) -> MemoryTimeline:
    """A triangle over the residents: up in the forward, down in the backward."""
    peak, step_s, count = cell.peak_allocated_bytes or 0, 1.3 * (cell.step_s or 0), 600
    heights = [0.56 + 0.44 * min(index / 330, max(0.0, (560 - index) / 230)) for index in range(count)]
    return MemoryTimeline(
        rank=0,
        step_s=step_s,
        time_s=[step_s * index / count for index in range(count)],
        low_bytes=[int(peak * min(pair)) for pair in pairwise([*heights, heights[-1]])],
        high_bytes=[int(peak * max(pair)) for pair in pairwise([*heights, heights[-1]])],
        backward_s=[(0.5 * step_s, 0.93 * step_s)],
        peak_allocated_bytes_per_rank=cell.memory.peak_allocated_bytes_per_rank,
    )


def _copies(cell: CellResult) -> ExpertCopies:
    """The first experts of each layer draw most; the last of layer 1 none at all."""
    layers, experts = min(int(cell.model["num_layers"]), 12), int(cell.model["num_experts"])
    ep = parse_slug(cell.layout, world_size=cell.world_size).ep
    counts = [
        [400 + 900 * ((index * 37 + layer * 11) % 17) // (4 + index % 5) for index in range(experts)]
        for layer in range(layers)
    ]
    counts[1][-1] = 0
    block = experts // ep
    ranks = [[sum(row[rank * block : (rank + 1) * block]) for rank in range(ep)] for row in counts]
    return ExpertCopies(routing=cell.routing, layers=list(range(layers)), experts=counts, ranks=ranks)


def _telemetry(world_size: int) -> Telemetry:
    def around(value: float) -> Spread:
        return Spread(median=value, low=0.98 * value, high=1.02 * value)

    gpus = [
        GpuTelemetry(
            uuid=f"GPU-{rank}",
            samples=90,
            sm_clock_mhz=around(1755 - 15 * rank),
            memory_clock_mhz=around(3201),
            power_w=around(590 + 10 * rank),
            temperature_c=around(58 + rank),
            utilization=around(0.96),
            memory_used_bytes=around(70 * GIB),
            clock_reasons={"software power cap": 0.4} if rank == 0 else {},
            power_violation_s=0.8,
            thermal_violation_s=0.0,
            energy_j=12_000.0,
        )
        for rank in range(world_size)
    ]
    return Telemetry(window_s=20.0, interval_s=0.2, cost=0.004, gpus=gpus)


def _sitting(clock: str, *, drift: float = 1.0) -> Sitting:
    def canary(factor: float) -> CanaryRecord:
        kinds = (("gemm", 1.1e-3), ("all_reduce", 0.4e-3), ("all_to_all", 0.3e-3))
        spreads = {kind: Spread(median=factor * s, low=0.97 * factor * s, high=1.04 * factor * s) for kind, s in kinds}
        return CanaryRecord(outcome="ok", seconds=spreads)

    slower = f"the machine changed during the run: the same gemm took {drift:.2f} times as long after"
    return Sitting(
        started=f"2026-11-22T{clock}:00Z",
        checks=[
            MachineCheck(name="mig", status="ok", found="off"),
            MachineCheck(name="shm", status="warn", found="64 MiB", fix="run the container with --shm-size=16g"),
        ],
        canary_before=canary(1.0),
        canary_after=canary(drift),
        warnings=[slower] if drift > 1.05 else [],
        spent_s={"fork_server": 6.0, "canary": 4.0, "launches": 480.0, "elsewhere": 3.0},
    )


def _sweep(cells: Sequence[CellResult]) -> CommRecord:
    """Every op over sizes on every partition, at latency + bytes / bandwidth with quartiles of 4 %."""
    layouts = [parse_slug(cell.layout, world_size=cell.world_size) for cell in cells]
    swept = []
    for groups, used in axes_by_groups(layouts).items():
        names = {axis: tuple(slugs) for axis, slugs in used.items()}
        partition = Partition(world_size=sum(map(len, groups)), groups=groups, used_by=names)
        share = 1 - 1 / partition.group_size
        swept.append(Swept(partition=partition, points=tuple(_points(share)), fits=tuple(_fits(share))))
    return CommRecord(
        environment="1" * 64, device="cuda", dtype="bf16", data="random", swept=tuple(swept), elapsed_s=21.0
    )


def _points(share: float) -> list[CommPoint]:
    return [
        CommPoint(
            op=op,
            way=way,
            bytes=size,
            bus_bytes=share * size,
            seconds=Spread(median=seconds, low=0.97 * seconds, high=1.06 * seconds),
            repetitions=20,
        )
        for op in OPS
        for way, latency_s in WAYS
        for size in SIZES
        if (seconds := latency_s + size / 280e9)
    ]


def _fits(share: float) -> list[CommFit]:
    return [
        CommFit(
            op=op,
            way=way,
            latency_s=latency_s,
            bandwidth_bytes_per_s=280e9,
            busbw_bytes_per_s=share * 280e9,
            sizes=len(SIZES),
            median_error=0.01,
            worst_error=0.03,
        )
        for op in OPS
        for way, latency_s in WAYS
    ]
