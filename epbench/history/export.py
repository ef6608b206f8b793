"""A history for others: records of the PyTorch benchmark database, and CSV.

The records are those of schema v3 that PyTorch's CI uploads for its HUD: the wiki page *PyTorch OSS benchmark infra* of
pytorch/pytorch, and the table ``oss_ci_benchmark_v3`` of pytorch/test-infra
(``clickhouse_db_schema/oss_ci_benchmark_v3/schema.sql``). A record is one metric of one benchmark of one night:
``benchmark.name``, ``model.name`` and ``metric.name`` with ``metric.benchmark_values`` must be there; ``extra_info``
holds texts only. Values are stored there as 32-bit floats. ``name``, ``repo``, ``head_branch``, ``head_sha``,
``workflow_id``, ``run_attempt`` and ``job_id`` are for the job that uploads to fill in; ``timestamp`` is the night's
start in seconds, which a job that uploads many nights must keep.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from epbench.analysis.statistics import Interval
from epbench.frames import csv_text
from epbench.history.lines import EnvironmentLine, NightLine
from epbench.history.series import Series

__all__ = ["history_csv", "pytorch_json", "pytorch_records"]

_PYTORCH_SCHEMA = "v3"
_COLUMNS = (
    *("scenario", "cell", "name", "layout", "mode", "routing", "run", "started", "outcome", "metric"),
    *(
        "value",
        "low",
        "high",
        "launches",
        "device_name",
        "protocol",
        "torch",
        "cuda",
        "nccl",
        "driver",
        "python",
        "code",
    ),
)


def pytorch_json(series: Iterable[Series], metrics: Sequence[str] | None = None) -> str:
    """The records as one JSON list; only ``metrics`` where they are given."""
    return json.dumps(list(pytorch_records(series, metrics)), indent=1, allow_nan=False)


def pytorch_records(series: Iterable[Series], metrics: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """One record for each metric of each night that has it; values are those of the launches."""
    for one in series:
        for night, machine in zip(one.nights, one.environments, strict=True):
            for name, values in _values(night):
                if metrics is None or name in metrics:
                    yield _record(one, night, machine, name, values)


def _values(night: NightLine) -> Iterator[tuple[str, list[float]]]:
    yield from night.timings.items()
    yield from ((name, [value]) for name, value in night.counters.items() if name not in night.timings)


def _record(
    series: Series, night: NightLine, machine: EnvironmentLine, metric: str, values: list[float]
) -> dict[str, Any]:
    cell = series.cell
    model, train = cell.model, cell.train
    about = {
        "cell": cell.cell,
        "layout": cell.layout,
        "compile": str(cell.mode == "compiled").lower(),
        "routing": cell.routing,
        "run": night.run,
        "outcome": night.outcome,
        "device": machine.device,
        "protocol": str(machine.protocol),
        "code": machine.code,
    }
    return {
        "timestamp": _timestamp(night.started),
        "schema_version": _PYTORCH_SCHEMA,
        "runners": [_runner(machine)],
        "benchmark": {
            "name": f"epbench {series.scenario}",
            "mode": "training" if train else "",
            "dtype": str(train.get("compute_dtype", "")),
            "extra_info": about,
        },
        "model": {
            "name": series.name,
            "type": str(model.get("preset", "")),
            "backend": cell.mode,
            "origins": ["epbench"],
        },
        "dependencies": {"torch": {"version": machine.torch}},
        "metric": {"name": metric, "benchmark_values": values},
    }


def _runner(machine: EnvironmentLine) -> dict[str, Any]:
    is_gpu = machine.device == "cuda"
    described = {"gpu_info": machine.device_name, "gpu_count": machine.world_size} if is_gpu else {}
    versions = {"driver": machine.driver, "cuda": machine.cuda, "nccl": machine.nccl, "python": machine.python}
    return {
        "name": ", ".join(machine.machine),
        "type": machine.device_name,
        **described,
        "extra_info": {what: text for what, text in versions.items() if text},
    }


def _timestamp(started: str) -> int:
    """Seconds since 1970; 0 for what is no time."""
    try:
        found = datetime.fromisoformat(started)
    except ValueError:
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def history_csv(series: Iterable[Series], metrics: Sequence[str] | None = None) -> str:
    """One line a night, cell and metric, with the median over launches and its 95 % interval; no text is a formula."""
    return csv_text(_rows(series, metrics), _COLUMNS)


def _rows(series: Iterable[Series], metrics: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    for one in series:
        wanted = [name for name in one.metrics if metrics is None or name in metrics]
        for metric in wanted:
            for night, machine, found in zip(one.nights, one.environments, one.intervals(metric), strict=True):
                if found is not None:
                    yield dict(zip(_COLUMNS, _row(one, night, machine, metric, found), strict=True))


def _row(series: Series, night: NightLine, machine: EnvironmentLine, metric: str, found: Interval) -> tuple[Any, ...]:
    cell = series.cell
    return (
        *(series.scenario, cell.cell, series.name, cell.layout, cell.mode, cell.routing),
        *(night.run, night.started, night.outcome, metric),
        *(found.value, found.low, found.high, len(night.timings.get(metric, ())) or None),
        *(machine.device_name, machine.protocol, machine.torch, machine.cuda, machine.nccl),
        *(machine.driver, machine.python, machine.code),
    )
