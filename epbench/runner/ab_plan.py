"""What an A/B compares: its arms, and row by row of the scenario the cell of each.

Cells belong together by their place in the plan, also where an arm's options change what they are called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from epbench.ab_records import AbDirectory, AbRecord, ArmName, ArmSpec
from epbench.cells import fits
from epbench.errors import RunError, ScenarioError
from epbench.runner.arms import check_committed, option_values, parse_arm
from epbench.runner.launch import LaunchOptions, entries_of
from epbench.store import CellEntry

if TYPE_CHECKING:
    from epbench.scenario import Scenario

__all__ = ["OPTIONS", "AbOptions", "PlannedArm", "ab_record", "arm_specs", "planned_arms"]

OPTIONS: Mapping[ArmName, str] = MappingProxyType({"base": "--base", "head": "--head"})


@dataclass(frozen=True)
class AbOptions(LaunchOptions):
    """What the command line says beyond the scenario; of an A/B that is resumed, its arms are those that it has.

    ``only`` fits the ids of either arm's cells.
    """

    base: Sequence[str] = ()
    head: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedArm:
    """One arm: what was asked, its scenario on the known device, and the rows of it that take part, by their place."""

    name: ArmName
    spec: ArmSpec
    scenario: "Scenario"
    rows: Mapping[int, CellEntry]

    @property
    def runnable(self) -> dict[int, CellEntry]:
        """Rows without a reason to be skipped."""
        return {row: entry for row, entry in self.rows.items() if entry.skip_reason is None}


def arm_specs(options: AbOptions, there: AbDirectory | None) -> dict[ArmName, ArmSpec]:
    """What the arms are, as typed or, of an A/B to go on with, as kept; raises ScenarioError or RunError."""
    if there is None:
        base, head = parse_arm(options.base, where="--base"), parse_arm(options.head, where="--head")
        check_committed(base, head)
        return {"base": base, "head": head}
    record = there.record
    if (options.base and tuple(options.base) != record.base.given) or (
        options.head and tuple(options.head) != record.head.given
    ):
        raise RunError(f"'{there.path}' has other arms ({record.base.label} and {record.head.label}): leave them out")
    if options.launches is not None and record.looks:
        raise RunError(f"'{there.path}' looks after {record.looks} launches, which was fixed in advance: no --launches")
    if options.launches not in (None, record.launches) and record.looks_taken:
        raise RunError(
            f"'{there.path}' was judged after {record.launches} launches: who launches on until the answer pleases "
            "finds changes that are not there; start a new A/B, with "
            f"--launches {options.launches} or two looks in [gate]"
        )
    return {"base": record.base, "head": record.head}


def planned_arms(
    scenario: "Scenario", specs: Mapping[ArmName, ArmSpec], only: str | None, there: AbDirectory | None
) -> tuple[PlannedArm, PlannedArm]:
    """Both arms with those rows of the scenario that take part; raises ScenarioError if nothing can be compared."""
    scenarios = {name: scenario.with_options(option_values(spec), where=OPTIONS[name]) for name, spec in specs.items()}
    both = list(zip(entries_of(scenarios["base"]), entries_of(scenarios["head"]), strict=True))
    known = None if there is None else set(there.record.pairs)
    rows = {one.order: (one, two) for one, two in both if _takes_part(one, two, only, known)}
    arms = (
        PlannedArm("base", specs["base"], scenarios["base"], {row: pair[0] for row, pair in rows.items()}),
        PlannedArm("head", specs["head"], scenarios["head"], {row: pair[1] for row, pair in rows.items()}),
    )
    if there is not None and set(_pairs(arms)) != known:
        raise RunError(
            f"'{there.path}' holds cells that this scenario does not have: "
            "give the same one, on as many ranks, without --only"
        )
    _check_rows(arms, only, both)
    return arms


def _takes_part(base: CellEntry, head: CellEntry, only: str | None, known: set[tuple[str, str]] | None) -> bool:
    pair = (base.cell.id, head.cell.id)
    if base.skip_reason and head.skip_reason:
        return only is None and known is None
    if known is not None and pair not in known:
        return False
    return any(fits(cell_id, only) for cell_id in pair)


def _check_rows(
    arms: tuple[PlannedArm, PlannedArm], only: str | None, both: Sequence[tuple[CellEntry, CellEntry]]
) -> None:
    """Raises ScenarioError if there is nothing to compare, or if options make one cell of two."""
    base, head = arms
    if only is not None and not base.rows:
        known = ", ".join(entry.cell.id for entry, _ in both[:3])
        raise ScenarioError(f"--only '{only[:80]}' fits none of {len(both)} cells (there is {known}, ...)")
    if not base.runnable.keys() & head.runnable.keys():
        skipped = [entry for arm in arms for entry in arm.rows.values() if entry.skip_reason]
        why = f": {skipped[-1].skip_reason}" if skipped else ""
        raise ScenarioError(f"no cell runs in both arms{why}")
    for arm in arms:
        seen: dict[str, int] = {}
        for row, entry in arm.rows.items():
            before = seen.setdefault(entry.cell.id, row)
            if before != row and (row in arm.runnable or row in base.runnable):
                other = base if arm is head else head
                ids = f"{other.rows[before].cell.id} and {other.rows[row].cell.id}"
                where = OPTIONS[arm.name]
                raise ScenarioError(f"{where} makes one cell, {entry.cell.id}, of {ids}: choose one with --only")


def _pairs(arms: tuple[PlannedArm, PlannedArm]) -> tuple[tuple[str, str], ...]:
    """Ids in base and head of the cells that run in either arm."""
    base, head = arms
    rows = [row for row in base.rows if row in base.runnable or row in head.runnable]
    return tuple((base.rows[row].cell.id, head.rows[row].cell.id) for row in rows)


def ab_record(
    scenario: "Scenario", arms: tuple[PlannedArm, PlannedArm], launches: int | None, there: AbDirectory | None
) -> AbRecord:
    """``arms.json`` of a new A/B, or of one to go on with, whose launches may be others as long as nobody looked."""
    if there is not None:
        record = there.record
        return record if launches is None else record.model_copy(update={"launches": launches})
    looks = scenario.gate.looks if launches is None else ()
    return AbRecord(
        scenario=scenario.name,
        base=arms[0].spec,
        head=arms[1].spec,
        pairs=_pairs(arms),
        looks=looks,
        launches=launches or max(looks, default=scenario.measure.launches),
        seeds=tuple(sorted({entry.cell.train.seed for arm in arms for entry in arm.rows.values()})),
    )
