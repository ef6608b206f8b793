"""Training data that depends on the training settings and the step only, never on the layout."""

import torch
from torch import Tensor

from epbench.cells import Cell, TrainSpec
from epbench.packing import cumulative_lengths, document_lengths
from epbench.stacks.protocol import Batch
from epbench.token_file import open_tokens, token_rows

__all__ = ["batches"]


def batches(cell: Cell, count: int, device: torch.device) -> list[Batch]:
    """Global batches of the first ``count`` steps: the label of a token is the next token.

    Tokens are uniformly random, or a file's. With packing, rows are cut into documents, and a document's last
    token has no label (-100): it does not predict the first token of the next one, nor of the next row.
    """
    result = []
    for step in range(count):
        ids = _token_ids(cell, step).to(device)
        tokens, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        if cell.train.packing == "none":
            result.append(Batch(tokens, labels))
        else:
            cu_seqlens = _cu_seqlens(cell.train, step).to(device)
            result.append(Batch(tokens, _without_last(labels, cu_seqlens), cu_seqlens))
    return result


def _token_ids(cell: Cell, step: int) -> Tensor:
    """int64 [global_batch_size, seq_len + 1] on the CPU."""
    train = cell.train
    if train.data != "random":
        return torch.from_numpy(token_rows(open_tokens(train.data), train, step=step))
    generator = torch.Generator().manual_seed(train.seed * 1_000_003 + step)
    return torch.randint(cell.model.vocab_size, (train.global_batch_size, train.seq_len + 1), generator=generator)


def _cu_seqlens(train: TrainSpec, step: int) -> Tensor:
    """int32 [global_batch_size, documents + 1] on the CPU; see :class:`epbench.stacks.protocol.Batch`."""
    rows = (
        document_lengths(seq_len=train.seq_len, seed=train.seed, step=step, row=row)
        for row in range(train.global_batch_size)
    )
    return torch.tensor([cumulative_lengths(row, seq_len=train.seq_len) for row in rows], dtype=torch.int32)


def _without_last(labels: Tensor, cu_seqlens: Tensor) -> Tensor:
    return labels.scatter(1, cu_seqlens[:, 1:].long() - 1, -100)
