"""One fork server for all tests that launch; each launch still is a fresh process group."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from epbench.cells import Cell, MeasureSpec, TrainSpec
from epbench.layout import Layout
from epbench.runner.processes import descendants
from epbench.runner.server import ForkServer, launch_variables
from epbench.runner.spec import LaunchSpec
from tests.runner.fake_stacks import CURED, PARENT

ROOT = Path(__file__).parents[2]
FAULTY_RANK = 1
MEASURE = MeasureSpec(
    launches=3, min_steps=4, max_steps=4, max_warmup_steps=4, trace_steps=1, progress_timeout_s=60, verify="loss"
)


# where tests say that the faults of ``fake_stacks`` are over; one path, for the fork server keeps its environment
CURED_FILE = Path(tempfile.gettempdir()) / f"epbench-cured-{os.getpid()}"


def variables_of_tests() -> dict[str, str]:
    """The ranks' environment with this checkout's ``tests`` importable."""
    own = {"PYTHONPATH": str(ROOT), CURED: str(CURED_FILE), PARENT: str(os.getpid())}
    return launch_variables("cpu", {**os.environ, **own})


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(variables_of_tests(), tmp_path_factory.mktemp("server") / "server.log") as server:
        server.start()
        yield server


def steady(patch: pytest.MonkeyPatch) -> None:
    """Stacks of the tests can be imported, and editing a source file while tests run changes no environment."""
    for name, value in variables_of_tests().items():
        patch.setenv(name, value)
    patch.setattr("epbench.provenance.code_digest", lambda _: "code")


def lend(patch: pytest.MonkeyPatch, server: ForkServer) -> None:
    """Runs of this process use ``server`` instead of starting their own; each must leave no process below it."""

    @contextmanager
    def borrowed(*_: object, **__: object) -> Iterator[ForkServer]:
        yield server
        assert server.process_id is not None
        assert descendants(server.process_id) == [], "a run left processes behind"

    patch.setattr("epbench.runner.session.ForkServer", borrowed)


@pytest.fixture
def cured() -> Iterator[Callable[[], None]]:
    """Ends all faults of ``fake_stacks`` when called, until the test ends."""
    yield CURED_FILE.touch
    CURED_FILE.unlink(missing_ok=True)


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
