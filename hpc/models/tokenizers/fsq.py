"""Finite scalar quantisation: a latent of few channels is rounded to few levels a channel, and that is its token.

Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023, https://arxiv.org/abs/2309.15505, with the
numbers of cosmos_predict1 4ed35fa: tokenizer/modules/quantizers.py (FSQuantizer). For a channel of L levels, with
h = L // 2 and half = (L - 1) x 1.001 / 2:

    bounded = tanh(z + atanh(o / half)) x half - o,   o = 1/2 for an even L, else 0
    level   = round(bounded) + h                      0 ... L - 1, ties to even
    code    = (level - h) / h                         what the decoder sees
    id      = sum over channels of level x basis,     basis = 1, L0, L0 x L1, ...

Ids are made in int32 from bounded values in float32, whatever the type of z: bfloat16 holds 2 % of 64,000 ids.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EPSILON = 1e-3


class FSQ(nn.Module):
    """[8, 8, 8, 5, 5, 5] makes 64,000 ids."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.size = math.prod(levels)
        bases = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("basis", torch.tensor(bases, dtype=torch.int32), persistent=False)
        self.register_buffer("level_count", torch.tensor(levels, dtype=torch.int32), persistent=False)

    def bounded(self, z: Tensor) -> Tensor:
        """z [..., channels] -> what is rounded to levels, float32 or what z has more."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        half = (self.level_count - 1) * (1 + EPSILON) / 2
        offset = torch.where(self.level_count % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def levels_of(self, z: Tensor) -> Tensor:
        """z [..., channels] -> rounded levels from -h to L - 1 - h; the gradient is that of no rounding."""
        bounded = self.bounded(z)
        return bounded + (bounded.round() - bounded).detach()

    def ids_of(self, levels: Tensor) -> Tensor:
        """Rounded levels [..., channels] -> ids int32 [...]."""
        return ((levels.int() + self.level_count // 2) * self.basis).sum(-1, dtype=torch.int32)

    def forward(self, z_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns codes [B, channels, T, H, W] in the type of z, with a gradient, and ids int32 [B, T, H, W]."""
        levels = self.levels_of(z_BCTHW.movedim(1, -1))
        codes = levels / (self.level_count // 2)
        return codes.movedim(-1, 1).to(z_BCTHW.dtype), self.ids_of(levels.detach())

    def codes(self, ids_BTHW: Tensor) -> Tensor:
        """ids, any integers [B, T, H, W] -> codes float32 [B, channels, T, H, W]. Raises ValueError for ids that do not
        exist, and for what is not integers."""
        if ids_BTHW.is_floating_point():
            raise ValueError(f"ids are integers; these are {ids_BTHW.dtype}, which may have rounded them")
        if not torch.compiler.is_compiling() and ids_BTHW.numel():
            low, high = (int(end) for end in torch.aminmax(ids_BTHW))
            if low < 0 or high >= self.size:
                raise ValueError(f"ids from {low} to {high}: levels {list(self.levels)} have 0 to {self.size - 1}")
        levels = ids_BTHW.int()[..., None] // self.basis % self.level_count
        half = self.level_count // 2
        return ((levels - half) / half).movedim(-1, 1)
