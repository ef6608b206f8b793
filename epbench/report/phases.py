"""Where the time of a run went: every cell's launches by phase, then the sitting around them."""

from collections.abc import Mapping

from epbench.records import CellResult, RunView
from epbench.report.comparison import Compared
from epbench.report.tables import Table, Value
from epbench.report.terminal import drawn
from epbench.report.text import UNKNOWN, clean, percent

__all__ = ["phases_table", "render_phases"]

_KINDS = {"verify": "Verification, seconds of a launch", "measure": "Measured launches, median seconds of one of n"}
_ORDER = (
    "start_up",
    "verify_reference",
    "verify_layout",
    "verify_own_dtype",
    "build",
    "compile",
    "warmup",
    "timing",
    "memory",
    "routing",
    "trace",
    "teardown",
    "analysis",
)


def render_phases(view: RunView) -> str:
    """Two tables at most, of verifications and of measured launches, and a sentence for each sitting."""
    compared = Compared.of(view)
    tables = [
        f"{title}:\n\n{drawn(table)}" for kind, title in _KINDS.items() if (table := phases_table(compared, kind))
    ]
    sittings = [_sitting(one.spent_s) for one in view.run.sittings if one.spent_s]
    return "\n\n".join(tables or ["No launch of this run has its phases."]) + "".join(f"\n\n{one}" for one in sittings)


def phases_table(compared: Compared, kind: str) -> Table | None:
    """One row a cell with its n launches, then each phase's share of all of them; None if no cell was launched so."""
    cells = [cell for cell in compared.view.cells if cell.phases_s.get(kind)]
    if not cells:
        return None
    phases = _in_order({phase for cell in cells for phase in cell.phases_s[kind]})
    rows = [_row(compared.naming.full(cell), cell, kind, phases) for cell in cells]
    titles = ("cell", "n", *(phase.removeprefix("verify_").replace("_", " ") for phase in phases), "sum")
    numbers = (False, *(True for _ in titles[1:]))
    return Table(titles, (*rows, _shares(cells, kind, phases)), numbers)


def _in_order(phases: set[str]) -> list[str]:
    """As a launch passes them; one that this version does not know comes last."""
    return [*(phase for phase in _ORDER if phase in phases), *sorted(phases - set(_ORDER))]


def _row(name: str, cell: CellResult, kind: str, phases: list[str]) -> tuple[Value, ...]:
    found = cell.phases_s[kind]
    seconds = [found.get(phase) for phase in phases]
    count = _launches(cell, kind)
    return Value(name), Value(str(count), count), *map(_seconds, seconds), _seconds(sum(found.values()))


def _launches(cell: CellResult, kind: str) -> int:
    return cell.launches if kind == "measure" else 1


def _shares(cells: list[CellResult], kind: str, phases: list[str]) -> tuple[Value, ...]:
    """Of the time of all launches, taking each cell's median for all of its launches."""
    totals = {
        phase: sum(cell.phases_s[kind].get(phase, 0.0) * _launches(cell, kind) for cell in cells) for phase in phases
    }
    whole = sum(totals.values())
    shares = [totals[phase] / whole if whole else None for phase in phases]
    count = sum(_launches(cell, kind) for cell in cells)
    parts = (Value(percent(share), share) for share in shares)
    return Value("share of all"), Value(str(count), count), *parts, _seconds(whole)


def _seconds(seconds: float | None) -> Value:
    return Value(UNKNOWN) if seconds is None else Value(f"{seconds:.2f}", seconds)


def _sitting(spent_s: Mapping[str, float]) -> str:
    parts = ", ".join(f"{clean(what.replace('_', ' '), 60)} {seconds:.1f} s" for what, seconds in spent_s.items())
    return f"The sitting took {sum(spent_s.values()):.1f} s: {parts}."
