"""Names of cells and of groups: short, and never those of another."""

import pytest

from epbench.cells import Cell
from epbench.report.comparison import Compared
from tests.report.sample import DP4, WIDE, measured_cell, view_of
from tests.report.test_verdict import with_routing

REPLAYS = ("/home/alice/work/moe/routings/2026-11-22/code.npy", "/home/alice/work/moe/routings/2026-11-22/chat.npy")
ALIKE = ("/a/layers-of-two-nodes/first/" + 60 * "x" + ".npy", "/a/layers-of-two-nodes/second/" + 60 * "x" + ".npy")


@pytest.mark.parametrize("files", [REPLAYS, ALIKE, ("/a\u202e", "/a\u202d")], ids=["ends", "middles", "unprintable"])
def test_cells_and_groups_of_two_routing_files_have_names_of_their_own(files: tuple[str, str]) -> None:
    natural = with_routing("natural", 0.4, 0.3)
    rows = [
        cell.model_copy(update={"cell": f"{number}-{cell.cell}", "routing": f"replay:{file}"})
        for number, file in enumerate(files)
        for cell in natural
    ]
    compared = Compared.of(view_of(rows))
    names = [{compared.naming.full(cell) for cell in rows}, {group.work for group in compared.groups}]
    assert [len(found) for found in (*names, {compared.naming.routing(cell) for cell in rows})] == [4, 2, 2]


def test_a_path_keeps_its_file_and_work_that_no_setting_tells_apart_is_marked() -> None:
    fewer = WIDE.model_copy(update={"total_layers": 96})
    cells = [measured_cell(Cell(layout=DP4, model=model), 0.4) for model in (WIDE, fewer)]
    compared = Compared.of(view_of([*cells, *with_routing(f"replay:{REPLAYS[0]}", 0.3)]))
    assert compared.groups[2].work.endswith("/2026-11-22/code.npy routing")
    assert (
        len({compared.naming.full(cell) for cell in cells}) == len({group.work for group in compared.groups}) - 1 == 2
    )
