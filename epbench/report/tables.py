"""The tables of a report, as text with the numbers to sort by; page and terminal print the same ones."""

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass

from epbench.records import CellResult, VerifyRecord
from epbench.report.comparison import Compared, launch_spread, speed_ratio, step_launches
from epbench.report.quantities import exposed_share, peak_bytes, peak_text, peak_word
from epbench.report.text import (
    clean,
    error,
    interval,
    number,
    percent,
    speed_up,
)
from epbench.report.verdict import NOT_RUN, verdict_words

__all__ = [
    "Column",
    "Table",
    "Value",
    "cell_columns",
    "cells_table",
    "peak_bytes",
    "peak_word",
]

_LONGEST, _LONGEST_TITLE = 2000, 100  # characters of an entry and of a title


@dataclass(frozen=True)
class Value:
    """One entry of a table; ``sort`` is the number behind a text, None where there is none. Texts are cleaned here."""

    text: str
    sort: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean(self.text, _LONGEST))


@dataclass(frozen=True)
class Column:
    """One column over cells: its title, what it means, and how a cell fills it."""

    key: str
    title: str
    help: str
    value: Callable[[CellResult], Value]
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """Titles and rows of equal length; ``numbers`` says which columns are aligned and sorted as numbers.

    Titles, which may be keys of a record, are cleaned here.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    numbers: tuple[bool, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "titles", tuple(clean(title, _LONGEST_TITLE) for title in self.titles))

    @classmethod
    def of(cls, titles: Sequence[str], rows: Iterable[tuple[Value, ...]], *, texts: int) -> "Table":
        """A table whose first ``texts`` columns are text and whose others are numbers."""
        return cls(tuple(titles), tuple(rows), tuple(index >= texts for index in range(len(titles))))


def cell_columns(compared: Compared) -> tuple[Column, ...]:
    """The columns of the table of all cells."""
    return (*_name_columns(compared), *_speed_columns(compared), *_work_columns(compared), *_trust_columns())


def _name_columns(compared: Compared) -> tuple[Column, ...]:
    naming = compared.naming
    routing = _text("routing", "routing", "How tokens choose experts", naming.routing)
    return (
        _text("outcome", "outcome", "How the cell ended", lambda cell: cell.outcome or NOT_RUN),
        _text("layout", "layout", "Degrees of the mesh axes; an axis of degree 1 is left out", naming.layout),
        _text("mode", "mode", "Eager or torch.compile", lambda cell: clean(cell.mode, 20)),
        *((routing,) if naming.has_routings else ()),
        _text("size", "experts / top-k / width", "Sizes of one MoE layer", naming.size),
    )


def _speed_columns(compared: Compared) -> tuple[Column, ...]:
    rank, words = compared.rank_word, verdict_words(compared)
    return (
        Column("step", "step, ms", "Median over launches and its 95 % interval", _step),
        Column(
            "speed",
            "speed against reference",
            "More tokens/s than the group's reference, 95 % interval",
            lambda cell: _speed(cell, compared),
        ),
        _text(
            "verdict",
            "verdict",
            "In its group: fastest, tied (no cell can be told to be faster) or slower than some cell; not ranked below "
            "three valid launches",
            lambda cell: words[cell.cell],
        ),
        Column(
            "tokens",
            f"tokens/s per {rank}",
            "Tokens of a step over step time and ranks",
            lambda cell: _number(cell.tokens_per_s_per_rank),
        ),
    )


def _work_columns(compared: Compared) -> tuple[Column, ...]:
    return (
        Column(
            "tflops_causal",
            "TFLOP/s causal",
            "Counting the causal half of attention",
            lambda cell: _number(cell.tflops_causal),
        ),
        Column(
            "tflops_full",
            "TFLOP/s full",
            "Counting the full attention square",
            lambda cell: _number(cell.tflops_full),
        ),
        Column(
            "mfu",
            "MFU",
            "Causal TFLOP/s over the dense bf16 peak of the device",
            lambda cell: Value(percent(cell.mfu), cell.mfu),
        ),
        Column(
            "peak",
            f"peak GiB {peak_word(compared)}",
            "Memory of the worst rank, of what its device has",
            lambda cell: Value(peak_text(cell, compared), peak_bytes(cell, compared)),
        ),
        Column(
            "exposed",
            "exposed communication",
            "Share of the traced step in which the critical rank communicates or waits for it and computes nothing",
            lambda cell: Value(percent(exposed_share(cell)), exposed_share(cell)),
        ),
    )


def _trust_columns() -> tuple[Column, ...]:
    return (
        Column(
            "load",
            "expert max / mean",
            "Heaviest expert over the mean expert, worst layer",
            lambda cell: _number(cell.expert_load.max_over_mean),
        ),
        Column("launches", "launches", "Valid launches", lambda cell: _count(step_launches(cell))),
        Column("spread", "spread", "Slowest over fastest launch, minus 1", _spread),
        Column(
            "loss_error",
            "loss error",
            "Relative error of the loss against one rank in fp32",
            lambda cell: Value(error(cell.verify.loss_error), cell.verify.loss_error),
        ),
        Column(
            "grad_error",
            "gradient error",
            "Worst gradient against one rank in fp32, over its largest entry",
            lambda cell: _grad_error(cell.verify),
        ),
    )


def _text(key: str, title: str, meaning: str, text: Callable[[CellResult], str]) -> Column:
    return Column(key, title, meaning, lambda cell: Value(text(cell)), is_number=False)


def _number(value: float | None, digits: int = 3) -> Value:
    return Value(number(value, digits), value)


def _count(found: Sized) -> Value:
    return _number(len(found) or None, 1)


def _step(cell: CellResult) -> Value:
    return Value(interval(cell.step_s, cell.step_s_low, cell.step_s_high, scale=1e3), cell.step_s)


def _spread(cell: CellResult) -> Value:
    spread = launch_spread(cell)
    return Value(percent(spread), spread)


def _speed(cell: CellResult, compared: Compared) -> Value:
    reference = compared.reference(cell)
    if reference is not None and reference.cell == cell.cell:
        return Value("reference", 1.0)
    ratio = speed_ratio(cell, reference)
    return Value(speed_up(ratio), ratio.value if ratio else None)


def _grad_error(record: VerifyRecord) -> Value:
    return Value("not checked") if record.scope == "loss" else Value(error(record.grad_error), record.grad_error)


def cells_table(cells: Iterable[CellResult], columns: Iterable[Column]) -> Table:
    """One row for every cell, in the order given."""
    columns = tuple(columns)
    return Table(
        titles=tuple(column.title for column in columns),
        rows=tuple(tuple(column.value(cell) for column in columns) for cell in cells),
        numbers=tuple(column.is_number for column in columns),
    )


def _table(titles: tuple[str, ...], rows: Sequence[tuple[Value, ...]], *, texts: int) -> Table:
    """A table whose first ``texts`` columns are text."""
    return Table.of(titles, rows, texts=texts)
