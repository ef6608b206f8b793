"""What tests of written launch files share."""

from pathlib import Path
from typing import Any

from epbench.launch_files.files import LaunchFileOptions, render_launch_files
from epbench.scenario import Scenario

__all__ = ["ROOT", "SCENARIO", "SETUP", "render"]

ROOT = Path(__file__).parent.parent
SCENARIO = "scenarios/qwen3-30b-8gpu.toml"
SETUP = "make .venv/.ready && . .venv/bin/activate"  # a checkout has no .venv


def render(scenario: Scenario, path: str = SCENARIO, **options: Any) -> dict[str, str]:
    return render_launch_files(scenario, Path(path), LaunchFileOptions(**options))
