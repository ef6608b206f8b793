"""The last check of a run: cells that did the same work must have had the same first losses (analysis.work)."""

from epbench.analysis.work import loss_bound, loss_errors
from epbench.records import CellResult
from epbench.store import CellEntry, RunDirectory, result_of

__all__ = ["require_agreement"]

_KEPT = ("device", "launches", "phases_s", "elapsed_s", "loss")


def require_agreement(run: RunDirectory) -> list[str]:
    """Notes each cell's difference in its ``verify``; a cell beyond the bound becomes ``wrong`` and loses its numbers.

    Returns a sentence for each cell that is wrong now.
    """
    entries = run.entries()
    results = [
        found for cell_id in entries if (found := run.read_result(cell_id)) and found.outcome in ("ok", "unstable")
    ]
    errors = loss_errors(results)
    wrong = []
    for result in results:
        judged = _judged(entries[result.cell], result, errors.get(result.cell))
        if judged != result:
            run.write_result(judged)
        if judged.outcome == "wrong":
            wrong.append(f"{judged.cell}: {judged.reason}")
    return wrong


def _judged(entry: CellEntry, result: CellResult, error: float | None) -> CellResult:
    verify = result.verify.model_copy(update={"losses_error": error})
    bound = loss_bound(result)
    if error is None or error <= bound:
        return result.model_copy(update={"verify": verify})
    reason = (
        f"its first losses differ by {error:.1e} from those of other layouts of the same model at full size "
        f"(bound {bound:.0e}), though the shrunk model agrees with one rank"
    )
    kept = {name: getattr(result, name) for name in _KEPT}
    found = {"outcome": "wrong", "reason": reason, "expected": entry.cell.expect == "any"}
    return result_of(entry).model_copy(update=kept | found | {"verify": verify.model_copy(update={"passed": False})})
