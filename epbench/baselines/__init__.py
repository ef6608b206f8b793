"""What a nightly run is judged by: a file in git beside the scenario, grown one accepted run at a time."""

from epbench.baselines.arms import acknowledge, arms_for, missing_from, without_run
from epbench.baselines.file import baseline_path, read_baseline, write_baseline
from epbench.baselines.records import Baseline

__all__ = [
    "Baseline",
    "acknowledge",
    "arms_for",
    "baseline_path",
    "missing_from",
    "read_baseline",
    "without_run",
    "write_baseline",
]
