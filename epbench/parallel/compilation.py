"""torch.compile, woven around the experts' FSDP unit.

The block is compiled in the pieces that the model is cut into: up to the experts, the experts, and from them
on. FSDP's hooks of the experts run between the pieces, in eager code, on torch 2.11 and 2.13 alike. The number
of routed rows changes in every step, so that dim is marked dynamic where it enters a piece; everything else is
static. Each piece is one graph (``fullgraph``): a graph break is an error and not a slow-down.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from epbench.model.decoder import Block, Decoder
from epbench.model.moe import Routed

__all__ = ["STRATEGY", "apply_compile"]

STRATEGY = "pieces woven around the experts' FSDP hooks, fullgraph"


def _dynamic(tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _compiled_experts(forward: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    compiled = torch.compile(forward, fullgraph=True)

    def experts(rows: Tensor, offsets: Tensor) -> Tensor:
        _dynamic((rows,))
        return compiled(rows, offsets)

    return experts


def _compiled_merge(merge: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Routed], Tensor]:
    compiled = torch.compile(merge, fullgraph=True)

    def merged(h: Tensor, y: Tensor, routed: Routed) -> Tensor:
        _dynamic((y, *routed.state[1:]))
        return compiled(h, y, routed._replace(rows=y))  # the rows are not needed any more

    return merged


def apply_compile(model: Decoder) -> None:
    """Compiles every block, in place."""
    torch._dynamo.config.capture_scalar_outputs = True
    for block in model.layers:
        assert isinstance(block, Block)
        replace: dict[str, Any] = {"dense": torch.compile(block.dense, fullgraph=True)}
        if block.moe is not None:
            replace = {
                "route": torch.compile(block.route, fullgraph=True),
                "merge": _compiled_merge(block.merge),
            }
            setattr(block.moe.experts, "forward", _compiled_experts(block.moe.experts.forward))  # noqa: B010
        for name, function in replace.items():
            setattr(block, name, function)
