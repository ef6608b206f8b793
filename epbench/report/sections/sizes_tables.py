"""The table of model sizes: what a token costs with each, and how fast each layout and mode makes it."""

from collections.abc import Iterable

from pydantic import ValidationError

from epbench.cells import ModelSpec, TrainSpec
from epbench.flops import flops_per_token
from epbench.packing import attended_length
from epbench.records import CellResult
from epbench.report.comparison import Compared, speed_ratio
from epbench.report.tables import Table, Value
from epbench.report.text import UNKNOWN, interval, number, speed_up

__all__ = ["sizes_table"]

# Without one of these nothing is known of a model; other fields of ModelSpec are off unless a model has them.
_SIZES = frozenset(
    {
        "num_layers",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_experts",
        "num_experts_per_tok",
        "vocab_size",
    }
)


def sizes_table(compared: Compared, rows: Iterable[tuple[str, tuple[CellResult, ...]]]) -> Table:
    """The sizes of each layout and mode beside each other, each against the first of them."""
    titles = (
        "layout and mode",
        "experts / top-k / width",
        "total, B",
        "active, B",
        "GFLOP/token causal",
        "step, ms",
        f"tokens/s/{compared.rank_word}",
        "TFLOP/s causal",
        "tokens/s against first",
    )
    found = [
        (
            Value(name),
            Value(compared.naming.size(cell)),
            *_sizes(cell),
            Value(interval(cell.step_s, cell.step_s_low, cell.step_s_high, scale=1e3), cell.step_s),
            _number(cell.tokens_per_s_per_rank),
            _number(cell.tflops_causal),
            _against_first(cell, cells[0]),
        )
        for name, cells in rows
        for cell in cells
    ]
    return Table.of(titles, found, texts=2)


def _against_first(cell: CellResult, first: CellResult) -> Value:
    if cell.cell == first.cell:
        return Value("first", 1.0)
    ratio = speed_ratio(cell, first)
    return Value(speed_up(ratio), ratio.value if ratio else None)


def _sizes(cell: CellResult) -> tuple[Value, Value, Value]:
    """Total and active parameters in billions, and causal GFLOP a token; unknown for a foreign model."""
    known = {key: value for key, value in cell.model.items() if key in ModelSpec.model_fields}
    if not known.keys() >= _SIZES:
        return Value(UNKNOWN), Value(UNKNOWN), Value(UNKNOWN)
    try:
        model, train = ModelSpec.model_validate(known), TrainSpec.model_validate(cell.train)
    except ValidationError:
        return Value(UNKNOWN), Value(UNKNOWN), Value(UNKNOWN)
    flops = flops_per_token(model, seq_len=attended_length(train))
    return (
        _number(model.total_parameters / 1e9),
        _number(model.active_parameters / 1e9),
        _number(flops.causal / 1e9),
    )


def _number(value: float | None) -> Value:
    return Value(number(value), value)
