"""The mesh of a layout: two views of one world, with a common root so that FSDP2 can join either with tp or ep.

Dense view (dp_replicate, fsdp, tp) with fsdp = dp_shard x cp; expert view (dp_replicate, efsdp, ep, etp). Both
are row-major over the same ranks (facts 3), so a context-parallel group is the inner part of fsdp.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from epbench.layout import Layout
from epbench.parallel.communication import Axis

__all__ = ["ParallelDims"]


@dataclass(frozen=True)
class ParallelDims:
    """The layout's degrees together with the meshes and this process's place in them."""

    layout: Layout
    world: DeviceMesh
    dense: DeviceMesh  # (dp_replicate, fsdp, tp)
    data: DeviceMesh  # (data, cp, tp)
    expert: DeviceMesh  # (dp_replicate, efsdp, ep, etp)

    @classmethod
    def build(cls, layout: Layout, *, device: torch.device) -> "ParallelDims":
        """Makes all process groups of a layout; every rank of the world calls it with the same layout."""
        world_size = dist.get_world_size()
        if layout.world_size != world_size:
            raise ValueError(f"layout {layout.slug} spans {layout.world_size} ranks, the world has {world_size}")
        rep, fsdp = layout.dp_replicate, layout.dp_shard * layout.cp
        world = init_device_mesh(device.type, (world_size,), mesh_dim_names=("world",))

        def view(sizes: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
            return world._unflatten(0, sizes, names)

        return cls(
            layout=layout,
            world=world,
            dense=view((rep, fsdp, layout.tp), ("dp_replicate", "fsdp", "tp")),
            data=view((layout.data_ranks, layout.cp, layout.tp), ("data", "cp", "tp")),
            expert=view((rep, layout.efsdp, layout.ep, layout.etp), ("dp_replicate", "efsdp", "ep", "etp")),
        )

    def axis(self, name: str) -> Axis:
        """``world``, ``tp``, ``cp`` or ``ep`` as collectives need it."""
        mesh = {"world": self.world, "tp": self.dense, "cp": self.data, "ep": self.expert}[name]
        return Axis.of(mesh if name == "world" else mesh[name], name)

    def fsdp_mesh(self, *, experts: bool = False) -> DeviceMesh:
        """What FSDP2 shards over: 1-D, or 2-D (replicate, shard) when dp_replicate > 1."""
        view, name = (self.expert, "efsdp") if experts else (self.dense, "fsdp")
        return view["dp_replicate", name] if self.layout.dp_replicate > 1 else view[name]

    def coordinate(self, name: str) -> int:
        """This process's index on ``data``, ``cp`` or ``tp``."""
        return self.data[name].get_local_rank()
