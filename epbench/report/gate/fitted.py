"""Markdown that fits where a forge takes so much and no more: what does not fit is counted, never cut silently."""

from collections.abc import Sequence
from dataclasses import dataclass

from epbench.report.gate.words import count_text
from epbench.report.markdown import escaped, markdown_table
from epbench.report.tables import Table

__all__ = ["Part", "fitted", "lines_part", "table_part"]


@dataclass(frozen=True)
class Part:
    """A heading with rows below it, each one line of markdown; ``what`` names them where some are left out."""

    title: str
    rows: tuple[str, ...]
    what: str
    head: str = ""  # of a table
    is_folded: bool = False

    def text(self, count: int) -> str:
        """The part with its first ``count`` rows."""
        left = len(self.rows) - count
        title = escaped(self.title)
        opening = f"<details><summary>{title}</summary>" if self.is_folded else f"### {title}"
        shown = "\n".join([self.head, *self.rows[:count]] if self.head else self.rows[:count])
        rest = escaped(count_text(left, self.what)) if left else ""
        parts = [opening, shown, rest, "</details>" if self.is_folded else ""]
        return "\n\n".join(part for part in parts if part)


def table_part(title: str, table: Table, what: str) -> Part:
    """A part whose rows are those of a table."""
    titles, rule, *rows = markdown_table(table).split("\n")
    return Part(title, tuple(rows), what, head=f"{titles}\n{rule}")


def lines_part(title: str, lines: Sequence[str], what: str) -> Part:
    """A part that is a list."""
    return Part(title, tuple(f"- {escaped(line)}" for line in lines), what)


def fitted(opening: str, parts: Sequence[Part], *, limit: int) -> str:
    """The text in at most ``limit`` bytes of UTF-8: rows are kept in order, as long as there is room.

    The first parts are served first; each of the others keeps its heading and the number of its rows. UTF-8 is never
    shorter than any other count of characters, so a limit of characters holds too. Raises ValueError if not even
    ``opening`` and headings fit.
    """
    told = [part for part in parts if part.rows]
    room = limit - _size("\n\n".join([opening, *(part.text(0) for part in told)]) + "\n")
    if room < 0:
        raise ValueError(f"{limit} bytes hold not even the headings")
    texts = []
    for part in told:
        count, room = _count(part, room)
        texts.append(part.text(count))
    return "\n\n".join([opening, *texts]) + "\n"


def _count(part: Part, room: int) -> tuple[int, int]:
    """How many rows fit into ``room`` bytes, and what is left of it."""
    room -= 2  # the empty line above the first row of a list
    for count, row in enumerate(part.rows):
        size = _size(row) + 1
        if size > room:
            return count, room
        room -= size
    return len(part.rows), room


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
