"""Sizes of what is timed: a layer of Qwen3-30B-A3B on a GPU, less on a CPU, next to nothing where nothing is timed.

``str()`` of a size is part of a benchmark's name, and a name is a series of a history: what computes something else
must be called something else.
"""

from dataclasses import dataclass

import pytest
import torch

__all__ = ["Heads", "Layer", "heads_of", "layers_of"]


@dataclass(frozen=True)
class Layer:
    """A layer with experts as one rank sees it: its tokens, model width, experts, experts a token, expert width."""

    tokens: int
    hidden: int
    experts: int
    top_k: int
    width: int

    def __str__(self) -> str:
        return f"tokens={self.tokens},hidden={self.hidden},experts={self.experts}"


@dataclass(frozen=True)
class Heads:
    """Attention heads over a sequence of ``tokens``, of which each of two ranks holds half."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"tokens={self.tokens},heads={self.heads}"


def layers_of(config: pytest.Config) -> list[Layer]:
    """The published geometry on a GPU, a quarter of its widths and tokens on a CPU."""
    if not _is_timed(config):
        return [Layer(tokens=16, hidden=32, experts=8, top_k=2, width=16)]
    if torch.cuda.is_available():
        return [Layer(tokens, hidden=2048, experts=128, top_k=8, width=768) for tokens in (4096, 8192)]
    return [Layer(tokens, hidden=512, experts=128, top_k=8, width=192) for tokens in (512, 1024)]


def heads_of(config: pytest.Config) -> list[Heads]:
    """As :func:`layers_of`."""
    if not _is_timed(config):
        return [Heads(tokens=16, heads=4, kv_heads=2, head_dim=8)]
    if torch.cuda.is_available():
        return [Heads(tokens, heads=32, kv_heads=4, head_dim=128) for tokens in (4096, 8192)]
    return [Heads(tokens, heads=8, kv_heads=4, head_dim=64) for tokens in (1024, 2048)]


def _is_timed(config: pytest.Config) -> bool:
    """pytest-benchmark times nothing in xdist's workers, even where nobody says so."""
    return not config.getoption("benchmark_disable") and not hasattr(config, "workerinput")
