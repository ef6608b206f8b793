"""From the launches of a cell to its row: the outcome, the median over launches and an interval from them."""

from collections.abc import Sequence
from statistics import median

from epbench.analysis.comm import beside_isolated
from epbench.analysis.statistics import launch_interval
from epbench.cells import Cell
from epbench.comm_records import Swept
from epbench.flops import mfu, tflops
from epbench.packing import attended_length
from epbench.records import CellResult, EnvironmentRecord, LaunchValue, Outcome, OwnDtypeRecord
from epbench.runner.launched import LaunchRecord
from epbench.runner.phases import median_phases
from epbench.store import CellEntry, result_of

__all__ = ["VALID_LAUNCHES", "cell_result", "fatal"]

VALID_LAUNCHES = 3  # what a cell needs to be ok, or as many as were asked for when that is fewer


def cell_result(
    entry: CellEntry,
    launches: Sequence[LaunchRecord],
    *,
    asked: int,
    environment: EnvironmentRecord,
    swept: Sequence[Swept] = (),
) -> CellResult:
    """The row of a cell whose launches are over; ``asked`` is the number of launches that was wanted.

    ``swept`` is what collectives reach alone; rows on groups that it does not know have no ceiling.
    """
    measured = [launch for launch in launches if launch.kind == "measure"]
    outcome, reason = _outcome(launches, asked)
    found: dict[str, object] = {
        "outcome": outcome,
        "reason": reason,
        "expected": _is_expected(entry.cell, outcome),
        "device": environment.device,
        "launches": len(measured),
        "launch_values": [_launch_value(launch) for launch in measured],
        "phases_s": _phases(launches),
        "elapsed_s": sum(launch.elapsed_s for launch in launches),
    }
    if outcome == "oom":
        found["requested_bytes"] = next((one.requested_bytes for one in launches if one.outcome == "oom"), None)
    for launch in launches:
        if launch.verify is not None:
            found["verify"] = launch.verify
    if outcome in {"ok", "unstable"}:
        found |= _numbers(entry.cell, measured, environment) | _details(entry.cell, measured, swept)
        found["reason"] = reason or next((launch.note for launch in measured if launch.note), None)
    return result_of(entry).model_copy(update=found)


def _phases(launches: Sequence[LaunchRecord]) -> dict[str, dict[str, float]]:
    """By kind of launch; nothing of a kind that was not launched."""
    kinds = ("verify", "measure")
    found = {kind: median_phases(launch.phases_s for launch in launches if launch.kind == kind) for kind in kinds}
    return {kind: phases for kind, phases in found.items() if phases}


def fatal(launches: Sequence[LaunchRecord]) -> LaunchRecord | None:
    """The launch after which a cell is given up: a failed verification, or a first launch that failed."""
    for launch in launches:
        if launch.kind == "verify" and not _verified(launch):
            return launch
    first = next((launch for launch in launches if launch.kind == "measure"), None)
    return first if first is not None and first.outcome != "ok" else None


def _verified(launch: LaunchRecord) -> bool:
    return launch.outcome == "ok" and launch.verify is not None and launch.verify.passed is True


def _outcome(launches: Sequence[LaunchRecord], asked: int) -> tuple[Outcome, str | None]:
    end = fatal(launches)
    if end is not None and end.outcome != "ok":
        return end.outcome, f"verification: {end.reason}" if end.kind == "verify" else end.reason
    if end is not None:
        return "wrong", _why_wrong(end)
    measured = [launch for launch in launches if launch.kind == "measure"]
    valid = [launch for launch in measured if launch.valid]
    if len(valid) >= min(VALID_LAUNCHES, asked):
        return "ok", None
    reasons = sorted({_why_invalid(launch) for launch in measured if not launch.valid})
    return "unstable", f"{len(valid)} of {len(measured)} launches are valid: {'; '.join(reasons)}"


def _why_invalid(launch: LaunchRecord) -> str:
    known = launch.value.invalid_reason if launch.value else launch.reason
    return known or "no reason is known"


def _why_wrong(launch: LaunchRecord) -> str:
    found = launch.verify
    assert found is not None, "a cell is wrong by its verification only"
    errors = {
        "loss": found.loss_error,
        f"gradient of {found.worst_parameter}": found.grad_error,
        "gradient norm": found.norm_error,
        "loss after one optimizer step": found.step_error,
    }
    tolerance = found.tolerance or 0.0
    beyond = [f"{name} off by {error:.1e}" for name, error in errors.items() if error and error > tolerance]
    if not beyond and found.own_dtype is not None and not found.own_dtype.passed:
        return _why_wrong_in(found.own_dtype)
    return f"differs from one rank: {', '.join(beyond) or 'not a number'} (tolerance {tolerance:.0e})"


def _why_wrong_in(found: OwnDtypeRecord) -> str:
    """The sentence for a layout that is right in fp32 and not in its own dtype."""
    errors = (
        ("loss", found.loss_error, found.loss_bound),
        (f"gradient of {found.worst_parameter}", found.grad_error, found.grad_bound),
        ("gradient norm", found.norm_error, found.norm_bound),
    )
    beyond = [
        f"{name} off by {error:.1e} (bound {bound:.0e})" for name, error, bound in errors if error and error > bound
    ]
    return f"right in fp32, but in {found.dtype} differs from it: {', '.join(beyond) or 'not a number'}"


def _is_expected(cell: Cell, outcome: Outcome) -> bool:
    return cell.expect in ("any", outcome)


def _launch_value(launch: LaunchRecord) -> LaunchValue:
    if launch.value is not None:
        return launch.value
    return LaunchValue(index=launch.index, order=launch.order, step_s=None, valid=False, invalid_reason=launch.reason)


def _numbers(cell: Cell, launches: Sequence[LaunchRecord], environment: EnvironmentRecord) -> dict[str, object]:
    """Times with their intervals and what follows from them; nothing without a valid launch."""
    values = [launch.value for launch in launches if launch.valid and launch.value]
    step = launch_interval([value.step_s for value in values if value.step_s is not None])
    if step is None:
        return {}
    rate = cell.tokens_per_step / (step.value * cell.world_size)
    speed = tflops(cell.model, seq_len=attended_length(cell.train), tokens_per_s_per_rank=rate)
    found: dict[str, object] = {
        "step_s": step.value,
        "step_s_low": step.low,
        "step_s_high": step.high,
        "tokens_per_s_per_rank": rate,
        "tflops_causal": speed.causal,
        "tflops_full": speed.full,
        "mfu": mfu(speed.causal, device_name=environment.device_name),
    }
    energies = [value.energy_j_per_token for value in values if value.energy_j_per_token is not None]
    found["energy_j_per_token"] = median(energies) if energies else None
    work = launch_interval([value.device_work_s for value in values if value.device_work_s is not None])
    if work is not None:
        names = ("device_work_s", "device_work_s_low", "device_work_s_high")
        found |= dict(zip(names, (work.value, work.low, work.high), strict=True))
    unions = [value.kernel_union_s for value in values if value.kernel_union_s is not None]
    found["kernel_union_s"] = median(unions) if unions else None
    return found


def _details(cell: Cell, launches: Sequence[LaunchRecord], swept: Sequence[Swept]) -> dict[str, object]:
    """From the first valid launch that looked closer; compilation from the first one, which paid for it."""
    found: dict[str, object] = {"compile": launches[0].compile, "loss": launches[0].losses}
    detailed = next((launch for launch in launches if launch.valid and launch.detailed), None)
    if detailed is None or detailed.memory is None:
        return found
    collectives = beside_isolated(detailed.collectives, cell.layout, swept)
    return found | {
        "peak_allocated_bytes": detailed.memory.peak_allocated_bytes,
        "peak_reserved_bytes": detailed.memory.peak_reserved_bytes,
        "memory_bytes": detailed.memory.memory_bytes,
        "memory": detailed.memory.detail,
        "expert_load": detailed.expert_load,
        "breakdown_s": detailed.breakdown,
        "breakdown_per_rank_s": detailed.breakdown_per_rank,
        "kernels_s": detailed.kernels_s,
        "kernel_count": detailed.kernel_count,
        "unclassified_share": detailed.unclassified_share,
        "collectives": collectives,
        "all_to_all": [row for row in collectives if row.op == "all_to_all"],
    }
