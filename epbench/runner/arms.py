"""What a person says of an arm, as ``epbench ab --base`` and ``--head`` take it, and what its ranks are started with.

An arm is *as is* (this interpreter, no option) with any of these changed, separated by ``;``:

- ``/venvs/new/bin/python``, or its directory: an interpreter with a torch and an epbench of its own;
- ``REVISION`` of epbench's own checkout, or ``PATH@REVISION`` of a stack's: a clean work tree, first on PYTHONPATH;
- ``mode=compiled,train.dispatcher=dedup``: keys of cells, for every cell;
- ``env:NCCL_ALGO=Ring``: a variable of the ranks' environment.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from epbench.ab_records import ArmSpec, Checkout
from epbench.errors import ScenarioError
from epbench.runner.checkouts import find_checkout, own_tree, uncommitted
from epbench.runner.server import launch_variables
from epbench.scenario_schema import check_axis
from epbench.wording import shown

__all__ = ["AS_IS", "arm_variables", "check_committed", "option_values", "parse_arm"]

AS_IS = "as is"
_OPTION = re.compile(r"[A-Za-z_][\w.]*=", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SHARED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONSAFEPATH")  # both arms', or set from the arm's kind


def parse_arm(given: Sequence[str], *, where: str) -> ArmSpec:
    """The arm that the values of ``where`` (``--base`` or ``--head``) describe.

    Raises ScenarioError for an interpreter or a revision that does not exist, and for options nobody knows.
    """
    parts = [part.strip() for text in given for part in text.split(";") if part.strip() not in ("", AS_IS)]
    if any("\0" in part for part in parts):
        raise ScenarioError(f"{where}: a NUL character cannot be meant")
    variables = dict(_variable(part, where) for part in parts if part.startswith("env:"))
    rest = [part for part in parts if not part.startswith("env:")]
    options = _options([part for part in rest if _OPTION.match(part)], where)
    pythons, checkouts = [], []
    for part in (part for part in rest if not _OPTION.match(part)):
        python = _interpreter(Path(part).expanduser(), where)
        if python is not None:
            pythons.append(python)
        else:
            checkouts.append(_checkout(part, where))
    if len(pythons) > 1 or len({(one.tree, one.inside) for one in checkouts}) < len(checkouts):
        raise ScenarioError(
            f"{where}: one interpreter and one revision of a tree are an arm; got {shown('; '.join(parts))}"
        )
    return ArmSpec(
        label=_label(parts, checkouts),
        given=tuple(given),
        python=next(iter(pythons), None),
        checkouts=tuple(checkouts),
        options=options,
        variables=variables,
    )


def _label(parts: Sequence[str], checkouts: Iterable[Checkout]) -> str:
    commits = {one.revision: one.commit[:10] for one in checkouts}
    found = [f"{part} ({commits[revision]})" if (revision := _revision(part, commits)) else part for part in parts]
    return "; ".join(found) or AS_IS


def _revision(part: str, commits: Mapping[str, str]) -> str | None:
    return next((name for name in (part, part.rpartition("@")[2]) if name in commits), None)


def _variable(part: str, where: str) -> tuple[str, str]:
    name, equals, value = part.removeprefix("env:").partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        raise ScenarioError(f"{where}: a variable is written env:NAME=VALUE, got {shown(part)}")
    if name in _SHARED_VARIABLES:
        raise ScenarioError(f"{where}: {name} cannot differ between arms")
    return name, value


def _options(parts: Iterable[str], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in (pair for part in parts for pair in re.split(r",(?=[A-Za-z_][\w.]*=)", part)):
        key, _, value = pair.partition("=")
        check_axis(key, where=where)
        if key == "world_size" or (key, value) == ("layout", "auto"):
            raise ScenarioError(
                f"{where}: {key}={shown(value)} is not one change of a cell; write it into the scenario"
            )
        if key in found:
            raise ScenarioError(f"{where}: {key} is given twice")
        found[key] = value
    return found


def option_values(arm: ArmSpec) -> dict[str, Any]:
    """The arm's options as a scenario has them: ``64`` is a number, ``true`` a truth value, all else text."""
    return {key: _value(text) for key, text in arm.options.items()}


def _value(text: str) -> Any:
    try:
        tables = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return tables["value"] if len(tables) == 1 else text


def _interpreter(path: Path, where: str) -> str | None:
    """A path that is one, or a virtual environment's; links stay, for a venv's interpreter is known by its place."""
    try:
        python = path / "bin" / "python" if path.is_dir() else path
        if not python.is_file():
            return None
    except OSError:  # a name too long
        return None
    if not os.access(python, os.X_OK):
        raise ScenarioError(f"{where}: '{python}' is a file, but no interpreter that may be run")
    return str(python.absolute())


def _checkout(part: str, where: str) -> Checkout:
    tree, at, revision = part.rpartition("@")
    if at and tree and revision and Path(tree).expanduser().is_dir():
        return find_checkout(Path(tree).expanduser(), revision, where=where)
    if part.startswith("/") or part.endswith("/python"):
        raise ScenarioError(f"{where}: there is neither an interpreter nor a git work tree at {shown(part)}")
    return find_checkout(own_tree(), part, where=where)


def check_committed(base: ArmSpec, head: ArmSpec) -> None:
    """Raise ScenarioError if an arm is the newest commit of a tree with changes, and the other is not those changes."""
    for arm, other, where in ((base, head, "--base"), (head, base, "--head")):
        for checkout in arm.checkouts:
            as_it_is = other.python is None and all(one.tree != checkout.tree for one in other.checkouts)
            if not as_it_is and uncommitted(checkout):
                raise ScenarioError(
                    f"{where}: {shown(checkout.revision)} is the newest commit of '{checkout.tree}', whose uncommitted "
                    f"changes would take no part: commit them, or leave {where} out to run the tree as it is"
                )


def arm_variables(arm: ArmSpec, device: str, *, first: Sequence[Path], cache: Path) -> dict[str, str]:
    """The environment of an arm's fork server and ranks; ``first`` are the work trees of its revisions.

    The current directory is on the path, as in a run, but behind the revisions and not for another interpreter: an
    epbench that lies there must not take the place of the arm's own. Each arm has a compile cache of its own, even
    where the person's variables name one, or the second arm would find what the first has compiled. All launches of
    an arm are forked from one process, so what that drew at random would be the arm's: one seed of hashes for both.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = [] if arm.python else [str(Path.cwd())]
    path = [*map(str, first), *here, *(entry for entry in given if entry)]
    own = {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    if "TRITON_CACHE_DIR" in os.environ:  # else it is within inductor's
        own["TRITON_CACHE_DIR"] = str(cache / "triton")
    return launch_variables(device, {"PYTHONHASHSEED": "0"} | dict(os.environ) | own | arm.variables)
