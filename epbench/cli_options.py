"""Values of options that more than one command line takes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from epbench.errors import ScenarioError
from epbench.wording import shown

__all__ = [
    "DEFAULT_FAIL_ON",
    "Budget",
    "Device",
    "FailOn",
    "Json",
    "Only",
    "ReportsDir",
    "Run",
    "Scenario",
    "World",
    "globs",
    "known_device",
    "parse_duration",
    "seconds",
]

Scenario = Annotated[Path, typer.Argument(help="a scenario file, e.g. scenarios/quick.toml")]
Run = Annotated[str, typer.Argument(help="a run directory, a unique part of its name, or 'latest'")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="GLOB", help="only cells whose id matches; may be repeated")
]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="TIME", help="start no launch that would end later, e.g. 20m")
]
World = Annotated[int | None, typer.Option("--world", metavar="N", help="number of ranks, instead of the file's")]
Device = Annotated[str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="instead of the file's")]
ReportsDir = Annotated[Path, typer.Option("--reports-dir", help="where run directories go")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]
FailOn = Annotated[
    str,
    typer.Option(
        "--fail-on",
        metavar="WORDS",
        help="what makes the exit code non-zero: regression, inconclusive, improvement, new, missing; or none",
    ),
]
DEFAULT_FAIL_ON = "regression,inconclusive"

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def globs(given: Sequence[str] | None) -> str | None:
    """``--only`` as one text, as :func:`epbench.cells.fits` reads it; None if it was not given."""
    return ",".join(given) if given else None


def known_device(device: str | None) -> str | None:
    """``--device`` as given; raises ScenarioError for one that there is not."""
    if device not in (None, "auto", "cpu", "cuda"):
        raise ScenarioError(f"--device must be auto, cpu or cuda, got {shown(device)}")
    return device


def seconds(text: str | None) -> float | None:
    """Those of a time that may be left out; raises as :func:`parse_duration`."""
    return None if text is None else parse_duration(text)


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``20m`` or ``1.5h``; raises ScenarioError for anything else."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh])", text, re.ASCII)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ScenarioError(f"a time is a positive number and s, m or h, such as 90s, 20m or 2h; got {shown(text)}")
    return seconds
