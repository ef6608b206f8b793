"""Documents packed into rows: where each ends, as a function of the seed, the step and the row alone.

Training on short documents packs several into one row, and attention stays within each. How long they are
decides what attention costs, so the lengths are drawn as text is found: lognormal, a median of a sixteenth of the
row (256 tokens at 4096; at least 32) and sigma 1.2, with which one document in a hundred is longer than its row
(exp(2.33 x 1.2) = 16) and is cut. That is a choice, not a fit to any corpus. A row of 512 tokens or more has about
ten documents, a shorter one fewer.

Bounds: no document has fewer than 16 tokens (a remainder that would is given to the last), none more than the
row. A row has at most 24, which hardly one in a thousand would exceed: its list of ends needs a static shape, and the
empty documents that fill it up are not free (with 32, attention on an H100 took 2.0 ms where 1.7 would do).

Only ``Random.random`` is used, whose sequence Python promises to keep; all ranks and all machines agree.
"""

import math
from itertools import accumulate
from random import Random
from statistics import NormalDist

from epbench.cells import TrainSpec

__all__ = ["NUM_BATCHES", "attended_length", "cumulative_lengths", "document_lengths", "max_documents"]

NUM_BATCHES = 8  # of a launch, used in turn; the first five losses are compared across layouts
_MIN_TOKENS = 16
_MAX_DOCUMENTS = 24
_SIGMA = 1.2


def max_documents(seq_len: int) -> int:
    """The most documents that a row of ``seq_len`` tokens can have."""
    return max(1, min(_MAX_DOCUMENTS, seq_len // _MIN_TOKENS))


def document_lengths(*, seq_len: int, seed: int, step: int, row: int) -> list[int]:
    """Tokens of the documents of one row of the global batch, in order; their sum is ``seq_len``."""
    uniform = Random(f"documents/{seed}/{step}/{row}").random
    drawn = NormalDist(math.log(max(seq_len // 16, 2 * _MIN_TOKENS)), _SIGMA)
    lengths: list[int] = []
    left = seq_len
    while left:
        length = round(math.exp(drawn.inv_cdf(uniform() or 0.5)))
        last = len(lengths) == max_documents(seq_len) - 1
        length = min(left, max(_MIN_TOKENS, length))
        lengths.append(left if last or left - length < _MIN_TOKENS else length)
        left -= lengths[-1]
    return lengths


def cumulative_lengths(lengths: list[int], *, seq_len: int) -> list[int]:
    """0 and the end of every document, filled up with ``seq_len`` to ``max_documents(seq_len) + 1`` numbers."""
    ends = [0, *accumulate(lengths)]
    return ends + [seq_len] * (max_documents(seq_len) + 1 - len(ends))


def attended_length(train: TrainSpec) -> float:
    """Length whose square, per token, is what attention over a launch's batches costs.

    The sum of squared document lengths over the number of tokens: ``seq_len`` if every row is one document.
    """
    if train.packing == "none":
        return float(train.seq_len)
    rows = [(step, row) for step in range(NUM_BATCHES) for row in range(train.global_batch_size)]
    squares = sum(
        length * length
        for step, row in rows
        for length in document_lengths(seq_len=train.seq_len, seed=train.seed, step=step, row=row)
    )
    return squares / (len(rows) * train.seq_len)
