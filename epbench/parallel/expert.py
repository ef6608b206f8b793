"""Expert parallelism of a whole decoder: the style of :mod:`epbench.parallel.styles` that a layout asks for."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from epbench.model.decoder import Block, Decoder
from epbench.parallel.communication import Axis
from epbench.parallel.mesh import ParallelDims
from epbench.parallel.styles import ExpertParallel, ExpertTensorParallel, TensorParallel

__all__ = ["apply_expert_parallel"]


def _style(dims: ParallelDims, tp: Axis | None) -> tuple[DeviceMesh, ParallelStyle] | None:
    layout = dims.layout
    if layout.ep > 1 and layout.etp > 1:
        return dims.mesh("ep", "etp"), ExpertTensorParallel(dims.axis("ep"), tp)
    if layout.ep > 1:
        return dims.mesh("ep"), ExpertParallel(dims.axis("ep"))
    return (dims.mesh("etp"), TensorParallel(tp)) if layout.etp > 1 else None


def apply_expert_parallel(model: Decoder, dims: ParallelDims, tp: Axis | None) -> None:
    """Spreads the experts of every MoE block; nothing to do at ep = etp = 1. ``tp`` is the axis that etp equals."""
    chosen = _style(dims, tp)
    for block in model.layers:
        assert isinstance(block, Block)
        if block.moe is not None and chosen is not None:
            parallelize_module(block.moe, *chosen)
