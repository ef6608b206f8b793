"""The trace pass: a few steps under the torch profiler, one chrome trace per rank.

Apart from the timing, for the profiler changes what it watches (a 2.17x speed-up once read as 1.87x under
it). From these traces come the collectives and the breakdown, never a step time. One profiled step before
the recorded ones is thrown away: it carries the profiler's own start-up. Each recorded step lies in an
annotation ``epbench:step#i``. No stacks. Shapes only on the CPU, where they are the one source of the bytes
of the collectives that FSDP issues; NCCL's kernels carry theirs as arguments.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from epbench.measure.ranks import drain, line_up

if TYPE_CHECKING:
    from epbench.stacks.protocol import Batch, Step, World

__all__ = ["trace_pass", "trace_runs"]


def trace_pass(step: "Step", batches: "Sequence[Batch]", world: "World", *, steps: int, directory: Path) -> Path:
    """Records ``steps`` steps and writes ``directory/rank-<rank>.json.gz``, whose path it returns.

    A collective: every rank runs the same number of steps. ``directory`` is made if need be.
    """
    return trace_runs(lambda index: step.run(batches[index % len(batches)]), world, steps=steps, directory=directory)


def trace_runs(run: Callable[[int], object], world: "World", *, steps: int, directory: Path) -> Path:
    """The same of anything that can be repeated: ``run(index)`` once for nothing, then ``steps`` times."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"rank-{world.rank}.json.gz"

    def export(profiler: Any) -> None:
        profiler.export_chrome_trace(str(path))

    with _profiler(world, steps, export) as profiler:
        run(-1)
        drain(world)
        profiler.step()
        line_up(world)
        for index in range(steps):
            with record_function(f"epbench:step#{index}"):
                run(index)
            if index == steps - 1:
                drain(world)
            profiler.step()
    line_up(world)
    return path


def _profiler(world: "World", steps: int, export: Any) -> profile:
    on_cpu = world.device.type == "cpu"
    activities = [ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    return profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=1, active=steps, repeat=1),
        on_trace_ready=export,
        record_shapes=on_cpu,
    )
