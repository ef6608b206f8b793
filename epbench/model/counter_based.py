"""Random numbers that are a function of a counter and a key: any rank makes any part of a sequence alone.

The generator is splitmix64 (Steele, Lea, Flood, OOPSLA 2014), of which the counter-th output is computed directly.
Its integers are the same on every device.
"""

import hashlib

import torch
from torch import Tensor

__all__ = ["key_of", "logical_shift", "splitmix64", "uniform"]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def key_of(text: str) -> int:
    """A 64-bit key, signed as torch has it, that ``text`` names a sequence by."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def logical_shift(z: Tensor, bits: int) -> Tensor:
    """int64 ``z`` shifted right, zeros coming in; torch alone repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(counter: Tensor, key: int) -> Tensor:
    """64 random bits for each entry of the int64 ``counter``."""
    z = counter * _signed(0x9E3779B97F4A7C15) + key
    z = (z ^ logical_shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ logical_shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ logical_shift(z, 31)


def uniform(counter: Tensor, key: int) -> Tensor:
    """float64 above 0, at most 1, of 53 random bits each."""
    return (logical_shift(splitmix64(counter, key), 11).to(torch.float64) + 0.5) * 2.0**-53
