"""Parallel styles as somebody uses them who knows nothing of the benchmark: docs/parallel.md, run as printed.

Each example is a script for torchrun: every rank runs it with torchrun's variables, in processes that have imported
torch already.
"""

import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ParallelStyle

from epbench.cells import ModelSpec
from epbench.model.moe import MoE
from epbench.parallel import styles
from epbench.parallel.styles import ExpertParallel, ExpertTensorParallel, TensorParallel
from tests.ranks import run_on_ranks

PAGE = Path(__file__).parents[2] / "docs" / "parallel.md"
SCRIPTS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S))
SHARED = "moe_alone.py"


def _agent_store(rank: int) -> tuple[Any, int]:
    """The store that torchrun's agent would keep, on a port that rank 0 holds from the moment it is chosen."""
    module: Any = dist
    store = module.TCPStore("localhost", 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = [store.port if store is not None else 0]
    dist.broadcast_object_list(port, src=0)
    return store, port[0]


def _under_torchrun(directory: str, script: str) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    store, port = _agent_store(rank)
    dist.destroy_process_group()  # the script makes its own
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    sys.path.insert(0, directory)
    runpy.run_path(str(Path(directory) / script), run_name="__main__")
    dist.barrier()  # the store goes with rank 0
    del store


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != SHARED])
def test_example_is_right_as_printed(script: str, tmp_path: Path) -> None:
    for name in (SHARED, script):
        (tmp_path / name).write_text(SCRIPTS[name], encoding="utf-8")
    run_on_ranks(4, _under_torchrun, str(tmp_path), script)


def test_every_style_has_an_example() -> None:
    shown = "".join(SCRIPTS.values())
    public = [name for name in styles.__all__ if name.endswith("Parallel")]
    assert len(public) == 4
    assert {name for name in [*public, "ParallelDims", "AllToAllDispatcher"] if f"{name}(" not in shown} == {
        "ParallelDims"  # made by its method
    }
    assert "ParallelDims.build(" in shown


# ---- what is refused ----


def _refusals() -> dict[str, str]:
    """What each misuse says, on two ranks."""
    flat = init_device_mesh("cpu", (2,), mesh_dim_names=("ep",))
    square = init_device_mesh("cpu", (1, 2), mesh_dim_names=("tp", "ep"))
    nameless = init_device_mesh("cpu", (1, 2))
    moe, odd = MoE(ModelSpec()), MoE(ModelSpec(num_experts=7))
    misuses: dict[str, Callable[[], object]] = {
        "a linear": lambda: _apply(ExpertParallel(), nn.Linear(2, 2), flat),
        "a square mesh": lambda: _apply(TensorParallel(), moe, square),
        "a flat mesh": lambda: _apply(ExpertTensorParallel(), moe, flat),
        "a nameless mesh": lambda: _apply(ExpertTensorParallel(), moe, nameless),
        "seven experts": lambda: _apply(ExpertParallel(), odd, flat),
    }
    said = {}
    for name, misuse in misuses.items():
        with pytest.raises((TypeError, ValueError)) as refusal:
            misuse()
        said[name] = f"{refusal.type.__name__}: {refusal.value}"
    return said


def _apply(style: ParallelStyle, module: nn.Module, mesh: object) -> nn.Module:
    return style._apply(module, mesh)  # type: ignore[arg-type]


def test_misuse_is_refused_with_a_sentence() -> None:
    said, _ = run_on_ranks(2, _refusals)
    starts = {
        "a linear": "TypeError: ExpertParallel spreads a MoE layer (epbench.model.moe.MoE), not Linear",
        "a square mesh": "ValueError: TensorParallel takes a mesh of 1 axis(es), got 2",
        "a flat mesh": "ValueError: ExpertTensorParallel takes a mesh of 2 axis(es), got 1",
        "a nameless mesh": "ValueError: ExpertTensorParallel needs a mesh with named axes",
        "seven experts": "ValueError: 7 experts cannot be spread evenly over 2 ranks",
    }
    assert {name: text[: len(starts[name])] for name, text in said.items()} == starts
