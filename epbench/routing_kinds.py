"""The kinds of routing by name, and which of them a layout cannot have: known without torch.

``natural`` is the router's own choice. All others are forced, see :mod:`epbench.parallel.routing` and
``docs/routing.md``. Each is a function of the scenario and the token; ``hot_rank`` also of the layout's ep.
"""

from fractions import Fraction
from typing import NamedTuple

from epbench.cells import Cell

__all__ = ["HotExperts", "hot_experts", "impossible_routing", "routing_kind"]


def routing_kind(routing: str) -> tuple[str, str]:
    """A canonical routing as (kind, value): ``zipf:1.2`` is (``zipf``, ``1.2``), ``uniform`` has an empty value."""
    kind, _, value = routing.partition(":")
    return kind, value


class HotExperts(NamedTuple):
    """What ``hot_rank:F`` asks of every token: ``copies`` of its K, on average, to the first ``experts`` experts."""

    experts: int
    copies: Fraction


def hot_experts(cell: Cell) -> HotExperts | None:
    """The experts of ep rank 0 and F x K as an exact fraction; None for any other routing."""
    kind, value = routing_kind(cell.routing)
    if kind != "hot_rank":
        return None
    model = cell.model
    return HotExperts(model.num_experts // cell.layout.ep, Fraction(value) * model.num_experts_per_tok)


def impossible_routing(cell: Cell) -> list[str]:
    """Why ``cell`` cannot be routed so, in a sentence; empty if it can.

    A token's experts are distinct, so no more copies of it go to ep rank 0 than there are experts, and no fewer
    than the others have no room for.
    """
    hot = hot_experts(cell)
    if hot is None:
        return []
    top_k, others = cell.model.num_experts_per_tok, cell.model.num_experts - hot.experts
    least, most = max(0, top_k - others), min(top_k, hot.experts)
    if least <= hot.copies <= most:
        return []
    held = f"rank 0 of ep = {cell.layout.ep} holds {hot.experts} of {cell.model.num_experts} experts"
    can = _range(Fraction(least, top_k), Fraction(most, top_k))
    return [f"routing {cell.routing}: {held}, so {can} of the copies can go there"]


def _range(least: Fraction, most: Fraction) -> str:
    return f"{float(least):g}" if least == most else f"{float(least):g} to {float(most):g}"
