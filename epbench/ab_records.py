"""``arms.json``: two variants of the code under test, launched by turns, and which of their cells belong together.

The directory of an A/B holds it beside ``base`` and ``head``, each a whole run directory. Round *n* of a pair of cells
is launch *n* of either arm; odd rounds are launched in reverse (ABBA).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from epbench.cells import Frozen
from epbench.errors import RunError
from epbench.records import SCHEMA_VERSION
from epbench.store import RunDirectory, open_run, read_json, read_record, write_record
from epbench.wording import shown

__all__ = ["ARMS", "FILE", "AbDirectory", "AbRecord", "ArmSpec", "Checkout", "open_ab"]

FILE = "arms.json"
ArmName = Literal["base", "head"]
ARMS: tuple[ArmName, ArmName] = ("base", "head")


class Checkout(Frozen):
    """A git revision of a package that an arm imports in place of the installed one."""

    tree: str = Field(description="the person's work tree, which is not touched")
    inside: str = Field("", description="directory within it that goes onto PYTHONPATH")
    revision: str = Field(description="as it was given")
    commit: str = Field(description="what it was when the A/B began")


class ArmSpec(Frozen):
    """One arm: what differs from ``as is``, which is this interpreter without any option."""

    label: str = Field(description="what a person calls it")
    given: tuple[str, ...] = Field((), description="the option's values as they were typed")
    python: str | None = Field(None, description="interpreter; None: the one that epbench runs in")
    checkouts: tuple[Checkout, ...] = ()
    options: dict[str, str] = Field(default_factory=dict, description="keys of cells and the values they get, as TOML")
    variables: dict[str, str] = Field(default_factory=dict, description="of the ranks' environment")


class AbRecord(Frozen):
    """What ``epbench ab`` compares."""

    schema_version: int = SCHEMA_VERSION
    scenario: str
    base: ArmSpec
    head: ArmSpec
    pairs: tuple[tuple[str, str], ...] = Field(description="ids of a cell in base and of the same one in head")
    looks: tuple[int, ...] = Field((), description="launches after which the arms are compared; (): after all")
    looks_taken: int = Field(0, description="0: not every launch of the first look is there")
    to_second_look: tuple[str, ...] = Field((), description="cells of head that the first look did not decide")
    launches: int = Field(description="of each cell in each arm, were no look to end it")
    order: str = Field("ABBA", description="of launches: base before head in even rounds, head before base in odd ones")
    seeds: tuple[int, ...] = Field((), description="of the cells: weights and tokens of both arms follow from them")

    @property
    def is_complete(self) -> bool:
        """Whether its last look was taken, so that nothing is left to launch."""
        return self.looks_taken == (2 if self.to_second_look else 1)


@dataclass(frozen=True)
class AbDirectory:
    """One A/B on disk."""

    path: Path

    @property
    def record(self) -> AbRecord:
        """``arms.json``; raises RunError when it is missing, torn or of another schema."""
        return _read(self.path)

    @property
    def base(self) -> RunDirectory:
        """The run of arm base; raises RunError when it cannot be read."""
        return open_run(self.path / "base")

    @property
    def head(self) -> RunDirectory:
        """The run of arm head; raises RunError when it cannot be read."""
        return open_run(self.path / "head")

    def write(self, record: AbRecord) -> None:
        """Write ``arms.json``."""
        write_record(self.path / FILE, record)


def open_ab(name: Path | str, *, reports_dir: Path = Path("reports")) -> AbDirectory:
    """The A/B at a path, with a (unique part of a) name under ``reports_dir``, or the ``latest`` there.

    Raises RunError in one sentence when there is none, several, or one that cannot be read.
    """
    text = str(name)
    path = Path(text) if _is_there(Path(text)) else _named(text, sorted(_all(reports_dir)), reports_dir)
    _read(path)
    return AbDirectory(path)


def _is_there(path: Path) -> bool:
    try:
        return (path / FILE).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _all(reports_dir: Path) -> Iterator[Path]:
    if reports_dir.is_dir():
        yield from (path.parent for path in reports_dir.glob(f"*/{FILE}"))


def _named(text: str, known: list[Path], reports_dir: Path) -> Path:
    found = known[-1:] if text == "latest" else [path for path in known if text and text in path.name]
    exact = [path for path in found if path.name == text]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise RunError(f"{shown(text)} fits {len(found)} A/B runs under '{reports_dir}': give more of its name")
    raise RunError(f"there is no A/B run {shown(text)}, neither as a path nor under '{reports_dir}'")


def _read(path: Path) -> AbRecord:
    file = path / FILE
    found = read_json(file)
    if found is not None and found.get("schema_version") != SCHEMA_VERSION:
        version = shown(found.get("schema_version"))
        raise RunError(f"'{file}' is of schema {version}; this epbench reads schema {SCHEMA_VERSION}")
    record = read_record(file, AbRecord)
    if record is None:
        raise RunError(f"'{file}' is missing or damaged; run epbench ab again")
    return record
