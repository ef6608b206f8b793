"""Which cells do the same work, and whether their losses say so.

Weights and tokens depend on the seed only, so the first losses of one model are the same numbers in every layout, up
to the rounding of its dtype. Verification runs on a shrunk model; this holds the model that was timed to the same
standard, at its full size, for nothing but a comparison of what was recorded anyway.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from epbench.records import CellResult

__all__ = ["WAYS", "loss_bound", "loss_errors", "work_but_routing", "work_key"]

# Train settings that change how a step is computed, not what; cells that differ in them may be ranked.
WAYS = frozenset(
    {
        "stack",
        "micro_batch_size",
        "activation_checkpointing",
        "reshard_after_forward",
        "dispatcher",
        "overlap",
        "optimizer_fused",
    }
)
# Relative. In fp32 eight AdamW steps stay within 1e-6 (facts 10) unless a near-tie of two experts falls otherwise;
# in bf16 the bound is that of verification in the cell's own dtype.
_FP32_BOUND, _OTHER_BOUND = 1e-4, 1e-3


def work_key(cell: CellResult) -> str:
    """The same text for cells that do the same work: one model, batch, precision, seed, routing and world size."""
    return json.dumps([cell.model, _of_work(cell.train), cell.routing, cell.world_size], sort_keys=True)


def work_but_routing(cell: CellResult) -> str:
    """The same text for cells that would do the same work if they had one routing."""
    return json.dumps([cell.model, _of_work(cell.train), cell.world_size], sort_keys=True)


def _of_work(train: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in train.items() if key not in WAYS}


def loss_bound(cell: CellResult) -> float:
    """How far the first losses of a cell may be from those of the others, relative."""
    return _FP32_BOUND if cell.train["compute_dtype"] == "fp32" else _OTHER_BOUND


def loss_errors(cells: Iterable[CellResult]) -> dict[str, float]:
    """Cell id to the largest relative difference of its first losses from those of cells that do the same work.

    The difference is from the median cell; two cells differ from each other, and nothing says which is right. A cell
    that nobody shares the work of has no entry, nor has one without losses.
    """
    alike: dict[str, list[CellResult]] = {}
    for cell in cells:
        if cell.loss:
            alike.setdefault(work_key(cell), []).append(cell)
    return {
        cell.cell: max(map(_difference, cell.loss, _expected(cell, group)))
        for group in alike.values()
        if len({cell.layout for cell in group}) > 1
        for cell in group
    }


def _expected(cell: CellResult, group: Sequence[CellResult]) -> list[float]:
    others = [other for other in group if other is not cell] if len(group) == 2 else group
    return [median(losses) for losses in zip(*(other.loss for other in others), strict=False)]


def _difference(loss: float, expected: float) -> float:
    return abs(loss - expected) / max(abs(expected), 1e-30)
