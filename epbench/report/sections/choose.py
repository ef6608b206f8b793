"""Choose a layout: throughput against memory, and which cells no other beats in both."""

from collections.abc import Iterable

from epbench.records import CellResult
from epbench.report.comparison import Compared, Group
from epbench.report.figures.choose import frontier_figure
from epbench.report.frontier import Choice, Point, Room, answer_for, choice_of, room_of
from epbench.report.quantities import peak_word
from epbench.report.sections.model import INTERVALS, Chart, Section, Variant
from epbench.report.selection import absent_note
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, gib, interval, join, percent, speed_up
from epbench.report.verdict import NOT_RUN

__all__ = ["choose_section", "frontier_table"]

_STANDINGS = (
    "On the frontier: faster than every cell that needs no more memory. Dominated: one of those is faster. May be on "
    "it: the intervals cannot tell. The line joins the highest medians at each limit."
)


def choose_section(compared: Compared) -> Section:
    """The frontier of each group of comparable cells."""
    key, title = "choose", "Choose a layout"
    room = room_of(compared)
    choices = [(group, choice_of(compared, group.measured)) for group in compared.groups]
    variants = tuple(_variant(compared, group, choice, room) for group, choice in choices if choice.points)
    if not variants:
        return Section(key, title, missing="No cell has both a peak of memory and a throughput.")
    chart = Chart("frontier", "Throughput against memory", "Up and to the left is better.", variants)
    return Section(key, title, (chart,), note=f"{_STANDINGS} {INTERVALS} {_device(compared, room)}")


def _variant(compared: Compared, group: Group, choice: Choice, room: Room | None) -> Variant:
    ooms = [cell for cell in group.cells if cell.outcome == "oom"]
    shown = {cell.cell for cell in (*ooms, *(point.cell for point in choice.points))}
    answer = answer_for(choice, room, room.free_bytes) if room else ""
    edge = f"Out of memory, at the right edge: {join([compared.naming.arm(cell) for cell in ooms])}." if ooms else ""
    note = " ".join(filter(None, (answer, edge, absent_note(compared, group, shown))))
    figure = frontier_figure(compared, choice, ooms, room)
    return Variant(group.work, figure, frontier_table(compared, group, choice, room), note)


def _device(compared: Compared, room: Room | None) -> str:
    if room is None:
        return f"How much memory a {compared.rank_word} has is not known here, so nothing says what fits."
    details = [cell.memory.outside_torch_bytes for cell in compared.view.cells]
    outside = max((size for size in details if size is not None), default=None)
    measured = "" if outside is None else f" (at most {gib(outside)} GiB in this run)"
    return (
        f"A {compared.rank_word} has {gib(room.capacity_bytes)} GiB. Unless you say otherwise a tenth is kept free, "
        f"for what stands beside torch's allocator, CUDA's context and NCCL's buffers{measured}, and for steps whose "
        "tokens fall less evenly than those that were measured."
    )


def frontier_table(compared: Compared, group: Group, choice: Choice, room: Room | None) -> Table:
    """Every cell of the group: its throughput, memory and standing, or how it ended and what it asked for."""
    titles = (
        "cell",
        "outcome",
        f"tokens/s/{compared.rank_word}",
        f"peak GiB {peak_word(compared)}",
        "peak GiB allocated",
        "share of the device",
        "frontier",
        "dominated by",
        "faster by",
        "asked for, GiB",
    )
    shown = {point.cell.cell for point in choice.points}
    rows = [_measured_row(point, room) for point in choice.points]
    rows += _other_rows(compared, [cell for cell in group.cells if cell.cell not in shown])
    texts = ("cell", "outcome", "frontier", "dominated by")
    return Table(titles, tuple(rows), tuple(title not in texts for title in titles))


def _measured_row(point: Point, room: Room | None) -> tuple[Value, ...]:
    speed, allocated = point.tokens_per_s, point.cell.peak_allocated_bytes
    share = point.peak_bytes / room.capacity_bytes if room else None
    rival, faster = point.rival or (UNKNOWN, None)
    return (
        Value(point.name),
        Value("ok"),
        Value(interval(speed.value, speed.low, speed.high), speed.value),
        Value(gib(point.peak_bytes), point.peak_bytes),
        Value(gib(allocated), allocated),
        Value(percent(share), share),
        Value({"on": "on it", "may be": "may be on it"}.get(point.standing, point.standing)),
        Value(rival),
        Value(speed_up(faster), faster.value if faster else None),
        Value(UNKNOWN),
    )


def _other_rows(compared: Compared, cells: Iterable[CellResult]) -> list[tuple[Value, ...]]:
    nothing = Value(UNKNOWN)
    return [
        (
            Value(compared.naming.arm(cell)),
            Value(cell.outcome or NOT_RUN),
            *(nothing,) * 7,
            Value(gib(cell.requested_bytes), cell.requested_bytes),
        )
        for cell in cells
    ]
