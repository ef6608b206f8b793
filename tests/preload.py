"""What the server that forks test ranks imports once, so that a rank starts in a moment."""

import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed.fsdp  # noqa: F401

import epbench.runner.verify
import epbench.stacks.qwen3_moe  # noqa: F401
