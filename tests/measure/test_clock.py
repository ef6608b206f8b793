"""Warm-up ends when steps are stationary; timing runs as many steps as precision needs, undisturbed."""

import gc
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epbench.cells import MeasureSpec
from epbench.measure.clock import is_stationary, standard_error_of_median, time_steps
from epbench.measure.counters import CompileCounters
from epbench.stacks.protocol import Batch, World
from tests.measure.conftest import FakeStep, RunRanks


def spec(**changes: Any) -> MeasureSpec:
    return MeasureSpec(**({"min_steps": 4, "max_steps": 12, "max_warmup_steps": 8} | changes))


def silent(phase: str, index: int) -> None:
    pass


class Clock:
    """A host clock that only the step moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *durations_s: float) -> None:
        self.now_s, self.durations_s = 0.0, list(durations_s)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def step(self) -> None:
        self.now_s += self.durations_s.pop(0) if len(self.durations_s) > 1 else self.durations_s[0]


def test_a_steady_step_is_timed_exactly(monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch) -> None:
    step = FakeStep(Clock(monkeypatch, 0.5).step)
    timing = time_steps(step, [batch], world, spec(), on_progress=silent)
    assert timing.steps_s == [0.5] * 4
    assert timing.warmup_steps == 4  # two windows of two
    assert timing.settled
    assert timing.losses == [1, 2, 3, 4, 5]  # warm-up included
    assert step.runs == 8


def test_warmup_outlasts_a_transient(monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch) -> None:
    step = FakeStep(Clock(monkeypatch, 9.0, 4.0, 2.0, 1.0).step)
    timing = time_steps(step, [batch], world, spec(), on_progress=silent)
    assert timing.warmup_steps == 7  # 1 1 1 1 from the fourth step on
    assert timing.settled
    assert timing.steps_s == [1.0] * 4


def test_a_step_that_keeps_getting_faster_is_not_settled(
    monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch
) -> None:
    step = FakeStep(Clock(monkeypatch, *(2.0**-i for i in range(40))).step)
    timing = time_steps(step, [batch], world, spec(), on_progress=silent)
    assert (timing.settled, timing.warmup_steps) == (False, 8)
    assert timing.steps_s[0] == 2.0**-8  # timed all the same


def test_noise_earns_more_steps_up_to_the_cap(monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch) -> None:
    step = FakeStep(Clock(monkeypatch, *[1.0, 1.2] * 30).step)
    timing = time_steps(step, [batch], world, spec(max_steps=10), on_progress=silent)
    assert timing.steps_s == pytest.approx([1.0, 1.2] * 5)


def test_progress_is_told_after_each_step(monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch) -> None:
    told: list[tuple[str, int]] = []
    step = FakeStep(Clock(monkeypatch, 1.0).step)
    time_steps(step, [batch], world, spec(), on_progress=lambda phase, index: told.append((phase, index)))
    assert told == [("warmup", i) for i in range(4)] + [("timing", i) for i in range(4)]


def test_batches_are_used_in_turn_over_both_phases(monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch) -> None:
    clock, seen = Clock(monkeypatch, 1.0), []

    class Watching(FakeStep):
        def run(self, batch: Batch) -> torch.Tensor:
            seen.append(int(batch.tokens[0, 0]))
            return super().run(batch)

    batches = [Batch(batch.tokens + i, batch.labels) for i in range(3)]
    time_steps(Watching(clock.step), batches, world, spec(), on_progress=silent)
    assert seen == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_collector_rests_while_steps_are_timed_and_only_then(
    monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    enabled: list[tuple[str, bool]] = []
    time_steps(
        FakeStep(clock.step),
        [batch],
        world,
        spec(),
        on_progress=lambda phase, index: enabled.append((phase, gc.isenabled())),
    )
    assert set(enabled) == {("warmup", True), ("timing", False)}
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_the_collector_comes_back_when_a_step_fails(
    monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch
) -> None:
    clock = Clock(monkeypatch, 1.0)

    def work() -> None:
        clock.step()
        if not gc.isenabled():
            raise RuntimeError("in the timed region")

    with pytest.raises(RuntimeError, match="in the timed region"):
        time_steps(FakeStep(work), [batch], world, spec(), on_progress=silent)
    assert gc.isenabled()


def test_no_batch_is_an_error(world: World) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        time_steps(FakeStep(), [], world, spec(), on_progress=silent)


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compilation_restarts_the_warmup_and_is_counted(world: World, batch: Batch, fullgraph: bool) -> None:
    before = CompileCounters.read().graphs
    compiled = torch.compile(lambda x: x * 2, backend="eager", dynamic=False, fullgraph=fullgraph)
    sizes = iter([2, 3, *[3] * 100])
    step = FakeStep(lambda: compiled(torch.ones(next(sizes))))
    timing = time_steps(step, [batch], world, spec(max_warmup_steps=20), on_progress=silent)
    assert CompileCounters.read().graphs - before == 2
    assert timing.warmup_steps >= 2 + 2 * 5
    assert (timing.recompiles, timing.graph_breaks) == (0, 0)
    assert timing.compile_s is not None
    assert timing.compile_s > 0


@pytest.mark.usefixtures("fresh_compiler")
def test_graph_breaks_are_counted(world: World, batch: Batch) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    compiled = torch.compile(broken, backend="eager")
    timing = time_steps(FakeStep(lambda: compiled(torch.ones(2))), [batch], world, spec(), on_progress=silent)
    assert (timing.graph_breaks, timing.recompiles) == (1, 0)


def test_nothing_compiled_is_none_not_zero(world: World, batch: Batch, fresh_compiler: None) -> None:
    timing = time_steps(FakeStep(), [batch], world, spec(), on_progress=silent)
    assert (timing.compile_s, timing.graph_breaks, timing.recompiles) == (None, None, None)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_recompile_among_the_timed_steps_is_told(monkeypatch: pytest.MonkeyPatch, world: World, batch: Batch) -> None:
    clock = Clock(monkeypatch, 1.0)
    compiled = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)

    def work() -> None:
        clock.step()
        compiled(torch.ones(2 if clock.now_s < 6 else 3))

    timing = time_steps(FakeStep(work), [batch], world, spec(), on_progress=silent)
    assert timing.warmup_steps == 5
    assert timing.recompiles == 1


@given(st.floats(1e-6, 1e3), st.integers(2, 5))
def test_equal_steps_are_stationary_as_soon_as_there_are_two_windows(step_s: float, window: int) -> None:
    assert is_stationary([step_s] * 2 * window, window)
    assert not is_stationary([step_s] * (2 * window - 1), window)


def test_a_shift_beyond_the_scatter_is_not_stationary() -> None:
    assert not is_stationary([1.2, 1.2, 1.2, 1.0, 1.0, 1.0], 3)
    assert is_stationary([1.04, 1.04, 1.04, 1.0, 1.0, 1.0], 3)  # within 5 %
    assert is_stationary([1.2, 1.2, 1.2, 0.9, 1.1, 1.3], 3)  # cannot be told from noise


def test_the_standard_error_of_a_median() -> None:
    # deviations from 3: 2 1 0 1 2, their median 1; sqrt(pi/2) * 1.4826 / sqrt(5)
    assert standard_error_of_median([1, 2, 3, 4, 5]) == pytest.approx(0.83099, rel=1e-4)
    assert standard_error_of_median([2, 2, 2, 2, 50]) == 0


def uneven(batch: Batch, *, world: World) -> tuple[int, int, bool]:
    """Rank 1's steps get faster for a while; rank 0's are steady from the start."""
    monkeypatch = pytest.MonkeyPatch()
    durations = [8.0, 4.0, 2.0, 1.0] if world.rank else [1.0]
    timing = time_steps(FakeStep(Clock(monkeypatch, *durations).step), [batch], world, spec(), on_progress=silent)
    return timing.warmup_steps, len(timing.steps_s), timing.settled


def noisy_on_one(batch: Batch, *, world: World) -> int:
    monkeypatch = pytest.MonkeyPatch()
    durations = [1.0, 1.5] * 40 if world.rank else [1.0]
    step = FakeStep(Clock(monkeypatch, *durations).step)
    return len(time_steps(step, [batch], world, spec(), on_progress=silent).steps_s)


def test_all_ranks_end_the_warmup_together(run_ranks: RunRanks, batch: Batch) -> None:
    assert run_ranks(uneven, 2, batch) == [(7, 4, True)] * 2


def test_all_ranks_time_the_same_number_of_steps(run_ranks: RunRanks, batch: Batch) -> None:
    assert run_ranks(noisy_on_one, 2, batch) == [12, 12]
