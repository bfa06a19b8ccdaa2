"""Numbers that are the same everywhere, made by integer arithmetic from a name: weights and inputs that golden arrays
were computed from, so that those arrays alone are stored."""

from __future__ import annotations

import zlib

import numpy as np


def made(name: str, *shape: int) -> np.ndarray:
    """float32 of this shape, uniform between -1 and 1: splitmix64 of an index, started by the name."""
    x = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    x = (x + np.uint64(zlib.crc32(name.encode()))) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(31))) >> np.uint64(40)  # 24 bits, which float32 holds
    return (x.astype(np.float32) / 2**23 - 1).reshape(shape)


def weight(name: str, *shape: int) -> np.ndarray:
    """A layer's weight or bias by what it is called: of a size that keeps a network's numbers near 1."""
    if len(shape) == 1:
        return made(name, *shape) * np.float32(0.3) + np.float32("norm" in name and name.endswith("weight"))
    return made(name, *shape) * np.float32((3 / np.prod(shape[1:])) ** 0.5)
