"""Runs that no report is drawn for in a brochure, and their pages to look at, as HTML and PNG in both themes.

    python -m tests.report.gallery OUT           all of them (a few minutes)
    python -m tests.report.gallery OUT unfinished hostile

Needs a chromium. Look at every picture: text that overlaps, cut labels and empty charts are for eyes.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from epbench.cells import Cell
from epbench.layout import Layout
from epbench.records import CellResult, LaunchValue, RunView
from epbench.report.build import build_page
from epbench.report.data import RunData
from tests.report.sample import (
    DP4,
    DP4_EP4,
    HOSTILE,
    REP2,
    TP2_EP4,
    TP4,
    TRAIN,
    WIDE,
    Device,
    environment,
    measured_cell,
    run_record,
    unmeasured_cell,
    view_of,
)
from tests.report.sample_data import data_of, sample_data

__all__ = ["RUNS", "bare_cell", "hostile_run"]

SAMPLE = Path(__file__).parents[2] / "reports" / "samples" / "qwen3-30b-2xh200" / "show.json"
WIDTHS = {"": 1200, "-phone": 390}
LEAST_WINDOW = 500


def cell_of(layout: Layout, mode: str = "eager", **fields: object) -> Cell:
    return Cell.model_validate({"layout": layout, "mode": mode, "model": WIDE, "train": TRAIN} | fields)


def four_cells(device: Device = "cuda", *, launches: int = 3) -> list[CellResult]:
    """Two layouts, eager and compiled."""
    wanted = [(DP4, "eager", 0.412), (DP4, "compiled", 0.352), (DP4_EP4, "eager", 0.371), (DP4_EP4, "compiled", 0.318)]
    return [
        measured_cell(cell_of(layout, mode), step_s, device=device, launches=launches, sign=(-1) ** at)
        for at, (layout, mode, step_s) in enumerate(wanted)
    ]


def only_failures() -> RunData:
    return RunData(
        view_of(
            [
                unmeasured_cell(cell_of(DP4), "oom", "rank 2: CUDA out of memory", requested_bytes=9 * 2**30),
                unmeasured_cell(cell_of(DP4_EP4), "crashed", "rank 1 ended with signal 9 in the timing pass"),
                unmeasured_cell(cell_of(TP2_EP4), "timeout", "no progress for 300 s in forward", expected=False),
                unmeasured_cell(
                    cell_of(TP4), "wrong", "verify: gradient of layers.0.moe.router.gate is off by 4.9e-01"
                ),
                unmeasured_cell(cell_of(REP2), "skipped", "etp 3 is neither 1 nor tp 2"),
            ]
        )
    )


def one_cell() -> RunData:
    return data_of(view_of(four_cells()[3:]))


def one_launch() -> RunData:
    return data_of(view_of(four_cells(launches=1)))


def cpu_only() -> RunData:
    return data_of(view_of(four_cells("cpu"), device="cpu"))


def bare_cell(layout: Layout, *step_s: float) -> CellResult:
    """A measured cell of a foreign stack or an old record: only what a record cannot be without, and its launches."""
    full = unmeasured_cell(cell_of(layout), "ok", "")
    launches = [LaunchValue(index=index, order=index, step_s=value) for index, value in enumerate(step_s)]
    kept = ("cell", "layout", "mode", "routing", "outcome", "world_size")
    model, train = {"preset": "of somebody else"}, {"stack": "other.module:build"}
    fields = {name: getattr(full, name) for name in kept}
    return CellResult(
        **fields, model=model, train=train, launch_values=launches, step_s=sorted(step_s)[len(step_s) // 2]
    )


def missing_fields() -> RunData:
    machine = environment("cpu").model_copy(update={"torch": "", "device_name": ""})
    view = view_of([bare_cell(DP4, 0.3, 0.31, 0.305), bare_cell(DP4_EP4, 0.28, 0.281, 0.285)], environment=machine)
    return RunData(view)


def unfinished() -> RunData:
    """Cut off by Ctrl-C: two cells have their numbers, one was interrupted, two wait; one launch was invalid."""
    first, second, *_ = four_cells()
    hot = "GPU 2: HW thermal slowdown in 31 % of the samples, up to 91 °C"
    launches = [
        *second.launch_values[:2],
        second.launch_values[2].model_copy(update={"valid": False, "invalid_reason": hot}),
    ]
    cells = [
        first,
        second.model_copy(update={"launch_values": launches, "step_s_low": None, "step_s_high": None}),
        unmeasured_cell(cell_of(DP4_EP4), "interrupted", "Ctrl-C in launch 1"),
        unmeasured_cell(cell_of(TP2_EP4), None, "not run yet"),
        unmeasured_cell(cell_of(TP4), None, "not run yet"),
    ]
    return data_of(view_of(cells, sittings=[{"started": "2026-11-22T10:15:00+00:00"}]))


def hostile_run(text: str) -> RunData:
    """Every name that comes from a file, a person or a machine is ``text``: scenario, reasons, hosts, GPUs, checks."""
    host = {"names": [text], "gpu_uuids": [text], "nccl": text, "kernel": text}
    named = {"layout": text, "mode": text, "routing": text, "reason": text}
    full = data_of(view_of(four_cells()[2:]))
    cells = [
        cell.model_copy(
            update=(named if at else {"reason": text})
            | {"launch_values": [hosted(launch, host, text) for launch in cell.launch_values]}
        )
        for at, cell in enumerate(full.view.cells)
    ]
    cells.append(unmeasured_cell(cell_of(TP4), "crashed", text))
    check = {"name": text, "status": "warn", "found": text, "fix": text}
    record = run_record(
        name=text,
        description=text,
        scenario_path=text,
        command=["epbench", "run", text],
        device_reason=text,
        environment=environment().model_copy(update={"device_name": text, "variables": {text: text}}),
        sittings=[{"started": text, "checks": [check], "warnings": [text], "spent_s": {text: 1.0}}],
    )
    view = RunView(run=record, protocol=record.protocol, environment=record.environment, cells=cells)
    return RunData(view, timelines=full.timelines, copies=full.copies, comm=full.comm)


def hosted(launch: LaunchValue, host: Mapping[str, object], text: str) -> LaunchValue:
    watched = launch.telemetry
    gpus = (
        [gpu.model_copy(update={"uuid": text, "clock_reasons": {text: 0.5}}) for gpu in watched.gpus] if watched else []
    )
    telemetry = watched.model_copy(update={"gpus": gpus}) if watched else None
    changes: dict[str, object] = {"host": dict(host), "telemetry": telemetry}
    return launch.model_copy(update=changes | ({"valid": False, "invalid_reason": text} if launch.index == 2 else {}))


def two_routings() -> RunData:
    """Layouts under natural and skewed routings, which slow expert parallelism down."""
    wanted = [
        (layout, routing, step_s * (1 + slow * (0 if layout is DP4 else 1)), load)
        for layout, step_s in ((DP4, 0.36), (DP4_EP4, 0.32), (TP2_EP4, 0.34))
        for routing, slow, load in (("natural", 0.0, 1.9), ("zipf:1", 0.22, 13.4), ("hot_rank:0.5", 0.4, 4.2))
    ]
    cells = []
    for at, (layout, routing, step_s, load) in enumerate(wanted):
        cell = measured_cell(cell_of(layout, routing=routing), step_s, sign=(-1) ** at)
        rank_load = 1.0 if layout is DP4 else 1 + load / 8
        loads = {"max_over_mean": load, "rank_max_over_mean": rank_load, "fan_out": 3.5}
        cells.append(cell.model_copy(update={"expert_load": cell.expert_load.model_copy(update=loads)}))
    return data_of(view_of(cells))


def real_gpus() -> RunData:
    """Two GPUs, measured under an older protocol; of its results only what ``show --json`` printed is kept."""
    return RunData(RunView.model_validate_json(SAMPLE.read_text(encoding="utf-8")))


RUNS: Mapping[str, Callable[[], RunData]] = {
    "usual": sample_data,
    "only-failures": only_failures,
    "one-cell": one_cell,
    "one-launch": one_launch,
    "cpu-only": cpu_only,
    "missing-fields": missing_fields,
    "unfinished": unfinished,
    "hostile": lambda: hostile_run(HOSTILE),
    "long": lambda: hostile_run("x" * 10_000),
    "right-to-left": lambda: hostile_run("\u05d0\u05d1\u05d2 \u202e\u0627\u0644\u0639\u0631\u0628\u064a\u0629 dp4 5"),
    "no-cells": lambda: RunData(view_of([])),
    "two-routings": two_routings,
    "real-gpus": real_gpus,
}


def main(out: Path, names: list[str]) -> None:
    """Write the pages of these runs (all without any), and two widths of each in two themes as pictures."""
    out.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("gallery: no chromium on this machine")
    for name in names or RUNS:
        page = build_page(RUNS[name](), stem=name)
        for file, text in {f"{name}.html": page.html, **page.beside}.items():
            (out / file).write_text(text, encoding="utf-8")
        for suffix, width in WIDTHS.items():
            for theme in ("light", "dark"):
                picture = out / f"{name}{suffix}-{theme}.png"
                draw(chromium, (out / f"{name}.html").resolve().as_uri() + f"#theme={theme}", picture, width=width)
                print(picture)


def draw(chromium: str, address: str, picture: Path, *, width: int) -> None:
    """The whole page: the window is as high as the longest page gets, so that every chart comes into view.

    A window cannot be as narrow as a phone: there the page stands in a frame of that width.
    """
    height = 12_000 if width >= LEAST_WINDOW else 16_000
    with tempfile.TemporaryDirectory() as scratch:
        if width < LEAST_WINDOW:
            frame = Path(scratch) / "phone.html"
            size = f"width: {width}px; height: {height}px"
            frame.write_text(f'<body style="margin: 0"><iframe style="border: 0; {size}" src="{address}"></iframe>')
            address = frame.as_uri()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
        flags += [f"--user-data-dir={scratch}/profile", f"--window-size={max(width, LEAST_WINDOW)},{height}"]
        command = [chromium, *flags, f"--screenshot={picture.resolve()}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=300)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.report.gallery OUT [RUN...]")
    main(Path(sys.argv[1]), sys.argv[2:])
