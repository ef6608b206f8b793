"""How long the traces of a launch take to analyse, and how much memory that needs.

Eight ranks of 100 MB: at most 10 s on two cores and 1.5 GB over all processes. The suite runs a fiftieth of it, and
only the whole is held to the time; it, and the figures to quote, come from::

    EPBENCH_TRACE_MB=100 pytest tests/perf/test_trace_analysis.py -k eight
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from epbench.analysis import reading
from epbench.analysis.breakdown import device_time_of
from epbench.analysis.collectives import rows_of
from epbench.errors import RunError
from tests.perf.big_traces import write_big_traces
from tests.perf.timed import describe

RANKS = 8
MEGABYTES = int(os.environ.get("EPBENCH_TRACE_MB", "2"))
FULL_MEGABYTES, MAX_SECONDS, MAX_BYTES = 100, 10.0, 1.5e9

ANALYSE = """
import resource, sys
from pathlib import Path
from epbench.analysis.breakdown import device_time_of
from epbench.analysis.collectives import match, rows_of
from epbench.analysis.merged import write_merged
from epbench.analysis.reading import NUM_PROCESSES, read_traces

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    traces = read_traces(directory, steps=3)
    found = match(traces)
    device = device_time_of(traces, steps=3, found=found)
    (row,) = rows_of(traces, steps=3, found=found)
    write_merged(traces, directory / "trace.json.gz", names=[f"rank {trace.rank}" for trace in traces])
    assert device.unclassified_share == 0 and row.calls_per_step > 1
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest of them
    cpu_s = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print((own + NUM_PROCESSES * worker) * 1024, cpu_s)
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("traces")
    write_big_traces(directory, ranks=RANKS, megabytes=MEGABYTES)
    return directory


def test_traces_of_eight_ranks(benchmark: BenchmarkFixture, traces: Path) -> None:
    """In a process of its own, so that its memory is known; start and imports are part of what is timed."""

    def analyse() -> list[float]:
        command = [sys.executable, "-c", ANALYSE, str(traces)]
        return [
            float(word) for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        ]

    start_s = time.perf_counter()
    describe(benchmark, "traces", f"ranks={RANKS},megabytes={MEGABYTES}")
    rounds = 1 if MEGABYTES >= FULL_MEGABYTES else 3
    peak_bytes, cpu_s = benchmark.pedantic(analyse, rounds=rounds)  # type: ignore[no-untyped-call]
    elapsed_s = time.perf_counter() - start_s
    benchmark.extra_info |= {"ranks": RANKS, "megabytes": MEGABYTES, "peak_bytes": peak_bytes, "cpu_s": cpu_s}
    assert peak_bytes < MAX_BYTES
    assert elapsed_s < MAX_SECONDS or MEGABYTES < FULL_MEGABYTES


def test_two_processes_read_what_one_does(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = reading.read_traces(traces, steps=3)
    monkeypatch.setattr(reading, "WORTH_PROCESSES_BYTES", 0)
    shared = reading.read_traces(traces, steps=3)
    assert rows_of(shared, steps=3) == rows_of(alone, steps=3)
    assert device_time_of(shared, steps=3) == device_time_of(alone, steps=3)


def test_a_torn_trace_is_told_by_the_process_that_read_it(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (0, 1):
        whole = (traces / f"rank-{rank}.json.gz").read_bytes()
        (tmp_path / f"rank-{rank}.json.gz").write_bytes(whole if rank == 0 else whole[: len(whole) // 2])
    monkeypatch.setattr(reading, "WORTH_PROCESSES_BYTES", 0)
    with pytest.raises(RunError, match=r"rank-1\.json\.gz: not a readable trace"):
        reading.read_traces(tmp_path, steps=3)
