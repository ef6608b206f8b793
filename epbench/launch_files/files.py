"""Which launch files a scenario gets, from its own numbers, written so that nobody's edits are lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epbench.errors import ScenarioError
from epbench.launch_files.quoting import for_github, for_kubernetes, for_shell, for_yaml, indented, label, slug
from epbench.wording import either, place, shown
from epbench.writing import replace_file

if TYPE_CHECKING:
    from epbench.scenario import Scenario

__all__ = ["KINDS", "LaunchFileOptions", "render_launch_files", "write_launch_files"]

KINDS: Mapping[str, Mapping[str, str]] = {  # kind -> template -> end of the file's name
    "sbatch": {"job.sbatch.j2": ".sbatch"},
    "jobset": {"jobset.yaml.j2": ".jobset.yaml"},
    "github": {
        "github-nightly.yml.j2": ".github-nightly.yml",
        "github-pull-request.yml.j2": ".github-pull-request.yml",
    },
    "gitlab": {"gitlab-ci.yml.j2": ".gitlab-ci.yml"},
}
_ONE_MACHINE = ("github", "gitlab")  # a job of these has one
_MARGIN_S = 1800  # beyond the budget: the last launch, the report, the gate
_SHM_GIB = 16  # a rank's, for NCCL and loaders


@dataclass(frozen=True)
class LaunchFileOptions:
    """What the command line says beyond the scenario."""

    kind: str = "all"
    nodes: int = 1
    gpus_per_node: int | None = None
    budget_s: float = 5400.0
    image: str = "epbench:latest"
    runner: str = "gpu"
    baseline: str = ""
    code: str = ""
    setup: str = ""


def render_launch_files(scenario: "Scenario", path: Path, options: LaunchFileOptions) -> dict[str, str]:
    """File names and their content. Raises ScenarioError for options that do not fit the scenario.

    ``path`` is the scenario's as it was typed: it must mean the same where the files are used.
    """
    values = _values(scenario, path, options)
    templates = _environment()
    return {
        f"{values['slug']}{ending}": templates.get_template(name).render(values)
        for kind in _kinds(options)
        for name, ending in KINDS[kind].items()
    }


def write_launch_files(files: Mapping[str, str], directory: Path, *, force: bool = False) -> list[Path]:
    """Writes each; raises ScenarioError, before anything is written, if one is there and says something else.

    Raises StorageError where files cannot be written.
    """
    found = {directory / name: text.encode() for name, text in files.items()}
    edited = [place(path) for path, text in found.items() if not force and _differs(path, text)]
    if edited:
        raise ScenarioError(f"{', '.join(edited)}: there already, with other contents; --force overwrites")
    for path, text in found.items():
        replace_file(path, text)
    return list(found)


def _differs(path: Path, text: bytes) -> bool:
    try:
        return path.read_bytes() != text
    except OSError:
        return False


def _kinds(options: LaunchFileOptions) -> Sequence[str]:
    if options.kind == "all":
        return [kind for kind in KINDS if options.nodes == 1 or kind not in _ONE_MACHINE]
    if options.kind not in KINDS:
        raise ScenarioError(f"--kind must be {either([*KINDS, 'all'])}, got {shown(options.kind)}")
    if options.nodes > 1 and options.kind in _ONE_MACHINE:
        raise ScenarioError(f"a job of {options.kind} has one machine: --nodes {options.nodes} needs sbatch or jobset")
    return [options.kind]


def _values(scenario: "Scenario", path: Path, options: LaunchFileOptions) -> dict[str, Any]:
    world_size = max((cell.world_size for cell in scenario.cells), default=1)
    gpus = _gpus(world_size, options)
    limit_s = ceil((options.budget_s + _MARGIN_S) / 60) * 60
    values = {
        "scenario": _text(str(path), "the scenario's path"),
        "slug": slug(scenario.name),
        "nodes": options.nodes,
        "gpus": 0 if scenario.device == "cpu" else gpus,
        "world_size": world_size,
        "budget": f"{options.budget_s:.0f}s",
        "limit_s": limit_s,
        "limit_minutes": limit_s // 60,
        "limit_clock": f"{limit_s // 3600:02d}:{limit_s // 60 % 60:02d}:00",
        "image": label(options.image, "--image"),
        "runner": label(options.runner, "--runner"),
        "runner_slug": slug(options.runner),
        "shm_gib": _SHM_GIB * gpus,
    }
    return values | {name: _text(getattr(options, name), f"--{name}") for name in ("baseline", "code", "setup")}


def _gpus(world_size: int, options: LaunchFileOptions) -> int:
    """GPUs of a node; raises ScenarioError where ranks do not fit."""
    if world_size % options.nodes:
        raise ScenarioError(f"{options.nodes} nodes cannot share {world_size} ranks equally: give --world N")
    ranks = world_size // options.nodes
    gpus = options.gpus_per_node or ranks
    if gpus < ranks:
        raise ScenarioError(f"{ranks} ranks a node need as many GPUs, got --gpus-per-node {gpus}: give --nodes N")
    return gpus


def _text(value: str, what: str) -> str:
    """A value that is text: an environment holds no NUL, and a file of text no half characters."""
    if "\0" in value or any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise ScenarioError(f"{what} is no text: {shown(value)}")
    return value


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("epbench.launch_files"),
        undefined=StrictUndefined,
        autoescape=False,  # nothing here is HTML; each format has a filter of its own
        comment_start_string="<#",  # "{#" is the length of an array in bash
        comment_end_string="#>",
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "sh": for_shell,
        "yaml": for_yaml,
        "github": for_github,
        "kubernetes": for_kubernetes,
        "indented": indented,
    }
    return templates
