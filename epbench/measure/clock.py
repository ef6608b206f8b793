"""How long one training step takes, on this rank.

What a person who trains wants is the time from one step's end to the next one's when nothing but training
goes on, so that is what is timed: profiler off, garbage collector frozen, and not one synchronisation of
the harness between the steps. On CUDA an event is recorded on the current stream after every step and all
are read when the last step is done; the host runs ahead as it would in training. On the CPU, where a step
is over when it returns, the host's monotonic clock is read in the same places.

**Warm-up** ends when the steps have become stationary, not after a constant. Each warm-up step is
synchronised and its time is the maximum over the ranks. Of the steps since the last one in which any rank
compiled, the last two windows are compared: they agree when their medians differ by at most 5 %, or by no
more than the later window's own scatter explains where the steps are so noisy that 5 % cannot be told (a
shared laptop). A window is a quarter of ``max_warmup_steps``, from 2 to 5 steps. ``max_warmup_steps`` caps
it all; a cap that is reached says ``settled=False`` and the timing still runs, for the caller to judge.

**How many steps**: ``min_steps``, then as many again, until the standard error of the median is below 1 %
or ``max_steps`` is reached. The launch, not the step, is the unit of replication, and launches of one build
differ by 2-6 %, so more steps than that buy nothing.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from epbench.cells import MeasureSpec
from epbench.measure.counters import CompileCounters
from epbench.measure.ranks import drain, line_up, maximum_over_ranks

if TYPE_CHECKING:
    from epbench.stacks.protocol import Batch, Step, World

__all__ = ["Timing", "is_stationary", "standard_error_of_median", "time_steps"]

STATIONARY_WITHIN = 0.05  # of the median, between two windows of warm-up steps
PRECISE_ENOUGH = 0.01  # standard error of the median step, relative
NUM_LOSSES = 5

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Timing:
    """One rank's view of a launch; a launch's value takes, per step, the slowest rank."""

    steps_s: list[float]  # this rank's timed steps, in order
    warmup_steps: int
    settled: bool  # False: the cap on warm-up was reached before the steps became stationary
    losses: list[float]  # of the first steps of all, warm-up included
    compile_s: float | None  # None, like the next two: nothing was compiled
    graph_breaks: int | None
    recompiles: int | None  # graphs compiled during the timed steps


@dataclass(frozen=True)
class _Bench:
    """A step, its data in turn without end, and the losses of the first steps."""

    step: "Step"
    data: "Iterator[Batch]"
    world: "World"
    losses: list[Tensor] = field(default_factory=list)

    def run(self) -> None:
        """Issues the next step; the first losses are kept as tensors, for reading one would wait for it."""
        loss = self.step.run(next(self.data))
        if len(self.losses) < NUM_LOSSES:
            self.losses.append(loss.detach())


def time_steps(
    step: "Step",
    batches: "Sequence[Batch]",
    world: "World",
    spec: MeasureSpec,
    *,
    on_progress: Progress,
) -> Timing:
    """Warms up, then times. A collective: every rank calls it, with the same ``spec``.

    ``batches`` are used in turn. ``on_progress(phase, index)`` is called on the host after each step was
    issued (phase ``warmup`` or ``timing``); it must be cheap and must not synchronise.
    """
    if not batches:
        raise ValueError("time_steps needs at least one batch")
    bench = _Bench(step, cycle(batches), world)
    warmup_steps, settled = _warm_up(bench, spec.max_warmup_steps, on_progress)
    before = CompileCounters.read()
    steps_s = _time(bench, spec, on_progress)
    after = CompileCounters.read()
    return Timing(
        steps_s=steps_s,
        warmup_steps=warmup_steps,
        settled=settled,
        losses=[float(loss) for loss in bench.losses],
        compile_s=after.compile_s if after.used else None,
        graph_breaks=after.graph_breaks if after.used else None,
        recompiles=after.graphs - before.graphs if after.used else None,
    )


# ---------------------------------------------------------------- warm-up


def _warm_up(bench: _Bench, max_steps: int, on_progress: Progress) -> tuple[int, bool]:
    """Number of steps run, and whether they ended stationary; the same answer on every rank."""
    window = min(5, max(2, max_steps // 4))
    steps_s: list[float] = []
    line_up(bench.world)
    for index in range(max_steps):
        step_s, compiled = _warm_up_step(bench)
        on_progress("warmup", index)
        steps_s = [] if compiled else [*steps_s, step_s]
        if is_stationary(steps_s, window):
            return index + 1, True
    return max_steps, False


def _warm_up_step(bench: _Bench) -> tuple[float, bool]:
    """Seconds of one synchronised step on the slowest rank, and whether any rank compiled during it."""
    graphs, start = CompileCounters.read().graphs, time.perf_counter()
    bench.run()
    drain(bench.world)
    step_s = time.perf_counter() - start
    slowest_s, compiled = maximum_over_ranks([step_s, CompileCounters.read().graphs - graphs], bench.world)
    return slowest_s, compiled > 0


def is_stationary(steps_s: Sequence[float], window: int) -> bool:
    """Whether the last two windows of step times agree: within 5 %, or within the later one's scatter.

    The scatter is two standard errors of a difference of medians, from the later window only: a transient in
    the earlier one must not excuse itself.
    """
    if len(steps_s) < 2 * window:
        return False
    earlier, later = steps_s[-2 * window : -window], steps_s[-window:]
    difference = abs(median(earlier) - median(later))
    noise = 2 * math.sqrt(2) * standard_error_of_median(later)
    return difference <= max(STATIONARY_WITHIN * median(later), noise)


def standard_error_of_median(values: Sequence[float]) -> float:
    """Standard error of the median, in the unit of ``values``: 1.2533 sigma / sqrt(n) of a normal sample.

    Sigma is 1.4826 times the median absolute deviation, so that one hiccup does not call for more steps.
    """
    centre = median(values)
    sigma = 1.4826 * median(abs(value - centre) for value in values)
    return math.sqrt(math.pi / 2) * sigma / math.sqrt(len(values))


# ---------------------------------------------------------------- timing


def _time(bench: _Bench, spec: MeasureSpec, on_progress: Progress) -> list[float]:
    """This rank's step times, in chunks; whether another chunk is needed is decided by all ranks together."""
    steps_s: list[float] = []
    slowest_s: list[float] = []
    with _collector_frozen():
        while len(steps_s) < spec.min_steps or _more_needed(slowest_s, spec):
            size = min(spec.min_steps, max(spec.min_steps, spec.max_steps) - len(steps_s))
            first = len(steps_s)
            chunk_s = _time_chunk(bench, range(first, first + size), on_progress)
            steps_s += chunk_s
            slowest_s += maximum_over_ranks(chunk_s, bench.world)
    return steps_s


def _more_needed(slowest_s: Sequence[float], spec: MeasureSpec) -> bool:
    enough = standard_error_of_median(slowest_s) <= PRECISE_ENOUGH * median(slowest_s)
    return not enough and len(slowest_s) < spec.max_steps


def _time_chunk(bench: _Bench, indices: range, on_progress: Progress) -> list[float]:
    """Seconds from each step's end to the next one's.

    A device that works from a queue gets one step ahead of the first mark, untimed: it would otherwise be
    charged for the time in which the host fills an empty queue, which happens once in training.
    """
    line_up(bench.world)
    if bench.world.device.type == "cuda":
        bench.run()
        return _time_by_events(bench, indices, on_progress)
    return _time_by_host(bench, indices, on_progress)


def _time_by_events(bench: _Bench, indices: range, on_progress: Progress) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(indices) + 1)]
    marks[0].record()
    for index, mark in zip(indices, marks[1:], strict=True):
        bench.run()
        mark.record()
        on_progress("timing", index)
    drain(bench.world)
    return [earlier.elapsed_time(later) * 1e-3 for earlier, later in pairwise(marks)]


def _time_by_host(bench: _Bench, indices: range, on_progress: Progress) -> list[float]:
    marks = [time.perf_counter()]
    for index in indices:
        bench.run()
        marks.append(time.perf_counter())
        on_progress("timing", index)
    return [later - earlier for earlier, later in pairwise(marks)]


@contextmanager
def _collector_frozen() -> Iterator[None]:
    """Collects once, then keeps the collector away on every rank alike: one rank's pause stops them all.

    Nothing is frozen in a child of a fork server, which froze its heap: to thaw one is to thaw both, and what stays
    frozen is hidden from the memory pass.
    """
    was_enabled, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    if not was_frozen:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
