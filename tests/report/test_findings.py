"""Each rule says its sentence from the records that call for it, and nothing from any others."""

from collections.abc import Callable
from typing import Any

import pytest

from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import Breakdown, CellResult, CollectiveRow, ExpertLoad, Idle, RunView, VerifyRecord
from epbench.report.comparison import Compared
from epbench.report.findings import MOST, findings
from epbench.report.rules.balance import crossover, imbalance_cost, uneven_ranks
from epbench.report.rules.communication import last_rank, slow_in_step
from epbench.report.rules.memory import fragmented, near_capacity, out_of_memory, retried_allocations, smaller
from epbench.report.rules.model import Rule
from epbench.report.rules.steps import compile_gain, exposed_communication, host_bound
from epbench.report.rules.trust import failed, faster_than_wires, held_back, not_run, scattered, unclassified
from tests.report.sample import DP4, DP4_EP4, TP2_EP4, measured_cell, sample_view, unmeasured_cell, view_of
from tests.report.sample_data import many_cells, sample_data

GIB = 2**30


def cell(
    layout: Layout = DP4, step_s: float = 0.4, mode: str = "eager", *, routing: str = "natural", **fields: Any
) -> CellResult:
    asked = Cell.model_validate({"layout": layout, "mode": mode, "routing": routing})
    return measured_cell(asked, step_s, **{"collectives": [], "all_to_all": []} | fields)


def without(outcome: str | None, layout: Layout = TP2_EP4, **fields: Any) -> CellResult:
    return unmeasured_cell(Cell(layout=layout), outcome, "because", **fields)


def parts(*, compute: float = 0.3, exposed: float = 0.06, host: float = 0.01, kernel: float = 0.03) -> dict[str, Any]:
    found = {"compute": compute, "overlapped": 0.0, "exposed": exposed, "idle": Idle(host=host, kernel=kernel)}
    return {"breakdown_s": Breakdown(rank=0, step_s=compute + exposed + host + kernel, **found)}


def row(**fields: Any) -> CollectiveRow:
    base: dict[str, Any] = {
        "op": "all_to_all",
        "purpose": "dispatch",
        "phase": "forward",
        "axis": "ep",
        "calls_per_step": 10.0,
        "bytes": 1 << 20,
        "bytes_mean": 1 << 20,
        "bytes_per_step": 10 << 20,
        "transfer_s": 0.002,
        "wait_s": 0.02,
        "p50_s": 2e-3,
        "p95_s": 3e-3,
        "algbw_bytes_per_s": 1e11,
        "busbw_bytes_per_s": 1e11,
    }
    return CollectiveRow.model_validate(base | fields)


def calls(**fields: Any) -> dict[str, Any]:
    return {"collectives": [row(**fields)]}


def memory(**fields: Any) -> dict[str, Any]:
    return {"memory": {"rank": 0} | fields}


def load(experts: float, ranks: float | None = None) -> dict[str, Any]:
    return {"expert_load": ExpertLoad(max_over_mean=experts, rank_max_over_mean=ranks)}


def swept(even: tuple[float, ...], skewed: tuple[float, ...]) -> list[CellResult]:
    """dp4, dp4-ep4 and, of three steps, dp2-tp2-ep4 under two routings."""
    steps = {"natural": (even, 1.2), "zipf:1.2": (skewed, 3.9)}
    return [
        cell(layout, step_s, routing=routing, **load(imbalance))
        for routing, (pair, imbalance) in steps.items()
        for layout, step_s in zip((DP4, DP4_EP4, TP2_EP4), pair, strict=False)
    ]


CASES: list[tuple[Rule, list[CellResult], str | None]] = [
    (
        exposed_communication,
        [
            cell(TP2_EP4, 0.5, **parts(exposed=0.14), **calls(exposed_s=0.024)),
            cell(DP4, 0.4, **parts(exposed=0.02)),
        ],
        "dp2-tp2-ep4 eager spends 29 % of its traced step in exposed communication and waiting, up to 5.0 % in exposed "
        "transfers of dispatch; dp4 eager, with the lowest median step, 5.6 %.",
    ),
    (exposed_communication, [cell(**parts(exposed=0.03))], None),
    (exposed_communication, [cell()], None),
    (
        host_bound,
        [cell(**parts(host=0.06, exposed=0.01))],
        "dp4 eager leaves the GPU idle for 15 % of its traced step, waiting for the host to launch kernels.",
    ),
    (host_bound, [cell(**parts())], None),
    (
        compile_gain,
        [
            cell(DP4, 0.4, sign=-1, **parts(compute=0.3)),
            cell(DP4, 0.34, "compiled", compile={"seconds": 30.0}, **parts(compute=0.24)),
            cell(DP4_EP4, 0.4),
            cell(DP4_EP4, 0.4001, "compiled", sign=-1),
        ],
        "Compiled is faster than eager in 1 of 2 pairs, most in dp4 compiled (+17.5 % [17.4, 17.9], most of it "
        "compute, 30.0 s of compiling paid back after 504 [492, 509] steps); no difference can be told in 1.",
    ),
    (
        compile_gain,
        [
            cell(DP4, 0.4, sign=-1, **parts(compute=0.2, exposed=0.1, host=0.06, kernel=0.04)),
            cell(DP4, 0.3, "compiled", **parts(compute=0.16, exposed=0.07, host=0.03, kernel=0.04)),
        ],
        "dp4 compiled is 33.2 % [33.0, 33.7] faster than eager, the largest part of it compute, 41.0 s of compiling "
        "paid back after 412 [406, 414] steps.",
    ),
    (
        compile_gain,
        [cell(DP4, 0.3), cell(DP4, 0.4, "compiled", sign=-1, compile={"seconds": 30.0})],
        "dp4 compiled is 24.9 % [24.8, 25.2] slower than eager.",
    ),
    (compile_gain, [cell(DP4, 0.4), cell(DP4, 0.4001, "compiled", sign=-1)], None),
    (compile_gain, [cell(DP4, 0.4, launches=2), cell(DP4, 0.2, "compiled", launches=2)], None),
    (
        last_rank,
        [cell(step_s=0.015, **parts(), **calls(last_rank_share={5: 0.86, 1: 0.14}))],  # waits are of the traced 0.4 s
        "Rank 5 arrives last in 86 % of the dispatch calls in forward of dp4 eager; "
        "another waits up to 20.0 ms of the traced step (5.0 %), whatever else it computes meanwhile.",
    ),
    (last_rank, [cell(**parts(), **calls(last_rank_share={0: 0.6, 1: 0.4}))], None),
    (last_rank, [cell(**parts(), **calls(last_rank_share={5: 0.86, 1: 0.14}, wait_s=0.001))], None),
    (last_rank, [cell(**calls(last_rank_share={5: 0.86, 1: 0.14}))], None),  # of no known traced step
    (last_rank, [cell(**parts(), **calls())], None),
    (
        slow_in_step,
        [cell(step_s=0.2, **parts(), **calls(isolated_s=0.8e-3))],
        "In the step of dp4 eager the dispatch calls in forward take 2.5 times as long as alone: 2,000 against "
        "800 µs a call, in all 3.0 % of the traced step.",
    ),
    (
        slow_in_step,
        [cell(**parts(), **calls(isolated_s=0.8e-3, exposed_s=0.01))],
        "In the step of dp4 eager the dispatch calls in forward take 2.5 times as long as alone: 2,000 against "
        "800 µs a call, of which no other kernel hides up to 2.5 % of the traced step.",
    ),
    (slow_in_step, [cell(**parts(), **calls(isolated_s=0.8e-3, exposed_s=0.0))], None),
    (slow_in_step, [cell(**parts(), **calls(isolated_s=1.9e-3))], None),
    (slow_in_step, [cell(**parts(), **calls())], None),
    (slow_in_step, [cell(**calls(isolated_s=0.8e-3))], None),  # of no known traced step
    (slow_in_step, [cell(**parts(), **calls(isolated_s=0.8e-3, bytes_per_step=40 << 20))], None),  # unlike sizes
    (slow_in_step, [cell(**parts(), **calls(isolated_s=0.8e-3, bytes_per_step=None))], None),
    (
        imbalance_cost,
        swept((0.4, 0.3), (0.4, 0.36)),
        "dp4-ep4 eager does 16.7 % [16.7, 16.7] fewer tokens/s with zipf:1.2 routing (expert max / mean 3.9) than with "
        "natural routing (expert max / mean 1.2).",
    ),
    (imbalance_cost, swept((0.4, 0.3), (0.4, 0.3)), None),
    (
        crossover,
        swept((0.4, 0.3), (0.4, 0.5)),
        "The winner changes from dp4-ep4 eager to dp4 eager with zipf:1.2 routing (expert max / mean 3.9): there it is "
        "+25.0 % [25.0, 25.0] against it.",
    ),
    (crossover, swept((0.4, 0.3), (0.4, 0.36)), None),
    (crossover, swept((0.4, 0.3, 0.3), (0.4, 0.5, 0.5)), None),  # a tie had no winner
    (crossover, swept((0.4, 0.3, 0.35), (0.4, 0.5, 0.4)), None),  # nor has one now
    (  # what wins now was not ranked before
        crossover,
        [cell(DP4, 0.4, launches=2, **load(1.2)), *swept((0.4, 0.3, 0.35), (0.4, 0.5, 0.55))[1:]],
        None,
    ),
    (crossover, swept((0.4, 0.3), (0.4, 0.5))[:-1], None),
    (crossover, [one.model_copy(update=load(1.2)) for one in swept((0.4, 0.3), (0.4, 0.5))], None),
    (
        uneven_ranks,
        [cell(**load(4.0, 1.6))],
        "The heaviest ep rank of dp4 eager has 1.6 times the mean of routed copies.",
    ),
    (uneven_ranks, [cell(routing="zipf:1.2", **load(4.0, 1.6))], None),
    (uneven_ranks, [cell(**load(4.0))], None),
    (
        near_capacity,
        [cell(DP4, 0.3, peak_reserved_bytes=131 * GIB), cell(DP4_EP4, 0.4)],
        "dp4 eager, the fastest, peaks at 131 of 141 GiB: 10.0 GiB are left for longer sequences and for chance.",
    ),
    (near_capacity, [cell(DP4, 0.3), cell(DP4_EP4, 0.4, peak_reserved_bytes=131 * GIB)], None),
    (near_capacity, [cell(DP4, 0.4), cell(DP4_EP4, 0.4001, sign=-1, peak_reserved_bytes=131 * GIB)], None),
    (
        smaller,
        [cell(DP4, 0.3, peak_reserved_bytes=60 * GIB), cell(TP2_EP4, 0.33, peak_reserved_bytes=44 * GIB)],
        "dp2-tp2-ep4 eager needs 44.0 GiB instead of the 60.0 of dp4 eager and is 9.1 % [9.1, 9.1] slower.",
    ),
    (smaller, [cell(DP4, 0.3, peak_reserved_bytes=60 * GIB), cell(TP2_EP4, 0.5, peak_reserved_bytes=44 * GIB)], None),
    (smaller, [cell(DP4, 0.3, peak_reserved_bytes=60 * GIB), cell(TP2_EP4, 0.33, peak_reserved_bytes=59 * GIB)], None),
    (
        out_of_memory,
        [cell(), without("oom", requested_bytes=int(9.77 * GIB)), without("oom", DP4_EP4)],
        "Out of memory: dp2-tp2-ep4 eager (asked for another 9.77 GiB) and dp4-ep4 eager.",
    ),
    (out_of_memory, [cell(), without("crashed")], None),
    (
        fragmented,
        [cell(**memory(fragmentation=0.14))],
        "At the peak of dp4 eager 14 % of what is reserved is free and in pieces that cannot be returned.",
    ),
    (fragmented, [cell(**memory(fragmentation=0.02)), cell(DP4_EP4)], None),
    (
        retried_allocations,
        [cell(**memory(alloc_retries=3))],
        "Allocations had to be retried, which slows steps: dp4 eager (3).",
    ),
    (retried_allocations, [cell(**memory(alloc_retries=0)), cell(DP4_EP4)], None),
    (
        failed,
        [cell(), without("crashed", DP4_EP4), without("wrong", expected=False)],
        "No number to rank: dp2-tp2-ep4 eager (wrong) and dp4-ep4 eager (crashed).",
    ),
    (failed, [cell(), without("oom"), without("skipped", DP4_EP4)], None),
    (not_run, [cell(), without(None)], "1 of 2 cells have not been run."),
    (not_run, [cell()], None),
    (
        faster_than_wires,
        [cell(**calls(ceiling_busbw_bytes_per_s=0.8e11))],
        "In dp4 eager all_to_all dispatch forward on ep: 1.25 times the isolated ceiling; "
        "its bytes or times are doubtful.",
    ),
    (faster_than_wires, [cell(**calls(ceiling_busbw_bytes_per_s=0.95e11))], None),
    (faster_than_wires, [cell(**calls())], None),
    (
        unclassified,
        [cell(unclassified_share=0.023)],
        "2.3 % of the kernel time of dp4 eager is of no known kind, so its split by kind is that uncertain.",
    ),
    (unclassified, [cell(unclassified_share=0.01), cell(DP4_EP4)], None),
    (scattered, [cell(sign=60)], "The 3 launches of dp4 eager lie 7.3 % apart, the most of all cells."),
    (scattered, [cell(), cell(DP4_EP4, launches=1)], None),
]


@pytest.mark.parametrize(
    ("rule", "cells", "sentence"), CASES, ids=[f"{case[0].__name__}-{at}" for at, case in enumerate(CASES)]
)
def test_a_rule_says(rule: Rule, cells: list[CellResult], sentence: str | None) -> None:
    found = rule(Compared.of(view_of(cells)))
    assert (found and found.text) == sentence


@pytest.mark.parametrize("rule", dict.fromkeys(case[0] for case in CASES), ids=lambda rule: rule.__name__)
def test_a_rule_says_nothing_of_a_run_without_cells(rule: Rule) -> None:
    assert rule(Compared.of(view_of([]))) is None


def test_throttled_clocks_are_told_with_their_reason() -> None:
    found = held_back(Compared.of(sample_data()))
    assert found is not None
    assert found.text.startswith("GPU clocks were held back by software power cap in 40 % of the samples of ")
    assert held_back(Compared.of(sample_view())) is None


def runs() -> list[Callable[[], RunView]]:
    """Runs of every kind: full, on CPU, with two launches, large, failures only, nothing known but the step."""
    bare: dict[str, Any] = {
        "memory": {},
        "peak_allocated_bytes": None,
        "peak_reserved_bytes": None,
        "tokens_per_s_per_rank": None,
        "expert_load": {},
        "verify": VerifyRecord(),
        "compile": {},
    }
    return [
        lambda: sample_data().view,
        lambda: sample_data("cpu").view,
        lambda: sample_data(launches=2).view,
        lambda: many_cells(40).view,
        lambda: view_of([without("oom"), without("wrong", DP4), without(None, DP4_EP4)]),
        lambda: view_of([cell(**bare), cell(DP4_EP4, 0.3, "compiled", **bare)]),
    ]


@pytest.mark.parametrize("make", runs())
def test_findings_of_any_run_are_few_whole_sentences_the_weightiest_first(make: Callable[[], RunView]) -> None:
    found = findings(Compared.of(make()))
    assert len(found) <= MOST
    assert all(finding.text.endswith(".") and "None" not in finding.text for finding in found)
    assert [finding.weight for finding in found] == sorted((finding.weight for finding in found), reverse=True)
    assert len({finding.text for finding in found}) == len(found)
