"""Sizes by device, and one thread a rank, as in a launch on a CPU."""

from collections.abc import Iterator

import pytest
import torch

from tests.perf.sizes import heads_of, layers_of
from tests.perf.timed import DIRECTIONS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, values in (("layer", layers_of), ("heads", heads_of)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values(metafunc.config), ids=str)
    if "direction" in metafunc.fixturenames:
        metafunc.parametrize("direction", DIRECTIONS)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
