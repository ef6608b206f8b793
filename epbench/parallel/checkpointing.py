"""Activation checkpointing: which values of a block are kept for backward, and which are computed again.

``full`` keeps a block's input only. In eager code it also keeps the *choice* of its routing, the experts of each
token and the exchanged counts: were these computed again, a score that rounds otherwise would send other rows, and
ranks that disagree about split sizes hang (facts 4.7). Compiled code runs the same graph twice on the same inputs
instead; tagging the graph would wrap attention in reads of the random state, which it does not use.

``selective`` keeps by operator: what all-to-alls brought and reduce-scatters summed, what attention gave, and the
choice; it computes again what is cheap beside them, the gate's product among it, and gathers tp's sequence again,
which would be n times as large to keep. No all-to-all runs a third time. In eager code this is torch's policy by
operator, whose dispatch mode costs host time on every operator; compiled code takes the same policy as tags of its
graph.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from epbench.model.attention import Sequences
from epbench.model.decoder import Block, Decoder
from epbench.model.moe import Choice

__all__ = ["apply_checkpointing", "selective"]

Forward = Callable[[Tensor, Sequences], Tensor]

_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)


def _kept() -> frozenset[Any]:
    """Operators whose results ``selective`` keeps."""
    aten, ours = torch.ops.aten, torch.ops.epbench
    kept = {getattr(aten, name).default for name in _ATTENTION if hasattr(aten, name)}
    kept.add(torch.ops.torch_attn._varlen_attn.default)
    communication = {ours.all_to_all.default, ours.all_to_all_even.default, ours.scatter_sequence.default}
    choice = {aten.topk.default, ours.exchange_counts.default, ours.await_splits.default}
    return frozenset(kept | communication | choice)


def _policy(kept: frozenset[Any], _context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in kept else CheckpointPolicy.PREFER_RECOMPUTE


def selective(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with what ``selective`` keeps; to be compiled, or run as it is."""
    contexts = partial(create_selective_checkpoint_contexts, partial(_policy, _kept()))

    def run(*arguments: Any) -> Any:
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return run


def _full(block: Block, *, keep_choice: bool) -> Forward:
    def forward(x_BSD: Tensor, sequences: Sequences) -> Tensor:
        first: list[Choice | None] = []

        def run(x_BSD: Tensor, sequences: Sequences) -> Tensor:
            out, choice = block.repeatable(x_BSD, sequences, first[0] if first and keep_choice else None)
            if not first:
                block.record(choice)
            first.append(choice)
            return out

        out: Tensor = checkpoint(run, x_BSD, sequences, use_reentrant=False, preserve_rng_state=False)
        return out

    return forward


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _selective(block: Block, *, in_pieces: bool) -> None:
    if not in_pieces or block.moe is None:
        _replace(block, "repeatable", selective(block.repeatable))
        return
    _replace(block, "route", selective(block.route))
    _replace(block.moe.experts, "forward", selective(block.moe.experts.forward))
    _replace(block, "merge", selective(block.merge))


def apply_checkpointing(model: Decoder, how: str, *, compiled: bool, in_pieces: bool) -> None:
    """Wraps the eager code of every block. Ranks recompute in the same order, so their collectives still match.

    ``selective`` of ``compiled`` blocks is inside their graphs already. ``in_pieces`` says that FSDP's hooks run
    in the middle of a block (:data:`epbench.parallel.data.Holding`): they do not do the same when a block runs
    again, which a policy by operator takes for another computation, so it covers each piece between them.
    """
    for block in model.layers:
        assert isinstance(block, Block)
        if how == "full":
            _replace(block, "forward", _full(block, keep_choice=not compiled))
        elif how == "selective" and not compiled:
            _selective(block, in_pieces=in_pieces)
