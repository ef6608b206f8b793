"""What tests of scenario files begin with: the shortest scenario, and how one is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from epbench.errors import ScenarioError
from epbench.scenario import Scenario, load_scenario

__all__ = ["HEAD", "ONE_CELL", "SCENARIOS", "Write", "names", "refusal"]

SCENARIOS = Path(__file__).parent.parent / "scenarios"
HEAD = 'schema = 1\nname = "t"\nworld_size = 4\n'
ONE_CELL = '[matrix]\nlayout = ["dp4"]\n'

Write = Callable[..., Path]  # the text, and the file's name; returns its path


def names(scenario: Scenario) -> list[str]:
    return [f"{it.cell.layout.slug} {it.cell.mode} {it.cell.routing}" for it in scenario.planned]


def refusal(path: Path | str, **overrides: object) -> str:
    """The one sentence that a scenario is refused with."""
    with pytest.raises(ScenarioError) as error:
        load_scenario(path, **overrides)  # type: ignore[arg-type]
    message = str(error.value)
    assert message.isprintable(), message
    assert len(message) < 600, message
    return message
