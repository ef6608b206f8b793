"""torch.compile, woven around the experts' FSDP unit.

The block is compiled in the pieces that the model is cut into: up to the experts, the experts, and from them
on. FSDP's hooks of the experts run between the pieces, in eager code, on torch 2.11 and 2.13 alike. The number
of routed rows changes in every step, so that dim is marked dynamic where it enters a piece; everything else is
static. Each piece is one graph (``fullgraph``): a graph break is an error and not a slow-down.

All ranks compile the same graphs. On GPU machines, with their many cores, they do so side by side. Ranks on CPU
share its few cores, so there one compiles at a time and the others find its result in the cache: half the time
on two cores with four ranks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor

from epbench.model.decoder import Block, Decoder
from epbench.model.moe import Routed

__all__ = ["STRATEGY", "apply_compile", "compile_backend"]

Backend = str | Callable[..., Any]

STRATEGY = "pieces woven around the experts' FSDP hooks, fullgraph"


def _dynamic(tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _inductor_in_turn(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    with FileLock(Path(cache_dir()) / "in-turn.lock"), config.patch(force_non_lazy_backward_lowering=True):
        return cast("Callable[..., Any]", compile_fx(graph, example_inputs))


def compile_backend() -> Backend:
    """Inductor, in turn where ranks share a CPU."""
    return _inductor_in_turn if dist.get_backend() == "gloo" else "inductor"


def _compiled_experts(forward: Callable[..., Tensor], backend: Backend) -> Callable[[Tensor, Tensor], Tensor]:
    compiled = torch.compile(forward, fullgraph=True, backend=backend)

    def experts(rows: Tensor, offsets: Tensor) -> Tensor:
        _dynamic((rows,))
        return compiled(rows, offsets)

    return experts


def _compiled_merge(merge: Callable[..., Tensor], backend: Backend) -> Callable[[Tensor, Tensor, Routed], Tensor]:
    compiled = torch.compile(merge, fullgraph=True, backend=backend)

    def merged(h: Tensor, y: Tensor, routed: Routed) -> Tensor:
        _dynamic((y, *routed.state[1:]))
        return compiled(h, y, routed._replace(rows=y))  # the rows are not needed any more

    return merged


def apply_compile(model: Decoder, backend: Backend) -> None:
    """Compiles every block, in place."""
    torch._dynamo.config.capture_scalar_outputs = True
    for block in model.layers:
        assert isinstance(block, Block)
        replace: dict[str, Any] = {"dense": torch.compile(block.dense, fullgraph=True, backend=backend)}
        if block.moe is not None:
            replace = {
                "route": torch.compile(block.route, fullgraph=True, backend=backend),
                "merge": _compiled_merge(block.merge, backend),
            }
            setattr(block.moe.experts, "forward", _compiled_experts(block.moe.experts.forward, backend))  # noqa: B010  (a method may not be assigned to)
        for name, function in replace.items():
            setattr(block, name, function)
