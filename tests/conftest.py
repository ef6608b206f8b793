"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-layouts",
        action="store_true",
        help="every row of tests/parallel/layouts.py in every mode with every kind of checkpointing, not a sample",
    )
