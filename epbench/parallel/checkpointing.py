"""Activation checkpointing: ``full`` keeps a block's input only and runs the block again in backward."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from epbench.model.decoder import Block, Decoder

__all__ = ["apply_checkpointing"]


def apply_checkpointing(model: Decoder, how: str) -> None:
    """Wraps every block's forward. Ranks recompute in the same order, so their collectives still match.

    The recomputed routing is the first one: same kernels on the same inputs, and ``checkpoint`` compares the
    shapes that it recomputes with those that it saw.
    """
    if how == "none":
        return
    for block in model.layers:
        assert isinstance(block, Block)
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
