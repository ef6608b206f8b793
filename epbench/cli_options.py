"""Values of options that more than one command line takes."""

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from epbench.errors import ScenarioError
from epbench.wording import shown

__all__ = ["Only", "globs", "known_device", "parse_duration"]

Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="GLOB", help="only cells whose id matches; may be repeated")
]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def globs(given: Sequence[str] | None) -> str | None:
    """``--only`` as one text, as :func:`epbench.cells.fits` reads it; None if it was not given."""
    return ",".join(given) if given else None


def known_device(device: str | None) -> str | None:
    """``--device`` as given; raises ScenarioError for one that there is not."""
    if device not in (None, "auto", "cpu", "cuda"):
        raise ScenarioError(f"--device must be auto, cpu or cuda, got {shown(device)}")
    return device


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``20m`` or ``1.5h``; raises ScenarioError for anything else."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh])", text, re.ASCII)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ScenarioError(f"a time is a positive number and s, m or h, such as 90s, 20m or 2h; got {shown(text)}")
    return seconds
