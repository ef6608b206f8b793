"""How numbers and names become text, once, so that page, terminal and charts say the same.

Human units (ms, GiB, GB/s, %) exist only here. A value that is not known prints as ``–``, never as zero.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

from epbench.analysis.statistics import Interval

__all__ = [
    "UNKNOWN",
    "clean",
    "error",
    "gb_per_s",
    "gib",
    "interval",
    "join",
    "mark",
    "ms",
    "number",
    "p_value",
    "percent",
    "shortened",
    "slow_down",
    "speed_up",
    "told_apart",
    "us",
]

UNKNOWN = "\N{EN DASH}"


def clean(text: str, limit: int = 200) -> str:
    """One line of at most ``limit`` characters; control and direction-changing characters become ``�``.

    For names that come from files: a right-to-left override must not reorder what stands beside it.
    """
    if len(text) <= limit and text.isprintable():
        return text
    line = "".join("\ufffd" if _is_unsafe(character) else character for character in text[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shortened(text: str, limit: int) -> str:
    """As :func:`clean`, but a longer text loses its middle: two paths differ at their ends."""
    head = limit // 4
    whole = len(text) <= limit
    return clean(text, limit) if whole else f"{clean(text[:head])}…{clean(text[1 + head - limit :])}"


def told_apart(values: Iterable[str], limit: int) -> dict[str, str]:
    """The short text of each value; where those of two values are the same, each has its :func:`mark`."""
    texts = {value: shortened(value, limit) for value in values}
    counts = Counter(texts.values())
    return {value: text if counts[text] == 1 else f"{text} {mark(value)}" for value, text in texts.items()}


def mark(value: str) -> str:
    """``#1a2b``, from the digest of a value that no short text tells from another."""
    return f"#{sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:4]}"


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def number(value: float | None, digits: int = 3) -> str:
    """At least ``digits`` significant digits, thousands grouped, no exponent: 33,194, 318, 0.0195."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.{_decimals(value, digits)}f}"


def _decimals(value: float, digits: int) -> int:
    return 0 if value == 0 else min(9, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def interval(value: float | None, low: float | None, high: float | None, *, scale: float = 1.0) -> str:
    """``318.2 [315.1, 321.0]``, all three with the value's decimals; no bounds if they are not known."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    decimals = _decimals(value * scale, 4)
    texts = [f"{x * scale:,.{decimals}f}" for x in (value, low, high) if x is not None]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else texts[0]


def ms(seconds: float | None) -> str:
    """Milliseconds, without the unit."""
    return UNKNOWN if seconds is None else number(seconds * 1e3, 4)


def us(seconds: float | None) -> str:
    """Microseconds, without the unit."""
    return UNKNOWN if seconds is None else number(seconds * 1e6)


def gib(count: float | None) -> str:
    """GiB (2**30 bytes), without the unit."""
    return UNKNOWN if count is None else number(count / 2**30)


def gb_per_s(bytes_per_s: float | None) -> str:
    """GB/s (1e9 bytes), without the unit."""
    return UNKNOWN if bytes_per_s is None else number(bytes_per_s / 1e9)


def percent(fraction: float | None) -> str:
    """``28.0 %``."""
    return UNKNOWN if fraction is None else f"{fraction * 100:.1f} %"


def speed_up(ratio: Interval | None, *, sign: bool = True) -> str:
    """A ratio of speeds as a difference: ``+10.7 % [9.1, 12.3]``."""
    if ratio is None:
        return UNKNOWN
    value, *bounds = (None if x is None else (x - 1) * 100 for x in (ratio.value, ratio.low, ratio.high))
    head = f"{value:+.1f} %" if sign else f"{value:.1f} %"
    low, high = bounds
    return head if low is None or high is None else f"{head} [{low:.1f}, {high:.1f}]"


def slow_down(ratio: Interval) -> str:
    """A ratio of speeds below 1 as what is lost: ``9.7 % [8.4, 10.9]``."""
    lost, *bounds = (None if x is None else f"{(1 - x) * 100:.1f}" for x in (ratio.value, ratio.high, ratio.low))
    return f"{lost} %" if None in bounds else f"{lost} % [{', '.join(map(str, bounds))}]"


def p_value(p: float | None) -> str:
    """Three decimals: ``0.008``; what is smaller than the last of them says so."""
    if p is None:
        return UNKNOWN
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def error(value: float | None) -> str:
    """A relative error, ``1.2e-06``."""
    return UNKNOWN if value is None else f"{value:.1e}"


def join(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
