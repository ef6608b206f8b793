"""The order in which a model is spread over a mesh: TP, EP, CP, compile, checkpointing, FSDP."""

from epbench.cells import Cell
from epbench.model.decoder import Decoder
from epbench.parallel import compat
from epbench.parallel.checkpointing import apply_checkpointing
from epbench.parallel.compilation import Strategy, apply_compile, compile_backend, strategy
from epbench.parallel.context import apply_context_parallel
from epbench.parallel.data import apply_fsdp, holding
from epbench.parallel.expert import apply_expert_parallel
from epbench.parallel.loss import FusedLoss
from epbench.parallel.mesh import ParallelDims
from epbench.parallel.tensor import apply_tensor_parallel

__all__ = ["parallelize"]


def parallelize(model: Decoder, dims: ParallelDims, cell: Cell) -> Strategy | None:
    """Spreads ``model``, on the meta device, over the mesh, in place; returns how it is compiled, if it is."""
    layout, checkpointing = cell.layout, cell.train.activation_checkpointing
    tp = dims.axis("tp") if layout.tp > 1 else None
    if tp is not None:
        apply_tensor_parallel(model, dims.mesh("tp"), tp, split_experts=layout.etp > 1)
    apply_expert_parallel(model, dims, tp)
    if layout.cp > 1:
        apply_context_parallel(model, dims.axis("cp"))
    model.head.loss = FusedLoss(tp)
    held = holding(layout, parameter_meshes=compat.has_parameter_meshes())
    how = strategy(held) if cell.mode == "compiled" else None
    if how is not None:
        apply_compile(model, compile_backend(), how=how, selectively=checkpointing == "selective")
    apply_checkpointing(model, checkpointing, compiled=how is not None, in_pieces=held == "nested")
    apply_fsdp(model, dims, cell.train, held=held)
    return how
