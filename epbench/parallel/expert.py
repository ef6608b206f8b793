"""Expert parallelism: experts sharded over ep (on dim 0) and, with etp = tp, over their hidden dim."""

from torch.distributed.tensor import Placement, Shard

from epbench.model.decoder import Block, Decoder
from epbench.parallel.dispatch import AllToAllDispatcher
from epbench.parallel.mesh import ParallelDims
from epbench.parallel.tensor import place

__all__ = ["apply_expert_parallel"]

HIDDEN_DIM = {"w1": 1, "w3": 1, "w2": 2}


def apply_expert_parallel(model: Decoder, dims: ParallelDims) -> None:
    """Shards the experts of every MoE block and gives the block its dispatcher; nothing to do at ep = etp = 1."""
    axes = [name for name, degree in (("ep", dims.layout.ep), ("etp", dims.layout.etp)) if degree > 1]
    if not axes:
        return
    mesh = dims.expert[tuple(axes)] if len(axes) > 1 else dims.expert[axes[0]]
    dispatcher = AllToAllDispatcher(dims.axis("ep")) if dims.layout.ep > 1 else None
    for block in model.layers:
        assert isinstance(block, Block)
        if block.moe is None:
            continue
        for name, hidden_dim in HIDDEN_DIM.items():
            placement: dict[str, Placement] = {"ep": Shard(0), "etp": Shard(hidden_dim)}
            place(block.moe.experts, name, mesh, *[placement[axis] for axis in axes])
        if dispatcher is not None:
            block.moe.dispatcher = dispatcher
