"""A driver that answers what it was told to: per GPU a list of moments, the last of which lasts."""

from collections.abc import Mapping, Sequence
from typing import Any

from epbench.nvml import GpuLostError

LOST = {"lost": True}


class FakeNvml:
    """``history[gpu]`` is what the GPU answers at each tick; a question that it does not hold has no answer.

    A tick is over when the first question of it is asked again, as a sampler does.
    """

    def __init__(self, **history: Sequence[Mapping[str, Any]]) -> None:
        self.history = {gpu: list(moments) for gpu, moments in history.items()}
        self.asked: list[tuple[str, ...]] = []

    def ask(self, what: str, *gpus: str) -> Any:
        if what == "reasons":
            self._next(gpus[0])
        self.asked.append((what, *gpus))
        moment = self.history[gpus[0]][0]
        if "lost" in moment:
            raise GpuLostError("GPU is lost")
        return moment.get(what)

    def _next(self, gpu: str) -> None:
        begun = ("reasons", gpu) in self.asked
        if begun and len(self.history[gpu]) > 1:
            self.history[gpu].pop(0)
