"""The table of all cells, and the speeds that stand in it when a reader chooses another reference."""

from itertools import product

from epbench.cells import Cell
from epbench.records import Breakdown, CellResult
from epbench.report.comparison import Compared, speed_ratio
from epbench.report.references import speeds_by_reference
from epbench.report.tables import cell_columns, cells_table
from epbench.report.text import UNKNOWN, speed_up
from tests.report.sample import DP4, measured_cell, sample_view, view_of
from tests.report.sample_data import sample_data


def row(cell: CellResult) -> dict[str, str]:
    compared = Compared.of(view_of([cell]))
    columns = cell_columns(compared)
    (values,) = cells_table([cell], columns).rows
    return {column.key: value.text for column, value in zip(columns, values, strict=True)}


def test_a_row_says_memory_of_the_device_and_the_share_of_exposed_communication() -> None:
    parts = Breakdown(rank=1, step_s=0.5, exposed=0.145)
    found = row(measured_cell(Cell(layout=DP4), 0.4, peak_reserved_bytes=52 * 2**30, breakdown_s=parts))
    assert (found["peak"], found["exposed"], found["verdict"]) == ("52.0 of 141", "29.0 %", "not ranked")


def test_what_is_not_known_is_a_dash() -> None:
    found = row(measured_cell(Cell(layout=DP4), 0.4, peak_reserved_bytes=None, peak_allocated_bytes=None, mfu=None))
    assert (found["peak"], found["exposed"], found["mfu"]) == (UNKNOWN, UNKNOWN, UNKNOWN)


def test_every_column_says_what_it_means() -> None:
    columns = cell_columns(Compared.of(sample_data()))
    assert all(column.help and column.title for column in columns)
    assert len({column.key for column in columns}) == len(columns)


def test_speeds_against_any_reference_are_those_of_the_table() -> None:
    compared = Compared.of(sample_view())
    speeds = speeds_by_reference(compared)
    assert set(speeds) == {cell.cell for cell in compared.measured}
    for group in compared.groups:
        for reference, cell in product(group.measured, repeat=2):
            expected = "reference" if cell is reference else speed_up(speed_ratio(cell, reference))
            assert speeds[reference.cell][cell.cell].text == expected
        assert all(set(speeds[cell.cell]) == {one.cell for one in group.measured} for cell in group.measured)
