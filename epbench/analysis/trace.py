"""Chrome traces of the torch profiler, one per rank, reduced to what the analysis needs.

Times are seconds on the clock that all traces of a host share: an event's ``ts`` (microseconds) counts from
the trace's ``baseTimeNanoseconds``, and the bases of two ranks may differ. Of each collective a CUDA trace
holds three events: the host's annotation, the kernel, and a copy of the annotation on the device's time
line (category ``gpu_user_annotation``), which is left out here so that nothing is counted twice.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epbench.errors import RunError
from epbench.labels import CommLabel

__all__ = ["Group", "Kernel", "Launch", "RankTrace", "Scope", "read_traces"]

STEP_PREFIX = "epbench:step#"
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True, slots=True)
class Scope:
    """Something that a host thread was in: an annotation, or an operator with its arguments."""

    name: str
    start_s: float
    end_s: float
    thread: int
    args: dict[str, Any] = field(default_factory=dict)

    def holds(self, time_s: float) -> bool:
        """Whether a moment lies within."""
        return self.start_s <= time_s <= self.end_s


@dataclass(frozen=True, slots=True)
class Launch:
    """When and by which host thread a kernel was launched."""

    time_s: float
    thread: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel, copy or fill on the device; ``args`` only of communication kernels."""

    name: str
    start_s: float
    end_s: float
    launch: Launch | None
    communication: bool
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """A process group that the rank belongs to."""

    description: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class RankTrace:
    """One rank's trace, everything in order of start."""

    rank: int
    world_size: int | None  # as the trace has it
    host: str | None
    groups: tuple[Group, ...]
    steps: tuple[Scope, ...]
    labels: tuple[tuple[Scope, CommLabel], ...]  # the collectives that the stack labelled
    fsdp: tuple[Scope, ...]  # FSDP2's own annotations
    issues: tuple[Scope, ...]  # operators c10d::*, labelled or not
    gloo: tuple[Scope, ...]  # what gloo's worker threads did
    kernels: tuple[Kernel, ...]

    @property
    def on_cuda(self) -> bool:
        """Whether a device's time line was recorded."""
        return bool(self.kernels)

    def step_at(self, time_s: float) -> int | None:
        """Index of the traced step in which the host was at a time; None between and outside of steps."""
        return next((i for i, step in enumerate(self.steps) if step.holds(time_s)), None)


def read_traces(directory: Path, *, steps: int) -> list[RankTrace]:
    """All ``rank-<n>.json.gz`` of a directory, by rank.

    Raises RunError if there is none, one cannot be read, a rank is missing, or a trace does not hold
    ``steps`` steps.
    """
    paths = {int(m[1]): path for path in directory.glob("rank-*.json.gz") if (m := _RANK.fullmatch(path.name))}
    if not paths:
        raise RunError(f"{directory}: no trace rank-<n>.json.gz in it; run the cell again")
    loaded = {rank: _load(path) for rank, path in sorted(paths.items())}
    base_ns = min(document.get("baseTimeNanoseconds", 0) for document in loaded.values())
    traces = [_rank_trace(rank, document, base_ns, paths[rank]) for rank, document in loaded.items()]
    _check_complete(traces, directory, steps)
    return traces


_RANK = re.compile(r"rank-(\d{1,6})\.json\.gz")


def _check_complete(traces: list[RankTrace], directory: Path, steps: int) -> None:
    world_size = max(trace.world_size or len(traces) for trace in traces)
    missing = sorted(set(range(world_size)) - {trace.rank for trace in traces})
    if missing:
        names = ", ".join(map(str, missing))
        raise RunError(f"{directory}: no trace of rank {names} (world of {world_size}); run the cell again")
    for trace in traces:
        if len(trace.steps) != steps:
            raise RunError(
                f"{directory}: the trace of rank {trace.rank} holds {len(trace.steps)} steps, not {steps};"
                " run the cell again"
            )


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RunError(f"{path}: not a readable trace ({error}); run the cell again") from error
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        raise RunError(f"{path}: not a trace of the torch profiler; run the cell again")
    return document


def _rank_trace(rank: int, document: dict[str, Any], base_ns: int, path: Path) -> RankTrace:
    shift_us = (document.get("baseTimeNanoseconds", 0) - base_ns) / 1e3
    distributed = document.get("distributedInfo") or {}
    try:
        sorter = _Sorter(shift_us)
        for event in document["traceEvents"]:
            sorter.take(event)
        return RankTrace(
            rank=rank,
            world_size=distributed.get("world_size"),
            host=document.get("host_name"),
            groups=tuple(_groups(distributed)),
            **sorter.sorted(),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: an event of the trace makes no sense ({error!r}); run the cell again") from error


def _groups(distributed: dict[str, Any]) -> Iterator[Group]:
    for group in distributed.get("pg_config") or []:
        yield Group(str(group.get("pg_desc")), tuple(group.get("ranks") or ()))


class _Sorter:
    """Sorts the events of one trace into kinds, in a single pass."""

    def __init__(self, shift_us: float) -> None:
        self.shift_us = shift_us
        self.found: dict[str, list[Scope]] = {kind: [] for kind in ("steps", "labels", "fsdp", "issues", "gloo")}
        self.launches: dict[int, Launch] = {}
        self.device: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> None:
        """Keeps an event if it is of any use."""
        category = event.get("cat")
        if event.get("ph") != "X":
            return
        if category in DEVICE_WORK:
            self.device.append(event)
        elif category in ("cuda_runtime", "cuda_driver"):
            self._take_launch(event)
        elif category == "user_annotation":
            self._take_annotation(event)
        elif category == "cpu_op" and event["name"].startswith("c10d::"):
            self.found["issues"].append(self._scope(event, args=event.get("args")))

    def _take_launch(self, event: dict[str, Any]) -> None:
        correlation = event.get("args", {}).get("correlation")
        if correlation is not None:
            self.launches[correlation] = Launch(self._seconds(event["ts"]), event["tid"])

    def _take_annotation(self, event: dict[str, Any]) -> None:
        name = event["name"]
        if name.startswith(STEP_PREFIX):
            self.found["steps"].append(self._scope(event))
        elif name.startswith("comm:"):
            self.found["labels"].append(self._scope(event))
        elif name.startswith("FSDP::"):
            self.found["fsdp"].append(self._scope(event))
        elif name.startswith("gloo:"):
            self.found["gloo"].append(self._scope(event, args=event.get("args")))

    def sorted(self) -> dict[str, Any]:
        """The kinds by name, each in order of start."""
        kinds: dict[str, Any] = {
            kind: tuple(sorted(scopes, key=lambda scope: scope.start_s)) for kind, scopes in self.found.items()
        }
        kinds["labels"] = tuple((scope, _label(scope.name)) for scope in kinds["labels"])
        kinds["kernels"] = tuple(sorted(map(self._kernel, self.device), key=lambda kernel: kernel.start_s))
        return kinds

    def _seconds(self, ts_us: float) -> float:
        return (ts_us + self.shift_us) * 1e-6

    def _scope(self, event: dict[str, Any], args: dict[str, Any] | None = None) -> Scope:
        start_s, end_s = self._seconds(event["ts"]), self._seconds(event["ts"] + event["dur"])
        return Scope(event["name"], start_s, end_s, event["tid"], args or {})

    def _kernel(self, event: dict[str, Any]) -> Kernel:
        args = event.get("args", {})
        communication = event["cat"] == "kernel" and event["name"].startswith("nccl")
        return Kernel(
            name=event["name"],
            start_s=self._seconds(event["ts"]),
            end_s=self._seconds(event["ts"] + event["dur"]),
            launch=self.launches.get(args.get("correlation")),
            communication=communication,
            args=args if communication else {},
        )


def _label(text: str) -> CommLabel:
    label = CommLabel.parse(text)
    assert label is not None, f"{text!r} starts like a label"
    return label
