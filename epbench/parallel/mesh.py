"""The meshes of a layout: views of one world, with a common root so that FSDP2 can join either with tp or ep.

===========  =============================================  ===============================================
view         axes                                           what lives on it
===========  =============================================  ===============================================
dense        dp_replicate, fsdp, tp                         every weight but the experts; fsdp = dp_shard x cp
sequence     dp_shard, cp                                   fsdp in its two parts; cp shares each sequence
expert       dp_replicate, efsdp, ep, etp                   the experts
===========  =============================================  ===============================================

All are row-major over the same ranks (facts 3). A view is built when something first asks for one of its axes,
with its axes of degree 1 left out: a process group that nobody needs costs a communicator of GPU memory and
start-up time. Building one is collective, so all ranks must ask in the same order, as ranks that run one program
do.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from epbench.layout import Layout
from epbench.parallel.communication import Axis

__all__ = ["ParallelDims"]

_ALWAYS = ("fsdp", "efsdp")  # FSDP2 wants a mesh even of one rank


@dataclass(frozen=True)
class ParallelDims:
    """A layout's degrees, its meshes by name, and this process's place in them."""

    layout: Layout
    world: DeviceMesh

    @classmethod
    def build(cls, layout: Layout, *, device: torch.device) -> "ParallelDims":
        """The meshes of ``layout`` over the default process group; every rank calls it with the same layout.

        Raises ValueError if the layout spans another number of ranks than the world has.
        """
        world_size = dist.get_world_size()
        if layout.world_size != world_size:
            raise ValueError(f"layout {layout.slug} spans {layout.world_size} ranks, the world has {world_size}")
        return cls(layout, init_device_mesh(device.type, (world_size,), mesh_dim_names=("world",)))

    def _view(self, of: DeviceMesh, **degrees: int) -> DeviceMesh:
        kept = {name: degree for name, degree in degrees.items() if degree > 1 or name in _ALWAYS}
        return of._unflatten(0, tuple(kept.values()), tuple(kept)) if kept else of

    @cached_property
    def _dense(self) -> DeviceMesh:
        layout = self.layout
        return self._view(self.world, dp_replicate=layout.dp_replicate, fsdp=layout.dp_shard * layout.cp, tp=layout.tp)

    @cached_property
    def _sequence(self) -> DeviceMesh:
        return self._view(self._dense["fsdp"], dp_shard=self.layout.dp_shard, cp=self.layout.cp)

    @cached_property
    def _expert(self) -> DeviceMesh:
        layout = self.layout
        return self._view(
            self.world, dp_replicate=layout.dp_replicate, efsdp=layout.efsdp, ep=layout.ep, etp=layout.etp
        )

    def _holder(self, name: str) -> DeviceMesh:
        if name in ("efsdp", "ep", "etp"):
            return self._expert
        return self._sequence if name in ("dp_shard", "cp") else self._dense

    def mesh(self, *names: str) -> DeviceMesh:
        """The mesh of one axis, or of several of one view in the view's order, e.g. ``mesh("ep", "etp")``.

        Axes: ``world dp_replicate fsdp tp dp_shard cp efsdp ep etp``. Raises ValueError for an axis of degree 1
        (nothing is communicated over it, so it has no group) and for axes of different views.
        """
        if names == ("world",):
            return self.world
        view = next((v for v in map(self._holder, names) if v is not self._dense), None) or self._dense
        missing = [name for name in names if name not in (view.mesh_dim_names or ())]
        if missing:
            raise ValueError(
                f"layout {self.layout.slug} has no mesh over {', '.join(names)}: "
                f"{', '.join(missing)} has degree 1, or belongs to another view"
            )
        return view[names if len(names) > 1 else names[0]]

    def axis(self, name: str) -> Axis:
        """One axis as collectives need it."""
        return Axis.of(self.mesh(name), name)

    def fsdp_mesh(self, *, experts: bool = False) -> DeviceMesh:
        """What FSDP2 shards over: 1-D, or 2-D (replicate, shard) when dp_replicate > 1 (HSDP)."""
        view, name = (self._expert, "efsdp") if experts else (self._dense, "fsdp")
        return view["dp_replicate", name] if self.layout.dp_replicate > 1 else view[name]

    def coordinate(self, name: str) -> int:
        """This process's index on ``data`` (= dp_replicate x dp_shard), ``cp`` or ``tp``; builds no group."""
        layout, rank = self.layout, dist.get_rank()
        return {
            "data": rank // (layout.cp * layout.tp),
            "cp": rank // layout.tp % layout.cp,
            "tp": rank % layout.tp,
        }[name]
