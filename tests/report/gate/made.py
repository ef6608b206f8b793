"""Verdicts made by hand: what the outputs of the gate are tested with, no statistics in between."""

from typing import Any

from epbench.gate_records import ArmRecord, CellVerdict, EnvironmentDifference, GateSpec, MetricChange, Verdict, Word
from epbench.report.gate.words import exit_code_of, summary_of

__all__ = ["broken", "cell", "counter", "many", "new", "regressed", "timing", "verdict"]


def timing(ratio: float = 1.034, word: Word = "regression", **fields: Any) -> MetricChange:
    """Device work of 400 ms in base, five launches an arm, intervals of 0.6 points."""
    found: dict[str, Any] = {
        "metric": "device_work_s",
        "kind": "timing",
        "gated": True,
        "base": 0.4,
        "head": 0.4 * ratio,
        "base_half": 0.012,
        "head_half": 0.004,
        "base_launches": 5,
        "head_launches": 5,
        "ratio": ratio,
        "ratio_low": ratio - 0.006,
        "ratio_high": ratio + 0.006,
        "p": 0.0002,
        "p_holm": 0.0004,
        "limit": 0.02,
        "word": word,
    }
    return MetricChange.model_validate(found | fields)


def counter(base: float | None, head: float | None, word: Word = "no change", **fields: Any) -> MetricChange:
    """Peak memory, of which 1 % more is allowed."""
    found: dict[str, Any] = {
        "metric": "peak_allocated_bytes",
        "kind": "counter",
        "gated": True,
        "base": base,
        "head": head,
        "base_launches": 1,
        "head_launches": 1,
        "ratio": head / base if base and head else None,
        "limit": 0.01,
        "word": word,
    }
    return MetricChange.model_validate(found | fields)


def cell(
    name: str = "dp2-ep2 compiled", word: Word = "no change", *metrics: MetricChange, **fields: Any
) -> CellVerdict:
    """A cell that is ok in both arms; without metrics its device work did not change."""
    found: dict[str, Any] = {
        "cell": f"id-of-{name}"[:60],
        "name": name,
        "layout": "dp2-ep2",
        "mode": "compiled",
        "routing": "natural",
        "base_outcome": "ok",
        "head_outcome": "ok",
        "word": word,
        "metrics": list(metrics) or [timing(1.001, "no change", p=0.8, p_holm=1.0)],
    }
    return CellVerdict.model_validate(found | fields)


def regressed(name: str = "dp2-ep2 compiled", ratio: float = 1.034, **fields: Any) -> CellVerdict:
    """Slower by 3.4 % where 2 % is allowed."""
    return cell(name, "regression", timing(ratio), **fields)


def broken(name: str = "tp2 eager", reason: str = "rank 1 was killed by signal 9", **fields: Any) -> CellVerdict:
    """Had a number, has none."""
    why = f"was ok, is crashed ({reason})"
    return cell(name, "broken", why=why, **({"head_outcome": "crashed"} | fields)).model_copy(update={"metrics": []})


def new(name: str = "cp2 eager", why: str = "base does not have it; ok in head") -> CellVerdict:
    """Not in base."""
    return cell(name, "new", why=why, base_outcome=None).model_copy(update={"metrics": []})


def many(count: int, **fields: Any) -> list[CellVerdict]:
    """So many cells without change."""
    return [cell(f"dp{place} eager", **fields) for place in range(count)]


def verdict(*cells: CellVerdict, scenario: str = "nightly", **fields: Any) -> Verdict:
    """Of two runs; summary and exit code as the gate makes them."""
    found: dict[str, Any] = {
        "schema_version": 1,
        "protocol": 3,
        "scenario": scenario,
        "gate": GateSpec(),
        "base": ArmRecord(label="monday", path="reports/monday", started="2026-11-23T02:30:00Z"),
        "head": ArmRecord(label="tuesday", path="reports/tuesday", started="2026-11-24T02:30:00+00:00"),
        "paired": False,
        "alpha": 0.01,
        "family": len(cells),
        "differences": [EnvironmentDifference(what="torch", base="2.11.0", head="2.12.0")],
        "cells": list(cells),
        "summary": summary_of(cells),
        "exit_code": exit_code_of(cells, {"regression", "inconclusive"}),
    }
    return Verdict.model_validate(found | fields)
