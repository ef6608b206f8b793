"""What the server that forks test ranks imports once, so that a rank starts in a moment.

A rank unpickles its function from a test file, which asks for the test libraries: a quarter of a second each time.
"""

import hypothesis  # noqa: F401
import pytest  # noqa: F401
import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed.fsdp  # noqa: F401

import epbench.runner.verify
import epbench.stacks.qwen3_moe  # noqa: F401
