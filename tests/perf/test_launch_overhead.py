"""A launch costs at most 0.3 of a bare torchrun's start and end, of as many ranks on the same machine.

Five rounds take a minute and more, so the suite leaves them out. They, and the figures to quote, come from::

    EPBENCH_OVERHEAD_ROUNDS=5 pytest tests/perf/test_launch_overhead.py
"""

import os
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from epbench.analysis.statistics import MIN_LAUNCHES
from epbench.provenance import find_gpus
from tests.perf.launch_overhead import Device, launch_overhead

ROUNDS = int(os.environ.get("EPBENCH_OVERHEAD_ROUNDS", "0"))
MOST = 0.3

ON_GPUS = pytest.mark.skipif(len(find_gpus()) < 2, reason="needs two GPUs")


@pytest.mark.skipif(ROUNDS < MIN_LAUNCHES, reason="takes a minute; EPBENCH_OVERHEAD_ROUNDS=5 runs it")
@pytest.mark.parametrize(
    ("device", "ranks"), [("cpu", 4), pytest.param("cuda", 2, marks=[pytest.mark.gpu, ON_GPUS])], ids=["cpu", "cuda"]
)
@pytest.mark.timeout(900)
def test_a_launch_costs_a_fraction_of_a_bare_torchrun(
    benchmark: BenchmarkFixture, tmp_path: Path, device: Device, ranks: int
) -> None:
    found = benchmark.pedantic(  # type: ignore[no-untyped-call]
        launch_overhead, args=(tmp_path,), kwargs={"ranks": ranks, "rounds": ROUNDS, "device": device}, rounds=1
    )
    ratio = found.ratio
    benchmark.extra_info |= {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "server_s": found.server_s}
    assert ratio.high is not None
    assert ratio.high <= MOST, f"{ratio} of a bare torchrun: {found}"
