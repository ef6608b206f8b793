"""The meshes of a layout: their names and ranks, what is refused, and that nobody pays for a group that nobody uses."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from epbench.layout import Layout
from epbench.parallel.mesh import ParallelDims
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
DP4 = Layout(dp_shard=4)
DP2_TP2_EP4 = Layout(dp_shard=2, tp=2, ep=4)
CP2_TP2_EP2_ETP2 = Layout(cp=2, tp=2, ep=2, etp=2)
REP2_DP2_EP2 = Layout(dp_replicate=2, dp_shard=2, ep=2)


def _on_mesh(layout: Layout, names: tuple[str, ...]) -> list[int]:
    mesh = ParallelDims.build(layout, device=CPU).mesh(*names)
    assert mesh.mesh_dim_names == names
    ranks: list[int] = mesh.mesh.flatten().tolist()
    return ranks


def _all_on_mesh(cases: list[tuple[Layout, tuple[str, ...]]]) -> list[list[int]]:
    return [_on_mesh(layout, names) for layout, names in cases]


def test_ranks_of_an_axis() -> None:
    """As drawn in docs/layouts.md: seen from rank 0 and from rank 3."""
    expected: list[tuple[Layout, tuple[str, ...], list[int], list[int]]] = [
        (DP4, ("world",), [0, 1, 2, 3], [0, 1, 2, 3]),
        (DP4, ("fsdp",), [0, 1, 2, 3], [0, 1, 2, 3]),
        (DP2_TP2_EP4, ("tp",), [0, 1], [2, 3]),
        (DP2_TP2_EP4, ("fsdp",), [0, 2], [1, 3]),
        (DP2_TP2_EP4, ("dp_shard",), [0, 2], [1, 3]),
        (DP2_TP2_EP4, ("ep",), [0, 1, 2, 3], [0, 1, 2, 3]),
        (DP2_TP2_EP4, ("efsdp",), [0], [3]),
        (CP2_TP2_EP2_ETP2, ("cp",), [0, 2], [1, 3]),
        (CP2_TP2_EP2_ETP2, ("ep",), [0, 2], [1, 3]),
        (CP2_TP2_EP2_ETP2, ("etp",), [0, 1], [2, 3]),
        (CP2_TP2_EP2_ETP2, ("ep", "etp"), [0, 1, 2, 3], [0, 1, 2, 3]),
        (REP2_DP2_EP2, ("dp_replicate",), [0, 2], [1, 3]),
        (REP2_DP2_EP2, ("ep",), [0, 1], [2, 3]),
    ]
    found = run_on_ranks(4, _all_on_mesh, [case[:2] for case in expected])
    assert found[0] == [from_zero for _, _, from_zero, _ in expected]
    assert found[3] == [from_three for _, _, _, from_three in expected]


def _refused(cases: list[tuple[Layout, tuple[str, ...]]]) -> list[str]:
    said = []
    for layout, names in cases:
        with pytest.raises(ValueError, match="layout") as refusal:
            ParallelDims.build(layout, device=CPU).mesh(*names)
        said.append(str(refusal.value))
    return said


def test_what_has_no_mesh_is_refused_with_a_sentence() -> None:
    said = run_on_ranks(4, _refused, [(DP4, ("tp",)), (DP2_TP2_EP4, ("fsdp", "ep")), (Layout(dp_shard=2), ("fsdp",))])
    assert said[0] == [
        "layout dp4 has no mesh over tp: tp has degree 1, or belongs to another view",
        "layout dp2-tp2-ep4 has no mesh over fsdp, ep: fsdp has degree 1, or belongs to another view",
        "layout dp2 spans 2 ranks, the world has 4",
    ]


def _groups(layout: Layout, names: tuple[str, ...]) -> int:
    """Groups that this rank has joined, beyond those it had, after asking for ``names`` one by one."""
    module: Any = dist.distributed_c10d
    before = len(module._world.pg_map)
    dims = ParallelDims.build(layout, device=CPU)
    for name in names:
        dims.axis(name)
        dims.axis(name)
    return len(module._world.pg_map) - before


def _all_groups(cases: list[tuple[Layout, tuple[str, ...]]]) -> list[int]:
    return [_groups(layout, names) for layout, names in cases]


def _coordinates() -> list[int]:
    dims = ParallelDims.build(DP2_TP2_EP4, device=CPU)
    return [dims.coordinate(name) for name in ("data", "cp", "tp")]


def test_groups_are_built_when_asked_for() -> None:
    none, dense, both = run_on_ranks(
        4, _all_groups, [(DP2_TP2_EP4, ()), (DP2_TP2_EP4, ("tp",)), (DP2_TP2_EP4, ("tp", "ep"))]
    )[0]
    assert none == 0, "a layout alone costs no group"
    assert 0 < dense < both, "the experts' view is built when ep is asked for"


def test_coordinates_need_no_group() -> None:
    assert run_on_ranks(4, _coordinates) == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
