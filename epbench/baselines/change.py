"""Changes of a baseline file that a person asks for: a run accepted, a regression acknowledged."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from epbench.analysis.arms import TRANSFER
from epbench.baselines.file import SUFFIX, baseline_path, read_baseline, write_baseline
from epbench.baselines.records import Acknowledgement, Baseline
from epbench.baselines.update import Proposal, propose
from epbench.errors import RunError, ScenarioError
from epbench.gate_records import COUNTERS, TIMINGS
from epbench.store import open_run
from epbench.wording import place, shown, suggestion

__all__ = ["Change", "acknowledge_cells", "find_baseline", "proposed", "require_accepted", "write_proposal"]


@dataclass(frozen=True)
class Change:
    """What accepting a run would do to the file at ``path``."""

    run: str  # path of the run directory
    path: Path
    is_new: bool  # the file
    proposal: Proposal


def proposed(name: str, *, path: Path | None, only: str = "*", reset: bool = False, reason: str = "") -> Change:
    """What accepting the run of this name would change in its baseline, or in that at ``path``.

    Raises RunError if the run or the baseline cannot be read, or there is no place for one, NotComparableError if the
    baseline is of another scenario.
    """
    run = open_run(name)
    view = run.view()
    file = path or baseline_path(view.run)
    if not file.parent.is_dir():
        raise RunError(f"there is no directory for '{place(file)}': name the baseline with --baseline FILE")
    known = read_baseline(file) if file.exists() else None
    proposal = propose(known, view, run.name, only=only, reset=reset, reason=_one_line(reason))
    return Change(str(run.path), file, known is None, proposal)


def require_accepted(change: Change) -> None:
    """Raises RunError if a cell changed and no new level was asked for, or if there is nothing to accept."""
    refused = change.proposal.refused
    if refused:
        cells = f"{len(refused)} cell{'s' * (len(refused) > 1)} changed ({refused[0].cell.cell}: {refused[0].why})"
        raise RunError(
            f"nothing was accepted, for {cells}: start a new level with --reset --reason TEXT, or leave "
            "cells out with --only GLOB"
        )
    if all(one.action == "left out" for one in change.proposal.cells):
        raise RunError(f"no cell of '{place(change.run)}' can be accepted: {change.proposal.cells[0].why}")


def write_proposal(path: Path, change: Change) -> None:
    """Write the baseline as it would be. Raises StorageError."""
    write_baseline(path, change.proposal.baseline)


def find_baseline(where: str) -> tuple[Path, Baseline]:
    """The baseline at a path, or that of a run's scenario. Raises RunError if there is none."""
    path = Path(where)
    if not where.endswith(SUFFIX) and not _is_file(path):
        path = baseline_path(open_run(where).record)
    if not _is_file(path):
        raise RunError(f"there is no baseline '{place(path)}'; make one with: epbench baseline accept RUN")
    return path, read_baseline(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def acknowledge_cells(
    where: str, cell: str, *, reason: str, until: str | None = None, metric: str | None = None
) -> tuple[Path, list[str]]:
    """Acknowledge regressions of entries whose id is ``cell`` or matches it; returns the file and their ids.

    A second acknowledgement of the same metric replaces the first. Raises ScenarioError for an empty reason, a day that
    is none or has passed, or an unknown metric, RunError if no entry matches.
    """
    path, baseline = find_baseline(where)
    given = Acknowledgement(
        reason=_reason(reason), given=_today().isoformat(), until=_until(until), metric=_metric(metric)
    )
    ids = [entry.cell for entry in baseline.entries]
    wanted = {cell} if cell in ids else {name for name in ids if fnmatchcase(name, cell)}
    if not wanted:
        raise RunError(f"'{place(path)}' has no cell {shown(cell)}{suggestion(cell, ids[:20])}")
    entries = [
        entry.model_copy(update={"acknowledged": _with(entry.acknowledged, given)}) if entry.cell in wanted else entry
        for entry in baseline.entries
    ]
    write_baseline(path, baseline.model_copy(update={"entries": entries}))
    return path, sorted(wanted)


def _with(known: list[Acknowledgement], given: Acknowledgement) -> list[Acknowledgement]:
    return [*(one for one in known if one.metric != given.metric), given]


def _reason(text: str) -> str:
    if not text.strip():
        raise ScenarioError("--reason says why this regression is known, such as the number of an issue; it is empty")
    return _one_line(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _until(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ScenarioError(f"--until is a day such as 2026-12-31, got {shown(text)}") from None
    if day < _today():
        raise ScenarioError(f"--until {day.isoformat()} has passed: give today ({_today().isoformat()}) or a later day")
    return day.isoformat()


def _metric(name: str | None) -> str | None:
    known = (*TIMINGS, *COUNTERS)
    if name is None or name in known or name.startswith(TRANSFER):
        return name
    raise ScenarioError(f"there is no metric {shown(name)}{suggestion(name, known)}")


def _today() -> date:
    return datetime.now(UTC).date()
