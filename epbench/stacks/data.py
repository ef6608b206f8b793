"""Training data that depends on the seed and the step only, never on the layout."""

import torch

from epbench.cells import Cell
from epbench.stacks.protocol import Batch

__all__ = ["batches"]


def batches(cell: Cell, count: int, device: torch.device) -> list[Batch]:
    """Global batches of the first ``count`` steps: uniformly random tokens, labels the next token of each."""
    train = cell.train
    result = []
    for step in range(count):
        generator = torch.Generator().manual_seed(train.seed * 1_000_003 + step)
        shape = (train.global_batch_size, train.seq_len + 1)
        ids = torch.randint(cell.model.vocab_size, shape, generator=generator).to(device)
        result.append(Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()))
    return result
