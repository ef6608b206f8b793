"""The gate against planted changes on GPUs: an A/A has to be silent; slowdowns, memory and calls have to be found.

A script, not a test: it needs one or two GPUs and some ten minutes a comparison. From the repository root::

    python -m tests.runner.gate_on_gpu scenarios/gate-1gpu.toml --output gate-on-gpu.json
    python -m tests.runner.gate_on_gpu scenarios/gate-2gpu.toml --inject slower_3 --inject chattier

Prints a line for each cell of each comparison and writes all of them as JSON: word, ratio with its interval, p, and the
smallest growth that these launches would have shown. Exit code 1 if the A/A raised an alarm or a plant was missed: a
slowdown below that smallest growth is missed by design (with a limit of 2 %, most of 3 % is). A slowdown is a spinning
kernel, calibrated while the GPU is idle: under load clocks are some per cent lower, and it takes that much longer.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epbench.gate_records import CellVerdict, Verdict
from epbench.report.gate.judging import gate_ab
from epbench.runner.ab import AbOptions, run_ab
from epbench.scenario import load_scenario

DEFAULT = ("slower_5", "heavier_5", "chattier")
METRICS = {"slower": None, "heavier": "peak_allocated_bytes", "chattier": "collective_count"}
AS_IT_IS = "A/A"


def compared(scenario: Path, name: str, *, launches: int, only: str | None, reports: Path) -> tuple[Path, Verdict]:
    """One A/B of the scenario as it is and with ``name`` injected; the A/A wraps nothing."""
    head = () if name == AS_IT_IS else (f"train.stack=tests.runner.injected:{name}",)
    options = AbOptions(head=head, launches=launches, only=only, reports_dir=reports)
    outcome = run_ab(load_scenario(scenario), options)
    if outcome.exit_code == 130:
        sys.exit(130)
    return outcome.path, gate_ab(outcome.path)


def row(name: str, cell: CellVerdict, path: Path) -> dict[str, Any]:
    """What the gate says of one cell, of what was injected into it."""
    wanted = METRICS.get(name.partition("_")[0])
    gated = [change for change in cell.metrics if change.gated]
    timings = [change for change in gated if change.kind == "timing"]
    told = [change for change in gated if change.metric == wanted] if wanted else timings
    is_found = any(change.word == "regression" for change in told)
    is_silent = cell.word in ("no change", "inconclusive")
    return {
        "injected": name,
        "cell": cell.cell,
        "word": cell.word,
        "as_it_should_be": is_silent if name == AS_IT_IS else is_found,
        "why": cell.why,
        "path": str(path),
        "changes": [change.model_dump() for change in told],
    }


def line(found: dict[str, Any]) -> str:
    """For a person: per cent, 95 % interval, p after Holm."""
    parts = [f"{found['injected']:>12}  {found['cell']}  {found['word']}"]
    for change in found["changes"]:
        ratio, low, high = change["ratio"], change["ratio_low"], change["ratio_high"]
        if ratio is not None:
            interval = "" if low is None or high is None else f" [{(low - 1) * 100:+.2f}, {(high - 1) * 100:+.2f}]"
            p = "" if change["p_holm"] is None else f" p {change['p_holm']:.2g}"
            finds = "" if change["detectable"] is None else f" finds {change['detectable']:.1%}"
            parts.append(f"{change['metric']} {(ratio - 1) * 100:+.2f} %{interval}{p}{finds}")
    return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The A/A, then one A/B for each plant; 0 if all is as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--inject", action="append", help="of tests/runner/injected.py; A/A for nothing")
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--only", help="glob on cell ids")
    parser.add_argument("--reports-dir", type=Path, default=Path("reports"))
    parser.add_argument("--output", type=Path, default=Path("gate-on-gpu.json"))
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    alone = max(cell.world_size for cell in load_scenario(asked.scenario).cells) == 1  # has nobody to call
    for name in asked.inject or (AS_IT_IS, *DEFAULT[: -1 if alone else None]):
        path, verdict = compared(
            asked.scenario, name, launches=asked.launches, only=asked.only, reports=asked.reports_dir
        )
        rows += [row(name, cell, path) for cell in verdict.cells]
        asked.output.write_text(json.dumps(rows, indent=2))
        for found in rows[-len(verdict.cells) :]:
            print(line(found), flush=True)
    return 0 if all(found["as_it_should_be"] for found in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
