"""Activation checkpointing: which values of a block are kept for backward, and which are computed again.

``full`` keeps a block's input, and with it the *choice* of its routing: expert ids and exchanged counts. Were
these computed again, a score that rounds otherwise would send other rows, and ranks that disagree about split
sizes hang (facts 4.7). The gate's product is computed again, so that its gradient exists.
"""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from epbench.model.attention import Sequences
from epbench.model.decoder import Block, Decoder
from epbench.model.moe import Choice

__all__ = ["apply_checkpointing"]

Forward = Callable[[Tensor, Sequences], Tensor]


def _full(block: Block, *, compiled: bool) -> Forward:
    def forward(x_BSD: Tensor, sequences: Sequences) -> Tensor:
        first: list[Choice | None] = []

        def run(x_BSD: Tensor, sequences: Sequences) -> Tensor:
            out, choice = block.repeatable(x_BSD, sequences, first[0] if first and not compiled else None)
            first.append(choice)
            return out

        out: Tensor = checkpoint(run, x_BSD, sequences, use_reentrant=False, preserve_rng_state=False)
        return out

    return forward


def apply_checkpointing(model: Decoder, how: str, *, compiled: bool) -> None:
    """Wraps every block's forward. Ranks recompute in the same order, so their collectives still match.

    A compiled block runs the same graph twice instead, on the same inputs: its choice is the same too.
    """
    if how == "none":
        return
    for block in model.layers:
        assert isinstance(block, Block)
        setattr(block, "forward", _full(block, compiled=compiled))  # noqa: B010  (a method may not be assigned to)
