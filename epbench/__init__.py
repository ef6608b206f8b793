"""epbench: benchmark and profile parallelism layouts for training Mixture-of-Experts models."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epbench.frames import RunFrames

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(run: Path | str) -> "RunFrames":
    """The tidy pandas frames of a run: a path, a name under ``reports/``, or ``latest``.

    Raises RunError if there is no such run or it cannot be read. See :mod:`epbench.frames` for the columns.
    """
    from epbench import frames

    return frames.load(run)
