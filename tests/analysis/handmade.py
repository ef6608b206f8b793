"""Traces written by hand, in microseconds, so that every expected number can be worked out on paper."""

import gzip
import json
from itertools import count
from pathlib import Path
from typing import Any

from epbench.analysis.collectives import collective_rows
from epbench.labels import CommLabel
from epbench.records import CollectiveRow

MAIN, AUTOGRAD, STREAM, COMM_STREAM = 100, 101, 7, 8
US = 1e-6


def label(
    purpose: str = "dispatch",
    *,
    op: str = "all_to_all",
    phase: str = "forward",
    axis: str = "ep",
    root: int = 0,
    size: int = 2,
    sent: int = 1000,
    received: int = 1000,
    kept: int | None = None,
) -> str:
    return CommLabel(op, purpose, phase, axis, root, size, sent, received, kept).text


class Trace:
    """The events of one rank. Times are (start, end) in microseconds."""

    def __init__(self, rank: int, *, world_size: int = 2, base_ns: int = 10**18, host: str = "h") -> None:
        self.rank, self.events, self.correlations = rank, list[dict[str, Any]](), count(1)
        self.document: dict[str, Any] = {
            "baseTimeNanoseconds": base_ns,
            "host_name": host,
            "distributedInfo": {"world_size": world_size, "pg_config": []},
            "traceEvents": self.events,
        }

    def group(self, description: str, *ranks: int) -> "Trace":
        self.document["distributedInfo"]["pg_config"].append({"pg_desc": description, "ranks": ranks})
        return self

    def event(self, category: str, name: str, start: float, end: float, tid: int, **args: Any) -> "Trace":
        self.events.append(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "pid": 1,
                "tid": tid,
                "ts": start,
                "dur": end - start,
                "args": args,
            }
        )
        return self

    def step(self, start: float, end: float, index: int = 0) -> "Trace":
        return self.event("user_annotation", f"epbench:step#{index}", start, end, MAIN)

    def annotate(self, name: str, start: float, end: float, tid: int = MAIN) -> "Trace":
        return self.event("user_annotation", name, start, end, tid)

    def gloo(self, op: str, start: float, end: float, tid: int = 300, dtype: str = "float") -> "Trace":
        return self.event("user_annotation", f"gloo:{op}", start, end, tid, **{"Input type": [dtype]})

    def operator(self, name: str, start: float, end: float, dims: list[Any], dtype: str = "float") -> "Trace":
        args = {"Input Dims": dims, "Input type": [dtype] * len(dims)}
        return self.event("cpu_op", f"c10d::{name}", start, end, MAIN, **args)

    def cpu(self, name: str, start: float, end: float, tid: int = MAIN) -> "Trace":
        """An operator that computes, or a layer of dispatch."""
        return self.event("cpu_op", name, start, end, tid)

    def kernel(
        self,
        name: str,
        start: float,
        end: float,
        *,
        launched: float,
        tid: int = MAIN,
        stream: int = STREAM,
        category: str = "kernel",
        **args: Any,
    ) -> "Trace":
        correlation = next(self.correlations)
        self.event("cuda_runtime", "cudaLaunchKernelExC", launched, launched + 1, tid, correlation=correlation)
        return self.event(category, name, start, end, stream, correlation=correlation, **args)

    def replayed(self, name: str, start: float, end: float, *, stream: int = STREAM, **args: Any) -> "Trace":
        """A kernel of a CUDA graph, of which no launch of its own is recorded."""
        return self.event("kernel", name, start, end, stream, **args)

    def on_device(self, name: str, start: float, end: float, *, launched: float | None, stream: int) -> "Trace":
        """A kernel, launched or replayed."""
        if launched is None:
            return self.replayed(name, start, end, stream=stream)
        return self.kernel(name, start, end, launched=launched, stream=stream)

    def nccl(
        self,
        start: float,
        end: float,
        *,
        launched: float,
        tid: int = MAIN,
        name: str = "SendRecv",
        **args: Any,
    ) -> "Trace":
        """An NCCL kernel together with the copy of its annotation that a real trace has on the device."""
        self.event("gpu_user_annotation", "nccl:all_to_all", start, end, COMM_STREAM)
        return self.kernel(f"ncclDevKernel_{name}", start, end, launched=launched, tid=tid, stream=COMM_STREAM, **args)

    def write(self, directory: Path) -> None:
        path = directory / f"rank-{self.rank}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(self.document).encode()))


def write(directory: Path, *traces: Trace) -> Path:
    for trace in traces:
        trace.write(directory)
    return directory


def only_row(directory: Path, *traces: Trace, steps: int = 1) -> CollectiveRow:
    """What is found in these traces of one step or more, if it is of one kind."""
    (row,) = collective_rows(write(directory, *traces), steps=steps)
    return row
