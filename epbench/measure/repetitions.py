"""Seconds of each repetition of the same work, with nothing between the repetitions but what the way of timing needs.

This rank's seconds; a repetition takes the maximum over ranks (:func:`epbench.measure.ranks.maximum_over_ranks`).
"""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import quantiles
from typing import TYPE_CHECKING

import torch

from epbench.measure.ranks import drain
from epbench.records import Spread

if TYPE_CHECKING:
    from epbench.stacks.protocol import World

__all__ = ["Work", "back_to_back", "one_by_one", "spread_of"]

Work = Callable[[], object]


def back_to_back(work: Work, repetitions: int, world: "World") -> list[float]:
    """From the end of one to the end of the next, without a synchronisation: by device events on CUDA."""
    return _by_events(work, repetitions, world) if world.device.type == "cuda" else _by_host(work, repetitions)


def _by_events(work: Work, repetitions: int, world: "World") -> list[float]:
    work()  # fills the queue, so that the first repetition is not charged for an empty one
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    drain(world)
    return [earlier.elapsed_time(later) * 1e-3 for earlier, later in pairwise(marks)]


def _by_host(work: Work, repetitions: int) -> list[float]:
    marks = [time.perf_counter()]
    for _ in range(repetitions):
        work()
        marks.append(time.perf_counter())
    return [later - earlier for earlier, later in pairwise(marks)]


def one_by_one(work: Work, repetitions: int, world: "World") -> list[float]:
    """Each repetition on its own, the device idle before it: by device events on CUDA.

    The first event is reached at once and the second one when the work is done, so what the host takes to launch the
    work is in it, and what it takes to notice the end is not.
    """
    once = _by_events_once if world.device.type == "cuda" else _by_host_once
    return [once(work, world) for _ in range(repetitions)]


def _by_events_once(work: Work, world: "World") -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    drain(world)
    return float(start.elapsed_time(end)) * 1e-3


def _by_host_once(work: Work, _world: "World") -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def spread_of(seconds: Sequence[float]) -> Spread:
    """Median and quartiles of two or more repetitions."""
    low, middle, high = quantiles(seconds, n=4, method="inclusive")
    return Spread(median=middle, low=low, high=high)
