"""Random numbers that depend on what they are for and on nothing else: not on the rank, nor on what was drawn before.

Every draw names what it is for: a seed, a word, and the number of the sample among all that training has taken. So a
resumed run and a run on another number of ranks draw the same numbers for the same sample, bit for bit, and no state of
a generator is saved anywhere.

    start = numbers(seed, "start", sample).integers(last + 1)
    noise = torch.randn(shape, generator=generator("cuda", seed, "noise", sample), device="cuda")
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

Word = int | str


def key(seed: int, *what: Word) -> int:
    """64 bits that name a draw; other words give other bits."""
    text = "\0".join([str(seed), *map(str, what)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def numbers(seed: int, *what: Word) -> np.random.Generator:
    """Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), counter-based."""
    return np.random.Generator(np.random.Philox(key=key(seed, *what)))


def generator(device: str | torch.device, seed: int, *what: Word) -> torch.Generator:
    """For tensors on a device. On GPUs that is Philox too; a CPU's numbers are other ones for the same words.

    Draw for the whole sample before it is split over ranks, so that every layout sees the same.
    """
    return torch.Generator(device).manual_seed(key(seed, *what) >> 1)  # torch takes 63 bits
