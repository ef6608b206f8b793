"""What the real worker leaves beside a cell's launches: its routing, on request token by token, and its memory."""

from pathlib import Path

import numpy as np
import torch

from epbench.cells import Cell, ModelSpec, TrainSpec
from epbench.layout import Layout
from epbench.memory_records import MemoryTimeline
from epbench.model.moe import count
from epbench.parallel.routing import forced_ids
from epbench.records import ExpertCopies
from epbench.routing_file import open_routing
from epbench.runner.launched import measured
from epbench.runner.outcome import judge
from epbench.runner.server import ForkServer
from epbench.runner.watch import watch_launch
from epbench.store import read_record
from tests.runner.conftest import MEASURE, make_spec

MODEL = ModelSpec(vocab_size=128, num_layers=3, mlp_only_layers=(1,))
CELL = Cell(
    layout=Layout(tp=2, ep=1, etp=2),  # both ranks route every token
    routing="zipf:1.2",
    model=MODEL,
    train=TrainSpec(seq_len=16, global_batch_size=4, micro_batch_size=2),
)
RECORD = MEASURE.model_copy(update={"record_routing": True, "max_warmup_steps": 2, "min_steps": 1, "max_steps": 1})


def test_a_launch_records_its_routing_and_its_memory(server: ForkServer, tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "launch-0", "good", cell=CELL, detailed=True, measure=RECORD)
    spec.directory.mkdir()
    end = watch_launch(server, spec, interrupted=lambda: False, on_progress=lambda _: None)
    verdict = judge(end)
    assert verdict.outcome == "ok", verdict.reason
    whole = [
        forced_ids(CELL, layer=layer, rows=range(4), positions=range(16), device=torch.device("cpu"))
        for layer in range(2)
    ]
    assert np.array_equal(open_routing(tmp_path / "routing.npy"), torch.stack(whole).numpy())
    timeline = read_record(tmp_path / "memory.json", MemoryTimeline)
    memory = measured(end, verdict, environment="e").memory
    assert timeline is not None and memory is not None
    assert (timeline.rank, max(timeline.high_bytes)) == (memory.rank, memory.peak_allocated_bytes)
    assert timeline.peak_allocated_bytes_per_rank == memory.detail.peak_allocated_bytes_per_rank
    assert memory.detail.parts_of == "peak"
    copies = read_record(tmp_path / "routing.json", ExpertCopies)
    assert copies is not None
    assert copies.layers == [0, 2]
    assert copies.experts == [count(ids[2:], 8).tolist() for ids in whole], "of the last micro-batch"
    assert copies.ranks == [[2 * 16 * 2]] * 2


def test_a_stack_that_cannot_be_recorded_says_so(server: ForkServer, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "good", detailed=True, measure=RECORD)
    verdict = judge(watch_launch(server, spec, interrupted=lambda: False, on_progress=lambda _: None))
    assert verdict.outcome == "crashed"
    assert "good has no on_micro_batch to record by" in (verdict.reason or "")
