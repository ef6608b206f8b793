"""What a step is spent on, and what compiling it gains."""

from collections.abc import Sequence

from epbench.records import Breakdown, CellResult
from epbench.report.comparison import Compared
from epbench.report.compiling import Pair, break_even, pairs_of
from epbench.report.figures.communication import kind_of
from epbench.report.quantities import exposed_share, traced_share
from epbench.report.rules.model import Finding, gain, group_of, share
from epbench.report.text import clean, number, slow_down, speed_up

__all__ = ["compile_gain", "exposed_communication", "host_bound"]

_EXPOSED, _IDLE = 0.10, 0.05  # shares of a step below which there is nothing to tell
_ALIKE = 0.67  # a trace says where a gain is from only if it shows about that gain


# ---------------------------------------------------------------- parts of the traced step


def exposed_communication(compared: Compared) -> Finding | None:
    """The cell that exposes most communication and what most of it is, beside the fastest of its group."""
    shares = [(exposed_share(cell), cell) for cell in compared.measured]
    most, cell = max(((part, one) for part, one in shares if part), key=lambda one: one[0], default=(0.0, None))
    if cell is None or most < _EXPOSED:
        return None
    text = f"{compared.naming.full(cell)} spends {share(most)} of its traced step in exposed communication and waiting"
    return Finding(f"{text}{_largest_exposed(cell)}{_fastest_beside(compared, cell)}.", "step-parts", most)


def _largest_exposed(cell: CellResult) -> str:
    """The kind of collective whose exposed transfers take longest, phases together; empty where none is known."""
    seconds: dict[str, float] = {}
    for row in cell.collectives:
        seconds[kind_of(row)] = seconds.get(kind_of(row), 0.0) + (row.exposed_s or 0.0)
    kind, most_s = max(seconds.items(), key=lambda item: item[1], default=("", 0.0))
    part = traced_share(cell, most_s)
    return f", up to {share(part)} in exposed transfers of {clean(kind, 60)}" if part else ""


def _fastest_beside(compared: Compared, cell: CellResult) -> str:
    fastest = min(group_of(compared, cell).measured, key=lambda one: one.step_s or 0.0)
    part = exposed_share(fastest)
    if fastest.cell == cell.cell or part is None:
        return ""
    return f"; {compared.naming.arm(fastest)}, with the lowest median step, {share(part)}"


def host_bound(compared: Compared) -> Finding | None:
    """The cell whose device waits longest for the host; of a CPU, whose host is its device, nothing is said."""
    if compared.view.environment.device == "cpu":
        return None
    shares = [(traced_share(cell, cell.breakdown_s.idle.host), cell) for cell in compared.measured]
    most, cell = max(((part, one) for part, one in shares if part), key=lambda one: one[0], default=(0.0, None))
    if cell is None or most < _IDLE:
        return None
    text = (
        f"{compared.naming.full(cell)} leaves the GPU idle for {share(most)} of its traced step, waiting for the host"
    )
    return Finding(f"{text} to launch kernels.", "step-parts", most)


# ---------------------------------------------------------------- compiling


def compile_gain(compared: Compared) -> Finding | None:
    """Where compiling makes a difference that can be told, how much, in which part, and when it has paid."""
    pairs = [pair for group in compared.groups for pair in pairs_of(compared, group) if pair.speed.known]
    told = [pair for pair in pairs if pair.is_told]
    if not told:
        return None
    return Finding(f"{_gains(compared, pairs, told)}.", "speed-up", max(gain(pair.speed) for pair in told))


def _gains(compared: Compared, pairs: Sequence[Pair], told: Sequence[Pair]) -> str:
    """``Compiled is faster than eager in 3 of 4 pairs, most in dp4 compiled (+17.0 % [16.2, 17.9])``."""
    if len(pairs) == 1:
        (only,) = pairs
        is_faster = only.speed.value > 1
        told_by = f"{speed_up(only.speed, sign=False)} faster" if is_faster else f"{slow_down(only.speed)} slower"
        return f"{compared.naming.full(only.compiled)} is {told_by} than eager{_where(only)}{_paid_back(only)}"
    kinds = {
        word: [pair for pair in told if (pair.speed.value > 1) == (word == "faster")] for word in ("faster", "slower")
    }
    parts = [f"{word} {_most(compared, found, len(pairs))}" for word, found in kinds.items() if found]
    same = len(pairs) - len(told)
    return f"Compiled is {'; '.join(parts)}" + (f"; no difference can be told in {same}" if same else "")


def _most(compared: Compared, pairs: Sequence[Pair], count: int) -> str:
    most = max(pairs, key=lambda pair: abs(pair.speed.value - 1))
    what = f"{speed_up(most.speed)}{_where(most)}{_paid_back(most)}"
    return f"than eager in {len(pairs)} of {count} pairs, most in {compared.naming.full(most.compiled)} ({what})"


def _where(pair: Pair) -> str:
    """Which part of the step gave most of what was saved; empty without two traces that saved about as much."""
    eager, compiled = pair.eager, pair.compiled
    before, after = _parts_s(eager.breakdown_s), _parts_s(compiled.breakdown_s)
    saved = {name: before[name] - after[name] for name in before.keys() & after.keys()}
    total_s = sum(saved.values())
    timed_s = (eager.step_s or 0.0) - (compiled.step_s or 0.0)
    if pair.speed.value <= 1 or len(saved) < 3 or not _ALIKE * timed_s <= total_s <= timed_s / _ALIKE:
        return ""
    name = max(saved, key=lambda part: saved[part])
    return f", {'most' if saved[name] > total_s / 2 else 'the largest part'} of it {name}"


def _parts_s(parts: Breakdown) -> dict[str, float]:
    """Exclusive parts of a traced step, those that are known."""
    busy = None if parts.compute is None or parts.overlapped is None else parts.compute + parts.overlapped
    idle = None if parts.idle.host is None or parts.idle.kernel is None else parts.idle.host + parts.idle.kernel
    found = {"compute": busy, "exposed communication": parts.exposed, "idle": idle}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def _paid_back(pair: Pair) -> str:
    """After how many steps compiling has paid for itself; empty where it does not, or is not known to."""
    cost_s = pair.compiled.compile.seconds
    paid = break_even(pair, cost_s)
    return f", {number(cost_s)} s of compiling paid back after {paid.text} steps" if paid.kind == "after" else ""
