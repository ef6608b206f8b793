"""Options of the whole suite, and in what order its files begin."""

import os
from pathlib import Path

import pytest

from epbench.runner.server import launch_variables
from tests.scenarios import Write

# Minutes each on two cores: begun first, so that none is left for one core at the end (make test).
DEAREST = (
    "tests/parallel/test_parity.py",
    "tests/parallel/test_unequal_work.py",
    "tests/parallel/test_checkpointing.py",
    "tests/report/test_browser.py",
    "tests/parallel/test_compilation.py",
    "tests/runner/test_faults.py",
    "tests/stacks/test_transformers_stack.py",
    "tests/runner/test_interrupts.py",
    "tests/runner/test_nodes.py",
    "tests/parallel/test_communication.py",
    "tests/parallel/test_nested.py",
    "tests/parallel/test_own_dtype.py",
    "tests/stacks/test_seam.py",
    "tests/runner/test_run.py",
    "tests/runner/test_launches.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-layouts",
        action="store_true",
        help="every row of tests/parallel/layouts.py in every mode with every kind of checkpointing, not a sample",
    )


def pytest_configure() -> None:
    """Ranks of tests compile as those of a launch on a CPU do: no pool of helpers, no search for vector units."""
    for name in ("TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_VEC_ISA_OK"):
        os.environ.setdefault(name, launch_variables("cpu")[name])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {config.rootpath / path: place for place, path in enumerate(DEAREST)}
    items.sort(key=lambda item: places.get(item.path, len(DEAREST)))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a text into a new file."""

    def written(text: str, name: str = "t.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written
