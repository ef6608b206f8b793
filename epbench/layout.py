"""Parallelism layouts: degrees, slugs both ways, legality in words, and all legal layouts of a world.

Two views of one world, both row-major over the same ranks (facts 3)::

    dense    (dp_replicate, dp_shard, cp, tp)          FSDP of dense weights over dp_shard x cp
    expert   (dp_replicate, efsdp, ep[, etp])          FSDP of experts over efsdp

so the expert axis is the innermost block and stays inside a node whenever ep <= GPUs per node.
"""

from dataclasses import dataclass

__all__ = ["Layout"]


@dataclass(frozen=True, order=True)
class Layout:
    """Degrees of the mesh axes. ``etp`` is 1 (experts never split on their hidden axis) or ``tp``."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1

    @property
    def world_size(self) -> int:
        """Ranks: the product of the dense view."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that read different sequences: dp_replicate x dp_shard."""
        return self.dp_replicate * self.dp_shard

    @property
    def efsdp(self) -> int:
        """Ranks that FSDP shards one expert's weights over (meaningful for legal layouts only)."""
        return self.dp_shard * self.cp * self.tp // (self.ep * self.etp)

    @property
    def slug(self) -> str:
        """Canonical name, e.g. ``dp2-tp2-ep4``; axes of degree 1 are left out, one rank is ``dp1``."""
        names = (("rep", self.dp_replicate), ("dp", self.dp_shard), ("cp", self.cp), ("tp", self.tp))
        experts = (("ep", self.ep), ("etp", self.etp))
        return "-".join(f"{name}{degree}" for name, degree in names + experts if degree > 1) or "dp1"
