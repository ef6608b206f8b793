"""Which cells of an A/B the second look still has to decide: looks are fixed in advance, and so is what ends a cell.

Each of two looks judges at half of alpha, so that both together raise no more false alarms than one at alpha would
(Bonferroni). A cell that the first look finds slower, broken or better stays so. A cell without change whose growth is
below the limit with all of its 95 % interval is given up as safe, which can only lower the rate of alarms. All others
are launched on, the inconclusive among them: given up, they would stay so.
"""

from collections.abc import Mapping, Sequence

from epbench.analysis.arms import arm_of
from epbench.analysis.gate import Pair, judge
from epbench.gate_records import CellVerdict, GateSpec, MetricChange
from epbench.records import CellResult

__all__ = ["undecided"]


def undecided(
    pairs: Sequence[tuple[str, str]],
    base: Mapping[str, CellResult],
    head: Mapping[str, CellResult],
    spec: GateSpec,
) -> list[str]:
    """Ids in head of the cells that the first of two looks decides nothing about."""
    launches = spec.looks[0]
    judged = judge([_pair(base[one], head[two], launches) for one, two in pairs], spec, alpha=spec.look_alpha)
    return [cell.cell for cell in judged.cells if not is_decided(cell)]


def _pair(base: CellResult, head: CellResult, launches: int) -> Pair:
    arms = [arm_of(cell, source="ab", launches=launches) for cell in (base, head)]
    return Pair(cell=head, name=head.cell, base=arms[0], head=arms[1])


def is_decided(cell: CellVerdict) -> bool:
    """Whether more launches could not change what is said of a cell, or need not."""
    if cell.word != "no change":
        return cell.word != "inconclusive"
    gated = [change for change in cell.metrics if change.gated and change.kind == "timing"]
    return bool(gated) and all(map(_is_safe, gated))


def _is_safe(change: MetricChange) -> bool:
    return change.ratio_high is not None and change.limit is not None and change.ratio_high < 1 + change.limit
