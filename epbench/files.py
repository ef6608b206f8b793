"""Files that a person names, in a scenario or in a checkpoint's index: read whole and small, or one sentence.

Such a name may be anything: a pipe that never answers, a device that never ends, a link to itself.
"""

import os
from pathlib import Path

from epbench.errors import EpbenchError
from epbench.wording import place

__all__ = ["read_text", "real_path", "refuse_irregular"]


def real_path(path: Path, *, error: type[EpbenchError]) -> Path:
    """``path``, absolute and free of links and dots: one place has one name. Raises ``error`` if it has none."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        raise error(f"{place(path)}: is not a possible path") from None


def refuse_irregular(path: Path, *, error: type[EpbenchError]) -> None:
    """Raises ``error`` for a pipe or a device; whether there is anything at all is left to who opens it."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise error(f"{place(path)}: is not a regular file")


def read_text(path: Path, *, most_mib: int, error: type[EpbenchError]) -> str:
    """The UTF-8 text of a file; raises ``error`` if it is none, cannot be read, or is larger than ``most_mib``."""
    where = place(path)
    try:
        refuse_irregular(path, error=error)
        if path.is_dir():
            raise error(f"{where}: is a directory, not a file")
        with path.open("rb") as file:
            content = file.read((most_mib << 20) + 1)
    except OSError as reason:
        raise error(f"{where}: cannot be read: {(reason.strerror or 'unknown error').lower()}") from None
    except ValueError:
        raise error(f"{where}: is not a possible path") from None
    if len(content) > most_mib << 20:
        raise error(f"{where}: is larger than {most_mib} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise error(f"{where}: is not UTF-8 text (byte {reason.start})") from None
