"""At most seven sentences that a reader of the verdict wants next, made by rules, the weightiest first.

A rule is a function of the run that gives one sentence, with numbers from the records, or nothing: where what it
needs was not recorded, and where an interval does not bear it out. What it says is weighed by the share of the step
that it is about (``rules.model``).
"""

from epbench.report.comparison import Compared
from epbench.report.rules.balance import crossover, imbalance_cost, uneven_ranks
from epbench.report.rules.communication import last_rank, slow_in_step
from epbench.report.rules.memory import fragmented, near_capacity, out_of_memory, retried_allocations, smaller
from epbench.report.rules.model import Finding, Rule
from epbench.report.rules.steps import compile_gain, exposed_communication, host_bound
from epbench.report.rules.trust import failed, faster_than_wires, held_back, not_run, scattered, unclassified

__all__ = ["MOST", "Finding", "findings"]

MOST = 7
_RULES: tuple[Rule, ...] = (
    failed,
    faster_than_wires,
    crossover,
    exposed_communication,
    compile_gain,
    imbalance_cost,
    last_rank,
    slow_in_step,
    near_capacity,
    smaller,
    out_of_memory,
    retried_allocations,
    fragmented,
    host_bound,
    uneven_ranks,
    scattered,
    unclassified,
    held_back,
    not_run,
)


def findings(compared: Compared) -> tuple[Finding, ...]:
    """What the rules have to say of a run, at most ``MOST``, the weightiest first."""
    found = [finding for rule in _RULES if (finding := rule(compared)) is not None]
    return tuple(sorted(found, key=lambda finding: -finding.weight)[:MOST])
