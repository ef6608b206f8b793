"""Experts: how evenly the routed copies fall, and what a layout's throughput owes to that."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from epbench.analysis.work import work_but_routing
from epbench.records import CellResult, ExpertCopies
from epbench.report.comparison import Compared, speed_ratio
from epbench.report.figures.experts import color_span, imbalance_figure, load_figure
from epbench.report.routing_pairs import routing_pairs, routings_table
from epbench.report.sections.model import INTERVALS, Chart, Section, Variant
from epbench.report.tables import Table, Value
from epbench.report.text import clean, interval, number, speed_up

__all__ = ["experts_section"]

_RANKS = 16  # more than so many ep ranks are told by the heaviest and the lightest
_NOTE = (
    "Routings side by side: the same cells but for their routing, heaviest over mean expert and ep rank (1 is "
    "balanced), and fan-out, the mean number of ep ranks that a token goes to. Nobody chooses the routing of a model "
    "in training; the spread between routings is what a layout's throughput owes to balance."
)


def experts_section(compared: Compared) -> Section | None:
    """Load of every cell's experts, and throughput against balance; None where no cell says what its experts got."""
    table = routings_table(compared)
    charts = tuple(filter(None, (_load_chart(compared), *_imbalance_charts(compared))))
    if not charts and table is None:
        return None
    return Section("experts", "Experts", charts, note=_NOTE if table else "", table=table)


def _load_chart(compared: Compared) -> Chart | None:
    found = [(cell, copies) for cell in compared.view.cells if (copies := compared.data.copies.get(cell.cell))]
    variants = tuple(
        Variant(compared.naming.full(cell), load_figure(copies), _load_table(copies), _load_note(copies))
        for cell, copies in found
        if _is_drawable(copies)
    )
    if not variants:
        return None
    caption = (
        "What each expert got of a layer's routed tokens, over the fair share (all copies over all experts), on a "
        "scale of powers of two: the paper's colour is the fair share, orange more, blue less. Columns are experts, "
        "grouped by the ep rank that holds them; copies of the last micro-batch of a launch, over all ranks."
    )
    return Chart("expert-load", "Load of experts", caption, variants, picker="cell")


def _is_drawable(copies: ExpertCopies) -> bool:
    """Whether every layer has experts, ranks and tokens: a damaged or foreign file may have none."""
    sizes = {(len(experts), len(ranks)) for experts, ranks in zip(copies.experts, copies.ranks, strict=False)}
    same = len(copies.layers) == len(copies.experts) == len(copies.ranks) and len(sizes) == 1
    return same and all(sum(row) > 0 for row in (*copies.experts, *copies.ranks))


def _load_note(copies: ExpertCopies) -> str:
    """The range over layers, how far the colours reach, and what the reader might take for an error."""
    span = 2 ** color_span(copies)
    parts = [
        f"Heaviest over mean expert, by layer: {_span([_peak(row) for row in copies.experts])}; "
        f"heaviest over mean ep rank: {_span([_peak(row) for row in copies.ranks])}.",
        f"Colours span 1/{span} (or less) to {span} times the fair share.",
    ]
    if unused := sum(row.count(0) for row in copies.experts):
        parts.append(f"Without a token, and purple: {unused} of {sum(map(len, copies.experts))} experts of all layers.")
    if copies.hot_experts is not None:
        parts.append(f"Of this routing, the first {copies.hot_experts} experts are hot: those of ep rank 0.")
    return " ".join(parts)


def _span(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _peak(row: Sequence[int]) -> float:
    return max(row) * len(row) / sum(row)


def _load_table(copies: ExpertCopies) -> Table:
    """A row a layer: how uneven its experts and its ranks are, and each rank's load over the mean rank."""
    ranks = len(copies.ranks[0])
    shown = [f"rank {rank}" for rank in range(ranks)] if 1 < ranks <= _RANKS else []
    if ranks > _RANKS:
        shown = ["heaviest rank", "lightest rank"]
    titles = ("layer", "expert max / mean", "heaviest expert", "without a token", "rank max / mean", *shown)
    rows = [_load_row(*layer) for layer in zip(copies.layers, copies.experts, copies.ranks, strict=True)]
    return Table.of(titles, rows, texts=0)


def _load_row(layer: int, experts: list[int], ranks: list[int]) -> tuple[Value, ...]:
    heaviest = experts.index(max(experts))
    loads = [load * len(ranks) / sum(ranks) for load in ranks]
    whole = (layer, heaviest, experts.count(0))
    counts = [Value(str(count), count) for count in whole]
    shown = loads if 1 < len(loads) <= _RANKS else []
    named = [_rank(loads, max(loads)), _rank(loads, min(loads))] if len(loads) > _RANKS else []
    uneven = [_ratio(_peak(experts)), _ratio(_peak(ranks))]
    return (counts[0], uneven[0], *counts[1:], uneven[1], *map(_ratio, shown), *named)


def _ratio(value: float | None) -> Value:
    return Value(number(value), None if value is None else round(value, 4))


def _rank(loads: Sequence[float], load: float) -> Value:
    return Value(f"{number(load)} (rank {loads.index(load)})", round(load, 4))


def _imbalance_charts(compared: Compared) -> tuple[Chart, ...]:
    """Throughput over the imbalance of ranks and of experts; none where every layout has one routing."""
    by_rank = _imbalance_variants(
        compared, lambda cell: cell.expert_load.rank_max_over_mean, "heaviest ep rank over the mean, worst layer"
    )
    by_expert = _imbalance_variants(
        compared, lambda cell: cell.expert_load.max_over_mean, "heaviest expert over the mean, worst layer"
    )
    ranks = (
        "One curve a layout and mode, one point a routing: 1 is balanced, and further right the heaviest ep rank has "
        "more than its share, which the others wait for. How uneven ranks are depends on the layout too (at ep1 it is "
        f"always 1), so compare curves at one routing, not at one place. {INTERVALS}"
    )
    experts = (
        "The same over the imbalance of experts, which is the routing's own (but for hot_rank, which follows the "
        "layout): points of one routing stand above each other, and where curves cross, the best layout changes. "
        f"{INTERVALS}"
    )
    charts = (
        Chart("imbalance", "Throughput against imbalance of ranks", ranks, by_rank, picker="setting"),
        Chart("imbalance-experts", "Throughput against imbalance of experts", experts, by_expert, picker="setting"),
    )
    return tuple(chart for chart in charts if chart.variants)


def _imbalance_variants(
    compared: Compared, load: Callable[[CellResult], float | None], title: str
) -> tuple[Variant, ...]:
    naming = replace(compared.naming, has_routings=False)
    families: dict[str, list[tuple[CellResult, ...]]] = {}
    for cells in routing_pairs(compared):
        if sum(load(cell) is not None for cell in cells) > 1:
            families.setdefault(work_but_routing(cells[0]), []).append(cells)
    return tuple(
        Variant(
            naming.work(pairs[0][0]),
            imbalance_figure(
                [(naming.layout(cells[0]), clean(cells[0].mode, 20), cells) for cells in pairs],
                {cell.cell: found for cells in pairs for cell in cells if (found := load(cell)) is not None},
                load_title=title,
                rank_word=compared.rank_word,
            ),
            _imbalance_table(replace(compared, naming=naming), pairs),
        )
        for pairs in families.values()
    )


def _imbalance_table(compared: Compared, pairs: Sequence[tuple[CellResult, ...]]) -> Table:
    titles = (
        "layout and mode",
        "routing",
        "rank max / mean",
        "expert max / mean",
        f"tokens/s/{compared.rank_word}",
        "step, ms",
        "tokens/s against first",
    )
    rows = [_imbalance_row(compared, cell, cells[0]) for cells in pairs for cell in cells]
    return Table.of(titles, rows, texts=2)


def _imbalance_row(compared: Compared, cell: CellResult, first: CellResult) -> tuple[Value, ...]:
    ratio = speed_ratio(cell, first)
    against = Value("first", 1.0) if cell is first else Value(speed_up(ratio), ratio.value if ratio else None)
    return (
        Value(compared.naming.arm(cell)),
        Value(compared.naming.routing(cell)),
        _ratio(cell.expert_load.rank_max_over_mean),
        _ratio(cell.expert_load.max_over_mean),
        Value(number(cell.tokens_per_s_per_rank), cell.tokens_per_s_per_rank),
        Value(interval(cell.step_s, cell.step_s_low, cell.step_s_high, scale=1e3), cell.step_s),
        against,
    )
