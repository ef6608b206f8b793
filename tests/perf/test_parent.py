"""What a person waits for before and after a run: all legal layouts of a large world, and the page of 24 cells."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from epbench.report.build import build_html
from epbench.scenario import preset_scenario
from tests.perf.timed import describe
from tests.report.sample_data import many_cells

pytestmark = pytest.mark.benchmark(disable_gc=True)

PRESET = "qwen3-30b-a3b"


def test_layouts(benchmark: BenchmarkFixture) -> None:
    """``layout = "auto"``: what is legal, each with its cell."""
    world_size = 64 if benchmark.enabled else 2
    describe(benchmark, "layouts", f"world={world_size}", preset=PRESET)
    scenario = benchmark(preset_scenario, PRESET, world_size=world_size)
    benchmark.extra_info["cells"] = len(scenario.cells)
    assert scenario.cells


def test_report(benchmark: BenchmarkFixture) -> None:
    """The page, from results that are in memory."""
    count = 24 if benchmark.enabled else 1
    data = many_cells(count)
    describe(benchmark, "report", f"cells={count}")
    page = benchmark.pedantic(build_html, args=(data,), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info["bytes"] = len(page.encode())
    assert page.startswith("<!doctype html>")
