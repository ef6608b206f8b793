"""Which ranks an axis joins: against a row-major array of ranks, and against the real meshes."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from epbench.cells import ModelSpec, TrainSpec
from epbench.layout import Layout, legal_layouts
from epbench.parallel.mesh import ParallelDims
from epbench.rank_groups import AXES, Groups, axes_by_groups, groups_of
from tests.ranks import run_on_ranks

DP4_EP4 = Layout(dp_shard=4, ep=4)
DP2_TP2_EP4 = Layout(dp_shard=2, tp=2, ep=4)
ON_8 = legal_layouts(8, ModelSpec(), TrainSpec(global_batch_size=16))


def along(ranks: NDArray[np.int64], *dims: int) -> Groups:
    """The groups that vary along some dims of an array of ranks, in order of their lowest rank."""
    last = np.moveaxis(ranks, dims, range(-len(dims), 0))
    rows = last.reshape(-1, int(np.prod([ranks.shape[dim] for dim in dims]))).tolist()
    return tuple(sorted(tuple(row) for row in rows))


def drawn(layout: Layout) -> dict[str, Groups]:
    ranks = np.arange(layout.world_size)
    dense = ranks.reshape(layout.dp_replicate, layout.dp_shard, layout.cp, layout.tp)
    expert = ranks.reshape(layout.dp_replicate, layout.efsdp, layout.ep, layout.etp)
    return {
        "world": along(dense, 0, 1, 2, 3),
        "dp_replicate": along(dense, 0),
        "fsdp": along(dense, 1, 2),
        "tp": along(dense, 3),
        "dp_shard": along(dense, 1),
        "cp": along(dense, 2),
        "efsdp": along(expert, 1),
        "ep": along(expert, 2),
        "etp": along(expert, 3),
    }


@pytest.mark.parametrize("layout", ON_8, ids=lambda layout: layout.slug)
def test_groups_are_those_of_a_row_major_array(layout: Layout) -> None:
    found = {axis: groups_of(layout, axis) for axis in AXES}
    assert found == {axis: groups if len(groups[0]) > 1 else None for axis, groups in drawn(layout).items()}


def _own_groups(layouts: list[Layout]) -> list[dict[str, list[int]]]:
    """Per layout and axis of degree above 1 the ranks of this rank's group in the real mesh."""
    found = []
    for layout in layouts:
        dims = ParallelDims.build(layout, device=torch.device("cpu"))
        axes = [axis for axis in AXES if groups_of(layout, axis) is not None]
        found.append({axis: dims.mesh(axis).mesh.tolist() for axis in axes})
    return found


def test_groups_are_those_of_the_meshes() -> None:
    layouts = [DP2_TP2_EP4, Layout(cp=2, tp=2, ep=2, etp=2), Layout(dp_replicate=2, dp_shard=2, ep=2)]
    by_rank = run_on_ranks(4, _own_groups, layouts)
    for index, layout in enumerate(layouts):
        for axis in by_rank[0][index]:
            joined = {tuple(rank[index][axis]) for rank in by_rank}
            assert tuple(sorted(joined)) == groups_of(layout, axis), f"{layout.slug} {axis}"


def test_axes_that_make_one_partition_are_named_together() -> None:
    found = axes_by_groups([DP4_EP4, DP2_TP2_EP4, DP4_EP4])
    assert found == {
        ((0, 1, 2, 3),): {
            "world": ["dp4-ep4", "dp2-tp2-ep4"],
            "fsdp": ["dp4-ep4"],
            "dp_shard": ["dp4-ep4"],
            "ep": ["dp4-ep4", "dp2-tp2-ep4"],
        },
        ((0, 2), (1, 3)): {"fsdp": ["dp2-tp2-ep4"], "dp_shard": ["dp2-tp2-ep4"]},
        ((0, 1), (2, 3)): {"tp": ["dp2-tp2-ep4"]},
    }


def test_all_of_a_partition_are_every_rank_once() -> None:
    for groups in axes_by_groups(ON_8):
        assert sorted(rank for group in groups for rank in group) == list(range(8))


def test_what_has_no_groups() -> None:
    assert axes_by_groups([Layout()]) == {}
    assert [groups_of(DP4_EP4, axis) for axis in ("tp", "efsdp", "unknown", "")] == [None] * 4
