"""The last check of a cell: cells that did the same work must have had the same first losses (analysis.work)."""

from collections.abc import Iterable

from epbench.analysis.work import loss_bound, loss_errors
from epbench.records import CellResult
from epbench.store import CellEntry, result_of

__all__ = ["agreed", "disagreement"]

_KEPT = ("device", "launches", "phases_s", "elapsed_s", "loss")


def agreed(entry: CellEntry, row: CellResult, rows: Iterable[CellResult]) -> CellResult:
    """The row of a cell as the other rows of its run leave it: ``wrong`` and without numbers beyond the bound.

    A row that is ``wrong`` for its losses still counts among the others: two that differ may both be, until a third
    one tells which is right.
    """
    if row.outcome not in ("ok", "unstable"):
        return row
    others = [other for other in rows if other.cell != row.cell]
    error = loss_errors([*others, row]).get(row.cell)
    verify = row.verify.model_copy(update={"losses_error": error})
    if error is None or error <= loss_bound(row):
        return row.model_copy(update={"verify": verify})
    reason = (
        f"its first losses differ by {error:.1e} from those of other layouts of the same model at full size "
        f"(bound {loss_bound(row):.0e}), though the shrunk model agrees with one rank"
    )
    kept = {name: getattr(row, name) for name in _KEPT}
    found = {"outcome": "wrong", "reason": reason, "expected": entry.cell.expect == "any"}
    return result_of(entry).model_copy(update=kept | found | {"verify": verify.model_copy(update={"passed": False})})


def disagreement(row: CellResult) -> str | None:
    """The sentence about a row that is ``wrong`` for its losses."""
    error = row.verify.losses_error
    differs = row.outcome == "wrong" and error is not None and error > loss_bound(row)
    return f"{row.cell}: {row.reason}" if differs else None
