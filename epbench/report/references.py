"""The speed of every cell against every other of its group, for a reader who chooses the reference."""

from collections.abc import Mapping

from epbench.analysis.pairwise import ratios_to
from epbench.report.comparison import Compared, Group, step_rounds
from epbench.report.tables import Value
from epbench.report.text import speed_up

__all__ = ["speeds_by_reference"]


def speeds_by_reference(compared: Compared) -> Mapping[str, Mapping[str, Value]]:
    """Id of a reference to id of a cell to its speed against that reference, ``+10.7 % [9.1, 12.3]``.

    Of measured cells of one group, the reference itself among them; the numbers are those of ``speed_ratio``.
    """
    return {reference: row for group in compared.groups for reference, row in _rows(group).items()}


def _rows(group: Group) -> dict[str, dict[str, Value]]:
    names = [cell.cell for cell in group.measured]
    ratios = ratios_to([step_rounds(cell) for cell in group.measured])  # of steps, so reference over cell is speed
    return {
        reference: {
            name: Value("reference", 1.0) if name == reference else Value(speed_up(ratio), ratio.value)
            for name, ratio in zip(names, row, strict=True)
        }
        for reference, row in zip(names, ratios, strict=True)
    }
