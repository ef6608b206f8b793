"""What the GPUs did while a launch was timed: sampled by a thread of the parent, cut to the timed window later.

A step time is worth nothing if the GPU was too hot for its clock. So a launch in whose timed window any GPU was
slowed down by heat or by hardware is invalid, and the record says which, by what and for how long. Energy is that
of the driver's own counter, not of power readings, which are averages over up to a second.

The ranks' lines carry the host's clock and the samples carry the same, which is how the window is found. Clocks,
power, heat and reasons take microseconds, so they are asked for every 0.2 s. Counters do not (on an H200 the energy
takes 4.5 ms of CPU time, a violation 0.9 ms), so a tick asks for them only as often as keeps them below 0.5 % of one
core; a counter's rise over the window is interpolated. ``cost`` in the record says what it all was. Memory and
``telemetry.jsonl`` are bounded: at 4096 ticks every other one is dropped and the pause doubled, so an hour is seen as
coarsely as it must be.
"""

import json
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from epbench.nvml import CLOCK_REASONS, SPOILING, GpuLostError, Nvml
from epbench.records import GpuTelemetry, Spread, Telemetry
from epbench.runner.ranklog import RankTail
from epbench.writing import write_atomically

__all__ = [
    "FILE",
    "History",
    "Sampler",
    "energy_j_per_token",
    "held_back",
    "held_back_lately",
    "sampling",
    "slowed_down",
    "telemetry_of",
    "timed_window",
]

FILE = "telemetry.jsonl"
INTERVAL_S = 0.2
COST = 0.005  # share of one core that gauges may take, and counters as much again
MOST_TICKS = 4096
RECENT_TICKS = 50  # what is shown of a running launch: some ten seconds

# Record's field -> the driver's question and what its unit is divided by.
_GAUGES: Mapping[str, tuple[str, float]] = {
    "sm_clock_mhz": ("sm_clock", 1),
    "memory_clock_mhz": ("memory_clock", 1),
    "power_w": ("power", 1e3),
    "temperature_c": ("temperature", 1),
    "utilization": ("utilization", 100),
    "memory_used_bytes": ("memory_used", 1),
}
_COUNTERS: Mapping[str, tuple[str, float]] = {
    "power_violation_s": ("power_violation", 1e9),
    "thermal_violation_s": ("thermal_violation", 1e9),
    "energy_j": ("energy", 1e3),
}
_OFTEN = ("reasons", *(what for what, _ in _GAUGES.values()))
_QUESTIONS = (*_OFTEN, *(what for what, _ in _COUNTERS.values()))

Window = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """One moment: what each GPU that was still there answered, in the driver's units."""

    time_s: float
    gpus: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class History:
    """All that was sampled of the GPUs of one launch, in order of their ranks."""

    gpus: Sequence[str]
    ticks: Sequence[Tick]
    cost: float = 0.0
    lost: Sequence[str] = field(default=())

    @property
    def loss(self) -> str | None:
        """The sentence about GPUs that the driver lost meanwhile."""
        names = " and ".join(f"GPU {self.gpus.index(gpu)}" for gpu in self.lost)
        return f"the driver lost {names}" if names else None


def _has_counters(tick: Tick) -> bool:
    return any(what in answers for answers in tick.gpus.values() for what, _ in _COUNTERS.values())


class Sampler:
    """Asks some GPUs again and again. Not thread-safe: one thread samples, and is joined before others read."""

    def __init__(self, nvml: Nvml, gpus: Sequence[str]) -> None:
        self._nvml = nvml
        self._gpus = list(gpus)
        self._mute: dict[str, set[str]] = {gpu: set() for gpu in gpus}  # what the driver cannot answer
        self._ticks: list[Tick] = []
        self._lost: list[str] = []
        self._interval_s = INTERVAL_S
        self._busy_s = self._gauges_s = self._counters_s = 0.0
        self._started = self._counted = time.monotonic()

    @property
    def pause_s(self) -> float:
        """How long to wait until the next tick."""
        return max(self._interval_s, self._gauges_s / COST)

    @property
    def counters_due(self) -> bool:
        """Whether the next tick can afford the counters."""
        return time.monotonic() - self._counted >= self._counters_s / COST

    def sample(self, *, counters: bool = True) -> None:
        """One tick, with the counters or without them."""
        began = time.thread_time()
        asked = _QUESTIONS if counters else _OFTEN
        self._ticks.append(Tick(time.time(), {gpu: found for gpu in self._gpus if (found := self._read(gpu, asked))}))
        if len(self._ticks) >= MOST_TICKS:
            self._thin_out()
        busy_s = time.thread_time() - began
        self._busy_s += busy_s
        if counters:
            self._counters_s, self._counted = busy_s, time.monotonic()
        else:
            self._gauges_s = busy_s

    def _thin_out(self) -> None:
        """Forget every other tick, of those with counters and of those without."""
        counted = [tick for tick in self._ticks if _has_counters(tick)]
        others = [tick for tick in self._ticks if not _has_counters(tick)]
        self._ticks = sorted([*counted[::2], *others[::2]], key=lambda tick: tick.time_s)
        self._interval_s *= 2

    def _read(self, gpu: str, asked: Sequence[str]) -> dict[str, int]:
        """What one GPU answers now; what it could not answer is not asked again, nor is a GPU that is lost."""
        if gpu in self._lost:
            return {}
        try:
            found = {what: self._nvml.ask(what, gpu) for what in asked if what not in self._mute[gpu]}
        except GpuLostError:
            self._lost.append(gpu)
            return {}
        known = {what: value for what, value in found.items() if value is not None}
        self._mute[gpu] |= found.keys() - known.keys()
        return known

    @property
    def recent(self) -> History:
        """The last ten seconds or so; safe to ask for while another thread samples."""
        return History(self._gpus, tuple(self._ticks[-RECENT_TICKS:]), lost=tuple(self._lost))

    @property
    def history(self) -> History:
        """What was sampled so far."""
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        return History(self._gpus, tuple(self._ticks), cost=self._busy_s / elapsed_s, lost=tuple(self._lost))


@contextmanager
def sampling(nvml: Nvml | None, gpus: Sequence[str], directory: Path) -> Iterator[Sampler | None]:
    """Samples in a thread until the block ends, then writes ``directory/telemetry.jsonl``; None: nothing to ask."""
    if nvml is None or not gpus:
        yield None
        return
    sampler, stop = Sampler(nvml, gpus), threading.Event()
    thread = threading.Thread(target=_sample_until, args=(sampler, stop), name="telemetry", daemon=True)
    thread.start()
    try:
        yield sampler
    finally:
        stop.set()
        thread.join()
        _write(sampler.history, directory / FILE)


def _sample_until(sampler: Sampler, stop: threading.Event) -> None:
    sampler.sample()
    while not stop.wait(sampler.pause_s):
        sampler.sample(counters=sampler.counters_due)
    sampler.sample()


def _write(history: History, path: Path) -> None:
    write_atomically(path, "\n".join(json.dumps({"t": tick.time_s, "gpus": tick.gpus}) for tick in history.ticks))


# ---------------------------------------------------------------- the timed window


def timed_window(tails: Sequence[RankTail]) -> Window | None:
    """From when the last rank began to time to when the first one had read its clock; None: nothing was timed.

    A rank enters the phase when it has issued the first timed step, and reports when its device is drained.
    """
    begins = [tail.entered.get("timing") for tail in tails]
    ends = [tail.reported.get("timing") for tail in tails]
    known = [one for one in (*begins, *ends) if one is not None]
    if len(known) < 2 * len(tails) or not tails:
        return None
    begin, end = max(known[: len(tails)]), min(known[len(tails) :])
    return (begin, end) if end > begin else None


def telemetry_of(history: History, window: Window) -> Telemetry:
    """What the GPUs did within ``window`` (host's seconds since the epoch)."""
    times = [tick.time_s for tick in history.ticks]
    return Telemetry(
        window_s=window[1] - window[0],
        interval_s=median([later - earlier for earlier, later in pairwise(times)] or [INTERVAL_S]),
        cost=history.cost,
        gpus=[_of_gpu(history, gpu, window) for gpu in history.gpus],
    )


def _of_gpu(history: History, gpu: str, window: Window) -> GpuTelemetry:
    inside = [tick.gpus[gpu] for tick in history.ticks if gpu in tick.gpus and _within(tick.time_s, window)]
    found: dict[str, object] = {"clock_reasons": _reasons([one["reasons"] for one in inside if "reasons" in one])}
    for name, (what, unit) in _GAUGES.items():
        found[name] = _spread([one[what] / unit for one in inside if what in one])
    for name, (what, unit) in _COUNTERS.items():
        points = [(t.time_s, t.gpus[gpu][what] / unit) for t in history.ticks if what in t.gpus.get(gpu, {})]
        found[name] = _risen(points, window)
    return GpuTelemetry.model_validate({"uuid": gpu, "samples": len(inside)} | found)


def _within(time_s: float, window: Window) -> bool:
    return window[0] <= time_s <= window[1]


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread(median=median(values), low=min(values), high=max(values)) if values else None


def _reasons(masks: Sequence[int]) -> dict[str, float] | None:
    if not masks:
        return None
    shares = {name: sum(bool(mask & bit) for mask in masks) / len(masks) for bit, name in CLOCK_REASONS.items()}
    return {name: share for name, share in shares.items() if share}


def held_back(gpus: Iterable[Mapping[str, float] | None]) -> str:
    """``GPU ok``, or ``SW power cap 34 %, HW slowdown 2 %``: in which share of the samples, on the GPU with most of it.

    Each of ``gpus`` is the share of every reason, None if the driver cannot tell.
    """
    known = [shares for shares in gpus if shares is not None]
    if not known:
        return "GPU clocks unknown"
    worst = {name: max(shares.get(name, 0.0) for shares in known) for name in ("SW power cap", *SPOILING)}
    return ", ".join(f"{name} {_percent(share)}" for name, share in worst.items() if share) or "GPU ok"


def held_back_lately(history: History) -> str:
    """The same of a launch that is running, with the GPUs that were lost."""
    masks = (
        [t.gpus[gpu]["reasons"] for t in history.ticks if "reasons" in t.gpus.get(gpu, {})] for gpu in history.gpus
    )
    return history.loss or held_back(map(_reasons, masks))


def _risen(points: Sequence[tuple[float, float]], window: Window) -> float | None:
    """How far a counter rose within the window; None unless samples on both sides of it tell."""
    begin, end = (_at(points, edge) for edge in window)
    return None if begin is None or end is None or end < begin else end - begin


def _at(points: Sequence[tuple[float, float]], time_s: float) -> float | None:
    """The counter at a time between two samples, on the line through both."""
    after = bisect_left(points, time_s, key=lambda point: point[0])
    if not 0 < after < len(points):
        return None
    (t0, v0), (t1, v1) = points[after - 1], points[after]
    return v0 + (v1 - v0) * (time_s - t0) / (t1 - t0)


# ---------------------------------------------------------------- what follows from it


def slowed_down(telemetry: Telemetry) -> str | None:
    """Why the launch does not measure what the GPUs can do, or None."""
    for index, gpu in enumerate(telemetry.gpus):
        held = {name: share for name, share in (gpu.clock_reasons or {}).items() if name in SPOILING}
        if held:
            reason = max(held, key=lambda name: (held[name], SPOILING.index(name)))
            heat = "" if gpu.temperature_c is None else f", {gpu.temperature_c.high:.0f} C"
            return f"GPU {index} slowed down by {reason} for {_percent(held[reason])} of the timed window{heat}"
    return None


def _percent(share: float) -> str:
    return f"{max(1, round(100 * share))} %"


def energy_j_per_token(telemetry: Telemetry, *, step_s: float, tokens_per_step: int) -> float | None:
    """Mean power of all GPUs over the window, for the time of one step, over its tokens; None if any is unknown."""
    energies = [gpu.energy_j for gpu in telemetry.gpus]
    known = [energy for energy in energies if energy is not None]
    if not known or len(known) < len(energies):
        return None
    return sum(known) / telemetry.window_s * step_s / tokens_per_step
