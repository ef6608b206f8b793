"""Stacks that do the work of another one and something more, of a known size: what a gate must find.

``train.stack = tests.runner.injected:NAME`` with one or several of these, joined by ``_and_``:

- ``slower_3``: every step takes 3 % longer. On CUDA a spinning kernel on the step's own stream, so that it is device
  work; on CPU a loop of matrix products. The step is timed on every rank in its first runs, but the two in which it may
  compile: so the size is of the step as it is on this machine.
- ``heavier_5``: 5 % more bytes are held than the step's parameters, gradients, optimizer state and, on CUDA, peak need.
- ``chattier``: one small all-to-all more a step, over all ranks.

The stack that is wrapped is ``qwen3_moe``, or of ``slower_3_of_NAME`` the one of ``tests/runner/fake_stacks.py``. What
is injected changes no number of the training, so it is verified like the wrapped stack.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from epbench.cells import Cell
from epbench.parallel.communication import Axis, all_to_all_even
from epbench.stacks.protocol import Batch, ResidentTensors, StepDescription, World, load_stack

_LEFT_OUT, _TIMED = 2, 4  # of the first runs
_SPINS = 20_000_000  # of the GPU's clock: some 10 ms


class InjectedStep:
    """A step with something before its end."""

    def __init__(
        self, cell: Cell, world: World, *, inner: str, percent: float, bytes_percent: float, calls: int
    ) -> None:
        self.inner: Any = load_stack(inner)(cell, world)
        self.obeys_expert_ids = getattr(self.inner, "obeys_expert_ids", False)
        self.world, self.share, self.bytes_share, self.calls = world, percent / 100, bytes_percent / 100, calls
        self.runs, self.step_s, self.ballast = 0, float("inf"), torch.empty(0, dtype=torch.uint8)
        self.matrix = torch.full((128, 128), 1 / 128, device=world.device)
        self.sent = torch.zeros(world.world_size, 128, device=world.device)
        self.clock_hz = _clock_hz(world.device) if world.device.type == "cuda" and percent else 0.0
        self.axis = Axis.from_group(dist.group.WORLD, "world") if calls and dist.group.WORLD is not None else None

    def run(self, batch: Batch) -> Tensor:
        self.runs += 1
        began_s = self._now_s()
        loss: Tensor = self.inner.run(batch)
        if _LEFT_OUT < self.runs <= _LEFT_OUT + _TIMED:
            self.step_s = min(self.step_s, self._now_s() - began_s)
        if self.runs == _LEFT_OUT + _TIMED:
            self._agree()
        if self.runs >= _LEFT_OUT + _TIMED:
            self._busy(self.share * self.step_s)
        for _ in range(self.calls):
            assert self.axis is not None
            all_to_all_even(self.sent, axis=self.axis, purpose="dispatch")
        return loss

    def _now_s(self) -> float:
        """Of the device, while steps are timed; it does not wait later on."""
        if self.world.device.type == "cuda" and self.runs <= _LEFT_OUT + _TIMED:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _agree(self) -> None:
        """All ranks spend the same time; and the ballast is there from now on."""
        shortest = torch.tensor(self.step_s, device=self.world.device, dtype=torch.float64)
        dist.all_reduce(shortest, op=dist.ReduceOp.MIN)
        self.step_s = float(shortest)
        if self.bytes_share:
            size = int(self.bytes_share * self._bytes())
            self.ballast = torch.ones(size, dtype=torch.uint8, device=self.world.device)

    def _bytes(self) -> int:
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        held = self.inner.describe()
        return int(held.parameter_bytes + held.gradient_bytes + held.optimizer_bytes)

    def _busy(self, seconds: float) -> None:
        if not self.share:
            return
        if self.world.device.type == "cuda":
            torch.cuda._sleep(int(seconds * self.clock_hz))
            return
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            self.matrix = self.matrix @ self.matrix

    def describe(self) -> StepDescription:
        described: StepDescription = self.inner.describe()
        return described

    def grad_norm(self) -> Tensor | None:
        norm: Tensor | None = self.inner.grad_norm()
        return norm

    def named_full_gradients(self) -> Iterator[tuple[str, Tensor]] | None:
        gradients: Iterator[tuple[str, Tensor]] | None = self.inner.named_full_gradients()
        return gradients

    def expert_ids(self) -> list[Tensor] | None:
        ids: list[Tensor] | None = self.inner.expert_ids()
        return ids

    def resident_tensors(self) -> ResidentTensors:
        tell = getattr(self.inner, "resident_tensors", None)
        held: ResidentTensors = tell() if tell else ResidentTensors([], [], [])
        return held._replace(optimizer=[*held.optimizer, self.ballast])


def _clock_hz(device: torch.device) -> float:
    """Ticks a second of the clock that ``torch.cuda._sleep`` counts."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_SPINS)
    with torch.cuda.device(device):
        begun.record()
        torch.cuda._sleep(_SPINS)
        ended.record()
        torch.cuda.synchronize()
    return _SPINS / (float(begun.elapsed_time(ended)) / 1e3)


def __getattr__(name: str) -> Callable[[Cell, World], InjectedStep]:
    sizes: dict[str, Any] = {"percent": 0.0, "bytes_percent": 0.0, "calls": 0}
    what, _, fake = name.partition("_of_")
    sizes["inner"] = f"tests.runner.fake_stacks:{fake}" if fake else "qwen3_moe"
    for part in what.split("_and_"):
        what, _, size = part.partition("_")
        if what == "slower":
            sizes["percent"] = float(size)
        elif what == "heavier":
            sizes["bytes_percent"] = float(size)
        elif what == "chattier" and not size:
            sizes["calls"] += 1
        else:
            raise AttributeError(f"nothing named {name} can be injected")
    return partial(InjectedStep, **sizes)
