"""What tests of several nodes share."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["DEADLINE_S", "TOKEN", "wait_for", "write_scenario"]

TOKEN = "the secret of these tests"
DEADLINE_S = 200  # of a machine that does much else


def write_scenario(directory: Path) -> Path:
    path = directory / "nodes.toml"
    path.write_text("""
schema = 1
name = "nodes"
world_size = 4
device = "cpu"
[model]
preset = "tiny"
num_layers = 2
[train]
seq_len = 32
global_batch_size = 4
seed = 3            # the rank that misbehaves: the last one, on the other node
[measure]
launches = 1
min_steps = 4
max_steps = 4
max_warmup_steps = 12
trace_steps = 1
verify = "loss"
canary = false
[matrix]
layout = "dp4-ep4"
train.stack = ["qwen3_moe", "tests.runner.fake_stacks:killed_in_warmup", "tests.runner.fake_stacks:hanging_in_warmup"]
""")
    return path


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        threading.Event().wait(0.05)
