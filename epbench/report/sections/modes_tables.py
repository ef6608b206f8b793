"""Tables of eager beside compiled."""

from collections.abc import Iterable, Sequence

from epbench.analysis.statistics import MIN_LAUNCHES
from epbench.records import CellResult
from epbench.report.comparison import Compared, step_launches
from epbench.report.compiling import BreakEven, Pair, break_evens, median_compile_s
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, clean, interval, number, speed_up

__all__ = ["break_even_table", "costs_table", "speed_up_table", "steps_table"]


def steps_table(rows: Iterable[tuple[str, Sequence[CellResult]]]) -> Table:
    """Steps of both modes with their launches, layout by layout."""
    titles = ("layout", "eager, ms", "eager launches", "compiled, ms", "compiled launches")
    return Table.of(titles, [_steps_row(name, {cell.mode: cell for cell in cells}) for name, cells in rows], texts=1)


def _steps_row(name: str, modes: dict[str, CellResult]) -> tuple[Value, ...]:
    return (Value(name), *_step(modes.get("eager")), *_step(modes.get("compiled")))


def _step(cell: CellResult | None) -> tuple[Value, Value]:
    if cell is None:
        return Value(UNKNOWN), Value(UNKNOWN)
    count = len(step_launches(cell))
    step = Value(interval(cell.step_s, cell.step_s_low, cell.step_s_high, scale=1e3), cell.step_s)
    return step, Value(str(count), count)


def speed_up_table(pairs: Iterable[Pair]) -> Table:
    """The ratio of speeds, and what it saves in a step."""
    titles = ("layout", "speed of compiled over eager", "compiled is faster by", "saved, ms/step", "what launches say")
    rows = [
        (
            Value(pair.name),
            Value(interval(pair.speed.value, pair.speed.low, pair.speed.high), pair.speed.value),
            Value(speed_up(pair.speed), pair.speed.value),
            _saved(pair),
            Value(_words(pair)),
        )
        for pair in pairs
    ]
    return Table(titles, tuple(rows), (False, True, True, True, False))


def _saved(pair: Pair) -> Value:
    saved = pair.saved_s
    return Value(interval(saved.value, saved.low, saved.high, scale=1e3), saved.value)


def _words(pair: Pair) -> str:
    if not pair.speed.known:
        return f"fewer than {MIN_LAUNCHES} launches"
    if not pair.speed.excludes(1.0):
        return "no difference"
    return "faster compiled" if pair.speed.value > 1.0 else "slower compiled"


def break_even_table(pairs: Iterable[Pair]) -> Table:
    """What compiling costs, what it saves, and after how many steps it has paid."""
    titles = (
        "layout",
        "compile, s, first launch",
        "compile, s, median launch",
        "saved, ms/step",
        "break-even, steps, first launch",
        "break-even, steps, median launch",
    )
    rows = [
        (
            Value(pair.name),
            _number(pair.compiled.compile.seconds),
            _number(median_compile_s(pair.compiled)),
            _saved(pair),
            *map(_steps, break_evens(pair)),
        )
        for pair in pairs
    ]
    return Table.of(titles, rows, texts=1)


def costs_table(compared: Compared) -> Table | None:
    """Every compiled cell that says what compiling it took; None where none does."""
    cells = [cell for cell in compared.view.cells if cell.mode == "compiled" and _is_known(cell)]
    if not cells:
        return None
    titles = (
        "cell",
        "strategy",
        "launches",
        "compile, s, first launch",
        "compile, s, median launch",
        "graph breaks",
        "recompiles",
    )
    return Table.of(titles, [_costs_row(compared, cell) for cell in cells], texts=2)


def _is_known(cell: CellResult) -> bool:
    found = cell.compile
    return any(value is not None for value in (found.seconds, found.graph_breaks, found.recompiles))


def _costs_row(compared: Compared, cell: CellResult) -> tuple[Value, ...]:
    found = cell.compile
    return (
        Value(compared.naming.full(cell)),
        Value(clean(found.strategy, 120) if found.strategy else UNKNOWN),
        _number(cell.launches or None, 1),
        _number(found.seconds),
        _number(median_compile_s(cell)),
        _number(found.graph_breaks, 1),
        _number(found.recompiles, 1),
    )


def _number(value: float | None, digits: int = 3) -> Value:
    return Value(number(value, digits), value)


def _steps(found: BreakEven) -> Value:
    return Value(found.text, None if found.steps is None else found.steps.value)
