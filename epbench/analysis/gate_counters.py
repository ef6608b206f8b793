"""One count of one cell in both arms: it does not scatter, so one launch is enough and no test is made."""

from collections.abc import Iterator, Sequence
from statistics import median

from epbench.analysis.arms import Arm
from epbench.analysis.gate_timings import percent
from epbench.gate_records import GateSpec, MetricChange, Word

__all__ = ["counters_of"]

_ROUNDING = 1e-9  # of sums over steps, whose order may differ


def counters_of(base: Arm, head: Arm, spec: GateSpec, *, gated: bool) -> Iterator[MetricChange]:
    """Every counter that an arm knows; of many nights the median. What one arm does not know is not gated."""
    for metric, allowed in spec.allowed.items():
        values = [_value(arm, metric) for arm in (base, head)]
        if values != [None, None]:
            limit = max(allowed, _floor(metric, values, spec))
            yield _change(metric, values[0], values[1], allowed=limit, gated=gated, nights=len(base.nights))


def _floor(metric: str, values: Sequence[float | None], spec: GateSpec) -> float:
    """The growth that the absolute floor of memory allows: of the smaller arm, so that a swap changes nothing.

    A few megabytes on CPU ranks grow by a twentieth when two threads meet otherwise.
    """
    known = [value for value in values if value]
    return spec.absolute_floor_bytes / min(known) if metric == "peak_allocated_bytes" and known else 0.0


def _value(arm: Arm, metric: str) -> float | None:
    known = [night.counters[metric] for night in arm.nights if metric in night.counters]
    return median(known) if known else None


def _change(
    metric: str, base: float | None, head: float | None, *, allowed: float, gated: bool, nights: int
) -> MetricChange:
    word, why = _word(base, head, allowed)
    return MetricChange(
        metric=metric,
        kind="counter",
        gated=gated and base is not None and head is not None,
        base=base,
        head=head,
        base_launches=int(base is not None),
        head_launches=int(head is not None),
        base_nights=max(1, nights),
        ratio=head / base if base and head else None,
        limit=allowed,
        word=word,
        why=why,
    )


def _word(base: float | None, head: float | None, allowed: float) -> tuple[Word, str]:
    """A fall is judged as a growth with the arms swapped, so that the swap flips the word and nothing else."""
    if base is None:
        return "new", "not known in base"
    if head is None:
        return "missing", "not known in head"
    most = (1 + allowed) * (1 + _ROUNDING)
    if head > base * most:
        more = f"{percent(head / base - 1)} more" if base else f"{head:g}, was 0"
        return "regression", f"{more}, where {percent(allowed) if allowed else 'no'} more is allowed"
    if base > head * most:
        return "improvement", f"{percent(1 - head / base)} less"
    return "no change", ""
