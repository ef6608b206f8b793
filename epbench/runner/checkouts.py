"""Revisions of the code under test as clean work trees of their own, apart from the person's, gone at the end.

``git worktree add --detach`` under the cache directory: the person's tree, index and branches stay as they are. A
process that is killed leaves one behind, which the next one of this user removes: the kernel's lock on an A/B's
directory tells whether its process lives. Submodules are not filled.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from epbench.ab_records import Checkout
from epbench.errors import ScenarioError, StorageError
from epbench.wording import place, shown

__all__ = ["checked_out", "find_checkout", "own_tree", "uncommitted"]

_TIMEOUT_S = 300


def own_tree() -> Path:
    """Where epbench itself is imported from."""
    return Path(__file__).parents[2]


def find_checkout(tree: Path, revision: str, *, where: str) -> Checkout:
    """The commit that ``revision`` names in the git work tree at, or around, ``tree``.

    Raises ScenarioError, which begins with ``where``, if there is no such tree or revision.
    """
    found = _git(tree, "rev-parse", "--show-toplevel")
    if "dubious ownership" in found.stderr:  # as of a CI's checkout within a container
        raise ScenarioError(
            f"{where}: git refuses {place(tree)}, which another user owns: git config --global --add safe.directory DIR"
        )
    if found.returncode != 0:
        raise ScenarioError(
            f"{where}: {place(tree)} is no git work tree; write PATH@REVISION of the package to measure"
        )
    top = Path(found.stdout.strip())
    commit = _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit.returncode != 0:
        raise ScenarioError(f"{where}: {place(top)} has no revision {shown(revision)} (see: git branch --all, git tag)")
    inside = _git(tree, "rev-parse", "--show-prefix").stdout.strip()
    if inside and _git(top, "cat-file", "-e", f"{commit.stdout.strip()}:{inside.rstrip('/')}").returncode != 0:
        raise ScenarioError(f"{where}: revision {shown(revision)} of {place(top)} has no directory {shown(inside)}")
    return Checkout(tree=str(top), inside=inside, revision=revision, commit=commit.stdout.strip())


def uncommitted(checkout: Checkout) -> bool:
    """Whether the tree's files differ from its own newest commit, which is the one that was asked for."""
    head = _git(Path(checkout.tree), "rev-parse", "--verify", "--quiet", "HEAD^{commit}").stdout.strip()
    changed = _git(Path(checkout.tree), "status", "--porcelain", "--untracked-files=no").stdout
    return head == checkout.commit and bool(changed.strip())


@contextmanager
def checked_out(wanted: Iterable[tuple[str, Sequence[Checkout]]], name: str) -> Iterator[dict[str, list[Path]]]:
    """Directories for PYTHONPATH, by arm and in order; ``name`` is unique to the A/B and the same when it is resumed.

    Raises ScenarioError if git cannot make one.
    """
    listed = [(arm, number, one) for arm, checkouts in wanted for number, one in enumerate(checkouts)]
    if not listed:
        yield {}
        return
    places: dict[str, list[Path]] = {}
    with _own_directory(name) as root:
        try:
            for arm, number, checkout in listed:
                path = root / f"{arm}-{number}"
                _add(checkout, path)
                places.setdefault(arm, []).append(path / checkout.inside)
            yield places
        finally:
            for arm, number, checkout in listed:
                _remove(Path(checkout.tree), root / f"{arm}-{number}")


@contextmanager
def _own_directory(name: str) -> Iterator[Path]:
    """A directory that is kept by a lock while this process lives, and gone afterwards; those that nobody keeps go."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epbench" / "worktrees"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _open(root) as all_of_them:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(all_of_them, fcntl.LOCK_EX)
            for left in root.iterdir():
                _remove_left(left)
            (root / name).mkdir(exist_ok=True)
            descriptor = os.open(root / name, os.O_RDONLY)
            _is_taken(descriptor)
    except OSError as error:
        raise StorageError(f"cannot write '{root}', where revisions are checked out: {error.strerror}") from None
    try:
        yield root / name
    finally:
        shutil.rmtree(root / name, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    """Whether the lock was free, and is this process's now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another's, or a file system without locks
        return False
    return True


def _remove_left(root: Path) -> None:
    """The work trees of an A/B, if its process was killed."""
    with suppress(OSError), _open(root) as descriptor:
        if _is_taken(descriptor):
            for path in root.iterdir():
                _remove(path, path)
            shutil.rmtree(root, ignore_errors=True)


def _add(checkout: Checkout, path: Path) -> None:
    done = _git(Path(checkout.tree), "worktree", "add", "--force", "--detach", str(path), checkout.commit)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ScenarioError(f"git cannot check out {checkout.commit[:10]} of {place(checkout.tree)}: {shown(said[0])}")


def _remove(tree: Path, path: Path) -> None:
    """A work tree, by way of any tree of its repository."""
    if path.exists():
        _git(tree, "worktree", "remove", "--force", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)
        _git(tree, "worktree", "prune")


def _git(tree: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Out of reach of Ctrl-C, which is sent to the whole group; a hook's GIT_DIR would name another repository."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(tree), "-c", "core.hooksPath=/dev/null", *words]
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", env=variables,
            stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise ScenarioError("git is not installed here, and an arm of this A/B is a revision") from None
    except subprocess.TimeoutExpired:
        raise ScenarioError(f"git did not answer within {_TIMEOUT_S} s in {place(tree)}") from None
