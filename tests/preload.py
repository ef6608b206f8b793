"""What the server that forks test ranks does once, so that a rank starts in a moment.

A rank unpickles its function from a test file, which asks for the test libraries: a quarter of a second each time.
The first graph of a process costs seconds more than the second, for modules that only a compiler imports and for what
it looks up once: here a small model is compiled before ranks are forked, and what was compiled is forgotten. Where
torch was built for GPUs that is left out, for its autograd threads would not survive the fork.
"""

import gc

import hypothesis  # noqa: F401
import pytest  # noqa: F401
import sympy.tensor.tensor  # type: ignore[import-untyped]  # noqa: F401
import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed.fsdp
import torch.distributed.tensor.experimental
from torch.hub import tqdm  # type: ignore[attr-defined]

import epbench.runner.verify
import epbench.stacks.qwen3_moe  # noqa: F401
from epbench.cells import ModelSpec
from epbench.model.decoder import Block, Decoder
from epbench.model.init import init_weights


def compile_once() -> None:
    """Forward and backward of a block with experts as one graph, without a process group."""
    tqdm.monitor_interval = 0  # no thread may live when ranks are forked
    torch.set_num_threads(1)
    model = Decoder(ModelSpec(num_layers=1, vocab_size=16))
    init_weights(model, seed=0, std=0.02)
    block = model.layers[0]
    assert isinstance(block, Block)
    block.repeatable = torch.compile(block.repeatable, fullgraph=True, backend="aot_eager")  # type: ignore[method-assign]
    tokens = torch.arange(16).view(1, 16)
    model(tokens, tokens, torch.ones(()), model.rope(16, tokens.device)).backward()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


if not torch.backends.cuda.is_built():
    compile_once()
gc.collect()
gc.freeze()  # a rank's collector would otherwise copy this whole heap, page by page
