"""Token files: one NumPy array of token ids, one text after the other, mapped into memory and never read whole.

Row r of step s holds tokens (s x rows a step + r) x seq_len onwards and one more, the last label; what lies beyond
the end of the file is its beginning again. So a step's tokens depend on the scenario only, never on the layout.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from epbench.array_file import open_integers
from epbench.cells import TrainSpec
from epbench.errors import ScenarioError
from epbench.packing import NUM_BATCHES
from epbench.wording import place

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_token_file", "open_tokens", "token_rows"]


def open_tokens(path: Path | str) -> "np.ndarray[Any, Any]":
    """The array in a .npy file, mapped; raises ScenarioError if it is not one dimension of integers."""
    return open_integers(path, what="token ids", ndim=1)


def token_rows(tokens: "np.ndarray[Any, Any]", train: TrainSpec, *, step: int) -> "np.ndarray[Any, Any]":
    """The tokens of one step, int64 [global_batch_size, seq_len + 1]."""
    import numpy as np

    first = (step * train.global_batch_size + np.arange(train.global_batch_size)) * train.seq_len
    places = first[:, None] + np.arange(train.seq_len + 1)
    return tokens.take(places, mode="wrap").astype(np.int64)


def check_token_file(path: Path, *, seq_len: int, global_batch_size: int, vocab_size: int) -> None:
    """Raises ScenarioError unless the file gives every batch of a launch token ids below ``vocab_size``."""
    tokens = open_tokens(path)
    if len(tokens) <= seq_len:
        need = f"a sequence of {seq_len} tokens and its last label need {seq_len + 1}"
        raise ScenarioError(f"{place(path)}: has {len(tokens)} tokens; {need}")
    used = tokens[: NUM_BATCHES * global_batch_size * seq_len + 1]
    lowest, highest = int(used.min()), int(used.max())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ScenarioError(f"{place(path)}: has token id {wrong}; the model's vocabulary is 0 to {vocab_size - 1}")
