"""Asks an arm's interpreter what it is: its epbench must read what this one writes, and write what this one reads.

The environment of an arm is described by the arm itself, with its own versions, variables and sources.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from epbench.ab_records import ArmSpec
from epbench.errors import ScenarioError, UnfitMachineError
from epbench.records import PROTOCOL_VERSION, SCHEMA_VERSION, EnvironmentRecord
from epbench.runner.spec import LaunchSpec
from epbench.wording import place, shown

__all__ = ["Probed", "probe"]

_TIMEOUT_S = 120
_BY_LAUNCH = frozenset({"kind", "index", "order", "repeats", "device", "detailed", "partitions", "directory"})
_PROGRAM = """
import json, sys
asked = json.load(sys.stdin)
import epbench
from epbench.records import PROTOCOL_VERSION, SCHEMA_VERSION
told = {"protocol": PROTOCOL_VERSION, "records": SCHEMA_VERSION, "place": list(epbench.__path__)[0]}
if told["protocol"] == asked["protocol"] and told["records"] == asked["records"]:
    from epbench.errors import EpbenchError
    from epbench.provenance import describe_environment
    from epbench.runner.spec import LaunchSpec
    from epbench.stack_support import require_installed
    misread = {}
    for spec in asked["specs"]:
        try:
            LaunchSpec.model_validate(spec)
        except ValueError as error:
            misread |= {(".".join(map(str, one["loc"])), one["type"]): None for one in error.errors()}
    told["misread"] = list(misread)
    try:
        require_installed(asked["stacks"])
    except EpbenchError as error:
        told["lacks"] = str(error)
    found = describe_environment(asked["device"], world_size=asked["world_size"], stacks=tuple(asked["stacks"]))
    told["environment"] = found.model_dump(mode="json")
print("epbench:", json.dumps(told))
"""


class _Told(BaseModel):
    """The interpreter's answer; the environment is there if versions agree."""

    protocol: int
    records: int
    place: str
    misread: list[tuple[str, str]] = []  # key of orders, and what is wrong with it
    lacks: str | None = None
    environment: EnvironmentRecord | None = None


@dataclass(frozen=True)
class Probed:
    """What an arm is."""

    environment: EnvironmentRecord
    place: str  # where its epbench is imported from
    new_keys: tuple[str, ...] = ()  # of orders, that it does not know and needs not know: all are at their defaults


def probe(
    arm: ArmSpec,
    variables: Mapping[str, str],
    *,
    specs: Sequence[LaunchSpec],
    where: str,
) -> Probed:
    """Runs the arm's interpreter; ``specs`` are orders such as its ranks will get, one for each cell.

    Raises ScenarioError if it has no epbench, or one that this epbench cannot work with, and UnfitMachineError if it
    lacks what the cells need.
    """
    spec = specs[0]
    stacks = sorted({one.cell.train.stack for one in specs})
    asked: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "records": SCHEMA_VERSION,
        "specs": [one.model_dump(mode="json") for one in specs],
        "device": spec.device,
        "world_size": max(one.cell.world_size for one in specs),
        "stacks": stacks,
    }
    told = _answer(arm.python or sys.executable, variables, asked, where=where)
    _check_versions(told, where)
    needed = [key for key, kind in told.misread if not (kind == "extra_forbidden" and _is_idle(key, specs))]
    if needed:
        keys = place(", ".join(needed[:3]))
        raise ScenarioError(f"{where}: its epbench ({place(told.place)}) does not know {keys} of this epbench's orders")
    if told.lacks:
        raise UnfitMachineError(f"{where}: {place(told.lacks)}")
    environment = told.environment
    if environment is None:
        raise ScenarioError(f"{where}: its epbench ({place(told.place)}) does not describe its environment")
    if spec.device == "cuda" and environment.cuda is None:
        raise UnfitMachineError(f"{where}: its torch {place(environment.torch)} is built without CUDA")
    return Probed(environment, told.place, tuple(key for key, _ in told.misread))


def _is_idle(key: str, specs: Sequence[LaunchSpec]) -> bool:
    """Whether a key is at its default in all orders, now and in later launches."""
    if key.partition(".")[0] in _BY_LAUNCH:
        return False
    for spec in specs:
        told: Any = spec.model_dump(mode="json", exclude_defaults=True)
        for name in key.split("."):
            told = told.get(name) if isinstance(told, dict) else None
        if told is not None:
            return False
    return True


def _check_versions(told: _Told, where: str) -> None:
    for name, theirs, ours in (
        ("protocol", told.protocol, PROTOCOL_VERSION),
        ("schema", told.records, SCHEMA_VERSION),
    ):
        if theirs != ours:
            raise ScenarioError(
                f"{where}: its epbench ({place(told.place)}) is of {name} {theirs}, this one of {ours}: "
                "numbers of two ways of measuring are never compared"
            )


def _answer(python: str, variables: Mapping[str, str], asked: Mapping[str, Any], *, where: str) -> _Told:
    try:
        done = subprocess.run(
            [python, "-c", _PROGRAM], check=False, capture_output=True, text=True, errors="replace",
            env=dict(variables), input=json.dumps(asked), timeout=_TIMEOUT_S, start_new_session=True,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScenarioError(f"{where}: cannot run '{python}': {shown(str(error), limit=100)}") from None
    lines = [line.removeprefix("epbench: ") for line in done.stdout.splitlines() if line.startswith("epbench: ")]
    try:
        return _Told.model_validate_json(lines[-1])
    except (IndexError, ValueError):  # among them what pydantic raises
        raise ScenarioError(f"{where}: {_why_not(python, done.stderr)}") from None


def _why_not(python: str, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "it said nothing")
    if last.startswith("ModuleNotFoundError: No module named 'epbench"):
        return f"'{python}' has no epbench that can be an arm: install this one there (pip install)"
    return f"'{python}' cannot be an arm: {shown(last, limit=100)}"
