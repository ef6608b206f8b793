"""Small pieces of sentences: values shown safely, lists, suggestions. Everything a person typed passes here.

A name from a file or a command line can be 10 kB long or hold control characters: it is shown short, escaped.
"""

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["either", "nearest", "place", "shown", "suggestion"]

_LIMIT = 60


def shown(value: Any, *, limit: int = _LIMIT) -> str:
    """``value`` as one short printable piece of text: strings quoted and escaped, long ones cut."""
    text = ascii(value)
    if len(text) <= 2 * limit:
        return text
    length = len(value) if isinstance(value, str) else len(text)
    return f"{text[:limit]}... ({length} characters)"


def either(items: Iterable[Any]) -> str:
    """``a, b or c``."""
    *rest, last = [str(item) for item in items]
    return f"{', '.join(rest)} or {last}" if rest else last


def suggestion(word: str, known: Sequence[str]) -> str:
    """``; did you mean 'x'?`` for a word that resembles a known one, else all the known ones."""
    import difflib

    close = difflib.get_close_matches(word[:_LIMIT], known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def nearest(value: int, legal: Iterable[int]) -> str:
    """The closest legal numbers below and above ``value``, as ``2 or 4``; ``legal`` must not be empty."""
    numbers = sorted(legal)
    below = [number for number in numbers if number < value][-1:]
    above = [number for number in numbers if number > value][:1]
    return either(below + above)


def place(path: object) -> str:
    """A path as a message begins with it: as typed, or shortened and escaped when it is hostile."""
    text = str(path)
    return text if len(text) <= 200 and text.isprintable() else shown(text)
