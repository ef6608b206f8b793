"""Tonight against the nights before: an alarm needs two nights running, and a robust window to stand out from.

One night is beyond if it differs from the median of the window before it by more than ``K`` robust standard deviations
(1.4826 times the median absolute deviation, which for normal noise estimates the same) and by more than a practical
limit, of which the first tells chance and the second what matters. An alarm is two nights running beyond on the same
side of the window that precedes both. Median and deviation hardly notice the odd bad night in the window.

For nights that scatter by 0.8 % and launches by 0.6 %, five a night: 0.3 % of quiet nights raise an alarm, up or
down, and a slowdown of 3 % is found within three nights in 88 % of cases (82 % with a limit of 2 %); simulated in
``tests/analysis/test_rolling.py``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "MIN_WINDOW", "WINDOW", "K", "Tonight", "alarms", "beyond", "tonight"]

WINDOW = 20  # nights before the two that are judged
MIN_WINDOW = 10  # fewer: no alarm; the deviation would be too rough
K = 2.0  # robust standard deviations
LIMIT = 0.015  # relative change that matters
_NORMAL = 1.4826  # standard deviations in a median absolute deviation

Floats = NDArray[np.float64]
Word = Literal["slower", "faster", "quiet", "too few nights"]


@dataclass(frozen=True)
class Tonight:
    """The last night that has a value against the window before it and its neighbour."""

    word: Word  # slower: more than before, beyond and so was the night before; faster: less
    nights: int  # in the window
    median: float | None  # of the window, in the unit of the values
    deviation: float | None  # robust, relative
    ratio: float | None  # tonight over the median
    is_beyond: bool = False  # tonight, whatever the night before was


def beyond(window: Floats, nights: Floats, *, k: float = K, limit: float = LIMIT) -> Floats:
    """Which side ``nights`` are on, of logarithms: 1 above, -1 below, 0 within; the last axis is that of the nights.

    ``window`` is series x nights, and so is ``nights``: all of a series are held against the same window.
    """
    centre = np.median(window, axis=-1, keepdims=True)
    deviation = _NORMAL * np.median(np.abs(window - centre), axis=-1, keepdims=True)
    apart = nights - centre
    sides: Floats = np.sign(apart) * (np.abs(apart) > np.maximum(k * deviation, math.log1p(limit)))
    return sides


def tonight(
    values: Sequence[float | None], *, window: int = WINDOW, k: float = K, limit: float = LIMIT
) -> Tonight | None:
    """The last night of a series of positive values, one a night; None if no night has a value.

    None, NaN and what is not positive is a missing night, which is skipped: two nights running are two with a value.
    """
    logs = np.log(np.array([values[at] for at in _known(values)], dtype=np.float64))
    return _judged(logs, window, k, limit) if len(logs) else None


def alarms(
    values: Sequence[float | None], *, window: int = WINDOW, k: float = K, limit: float = LIMIT
) -> dict[int, Word]:
    """Nights on which an alarm was raised, by their place, with its word; missing nights as in :func:`tonight`."""
    known = _known(values)
    logs = np.log(np.array([values[at] for at in known], dtype=np.float64))
    words = {at: _judged(logs[: place + 1], window, k, limit).word for place, at in enumerate(known)}
    return {at: word for at, word in words.items() if word in ("slower", "faster")}


def _known(values: Sequence[float | None]) -> list[int]:
    return [at for at, value in enumerate(values) if value is not None and math.isfinite(value) and value > 0]


def _judged(logs: Floats, window: int, k: float, limit: float) -> Tonight:
    before = logs[max(0, len(logs) - 2 - window) : max(0, len(logs) - 2)]
    if len(before) < MIN_WINDOW:
        return Tonight("too few nights", len(before), None, None, None)
    last, now = beyond(before, logs[-2:], k=k, limit=limit)
    centre = float(np.median(before))
    words: dict[float, Word] = {1.0: "slower", -1.0: "faster"}
    return Tonight(
        word=words.get(float(now), "quiet") if now == last else "quiet",
        nights=len(before),
        median=math.exp(centre),
        deviation=float(_NORMAL * np.median(np.abs(before - centre))),
        ratio=math.exp(float(logs[-1]) - centre),
        is_beyond=bool(now),
    )
