"""torch.compile of every block, in the largest pieces that FSDP leaves whole.

Where FSDP gathers a block's weights before the block and nothing happens inside it, the **whole block** is one
graph. Where the experts are an FSDP unit of their own (``nested``, see :mod:`epbench.parallel.data`), their hooks
must run in eager code in the middle of the block; then three **pieces** are compiled and woven around the hooks: up
to the experts, the experts, and from them on. Which it is follows from the layout and from what FSDP2 of this torch
can do, and is recorded.

Either way each graph is whole (``fullgraph``): a graph break is an error and not a slow-down. The number of
routed rows changes in every step. Inside a graph it is an unknown size that the dispatch op introduces; where it
enters a piece its dim is marked dynamic. So no count causes a recompile, but for a piece's first time without rows.

All ranks compile the same graphs. On GPU machines, with their many cores, they do so side by side. Ranks on CPU
share its few cores, so there one compiles at a time and the others find its result in the cache: half the time
on two cores with four ranks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor

from epbench.model.decoder import Block, Decoder
from epbench.model.moe import Routed
from epbench.parallel.checkpointing import selective
from epbench.parallel.data import Holding

__all__ = ["Strategy", "apply_compile", "compile_backend", "strategy"]

Backend = str | Callable[..., Any]
Strategy = Literal["whole block", "woven around the experts' FSDP hooks"]


def strategy(held: Holding) -> Strategy:
    """How blocks are compiled, given how their experts are held."""
    return "woven around the experts' FSDP hooks" if held == "nested" else "whole block"


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


class _Compiler:
    """``torch.compile`` with what all blocks share."""

    def __init__(self, backend: Backend, *, selectively: bool) -> None:
        self._backend, self._selectively = backend, selectively

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        function = selective(function) if self._selectively else function
        compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, backend=self._backend)
        return compiled

    def experts(self, forward: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        compiled = self(forward)

        def experts(rows: Tensor, offsets: Tensor) -> Tensor:
            _dynamic((rows,))
            out: Tensor = compiled(rows, offsets)
            return out

        return experts

    def merge(self, merge: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Routed], Tensor]:
        compiled = self(merge)

        def merged(h: Tensor, y: Tensor, routed: Routed) -> Tensor:
            _dynamic((y, *routed.state[1:]))
            out: Tensor = compiled(h, y, routed._replace(rows=y))  # the rows are not needed any more
            return out

        return merged


def _replace(owner: Any, **functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        setattr(owner, name, function)


def _weave(block: Block, compiler: _Compiler) -> None:
    if block.moe is None:
        _replace(block, dense=compiler(block.dense))
        return
    _replace(block, route=compiler(block.route), merge=compiler.merge(block.merge))
    _replace(block.moe.experts, forward=compiler.experts(block.moe.experts.forward))


def apply_compile(model: Decoder, backend: Backend, *, how: Strategy, selectively: bool) -> None:
    """Compiles every block, in place; ``selectively`` checkpoints activations inside the graphs."""
    torch._dynamo.config.capture_scalar_outputs = True
    compiler = _Compiler(backend, selectively=selectively)
    for block in model.layers:
        assert isinstance(block, Block)
        if how == "whole block":
            _replace(block, repeatable=compiler(block.repeatable))
        else:
            _weave(block, compiler)
