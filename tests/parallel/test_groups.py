"""A process group costs a communicator of GPU memory: context parallelism makes its own and none that is there."""

from typing import Any

import torch
import torch.distributed as dist

from epbench.layout import Layout
from epbench.parallel.mesh import ParallelDims
from tests.ranks import run_on_ranks


def _groups_for_cp() -> tuple[list[int], int]:
    """The ranks of this rank's cp group, and how many groups asking for it made."""
    dims = ParallelDims.build(Layout(dp_replicate=2, cp=2, tp=2), device=torch.device("cpu"))
    dims.fsdp_mesh()
    dims.axis("tp")
    module: Any = dist.distributed_c10d
    before = len(module._world.pg_map)
    mesh = dims.mesh("cp")
    return mesh.mesh.flatten().tolist(), len(module._world.pg_map) - before


def test_cp_makes_one_group_whatever_is_beside_it() -> None:
    found = run_on_ranks(8, _groups_for_cp)
    assert [made for _, made in found] == [1] * 8
    assert [ranks for ranks, _ in found] == [[0, 2], [1, 3], [0, 2], [1, 3], [4, 6], [5, 7], [4, 6], [5, 7]]
