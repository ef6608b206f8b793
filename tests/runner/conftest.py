"""One fork server for all tests that launch; each launch still is a fresh process group."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from epbench.cells import Cell, MeasureSpec, TrainSpec
from epbench.layout import Layout
from epbench.runner.server import ForkServer, launch_variables
from epbench.runner.spec import LaunchSpec

ROOT = Path(__file__).parents[2]
FAULTY_RANK = 1
MEASURE = MeasureSpec(
    launches=3, min_steps=4, max_steps=4, max_warmup_steps=4, trace_steps=1, progress_timeout_s=60, verify="loss"
)


def variables_of_tests() -> dict[str, str]:
    """The ranks' environment with this checkout's ``tests`` importable."""
    return launch_variables("cpu", {**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(variables_of_tests(), tmp_path_factory.mktemp("server") / "server.log") as server:
        server.start()
        yield server


def make_spec(directory: Path, stack: str, **changes: object) -> LaunchSpec:
    train = TrainSpec(stack=f"tests.runner.fake_stacks:{stack}", seed=FAULTY_RANK)
    known: dict[str, object] = {
        "cell": Cell(layout=Layout(dp_shard=2), train=train),
        "kind": "measure",
        "index": 0,
        "order": 0,
        "device": "cpu",
        "measure": MEASURE,
        "detailed": False,
        "directory": directory,
    }
    return LaunchSpec.model_validate(known | changes)
