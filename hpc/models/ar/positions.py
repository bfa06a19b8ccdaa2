"""Where a token stands: angles of the 3D rotary embedding, and the fixed absolute positions of video2world models.

Both are tables over the latent frames, rows and columns in raster order, with a row of zeros in front for the token
that begins a video, and rows of zeros behind, up to the padded length (cosmos_predict1 4ed35fa:
autoregressive/modules/embedding.py, RotaryPositionEmbeddingPytorchV2 and SinCosPosEmbAxisTE).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpc.models.ar.presets import Preset, Yarn


def rope_angles(preset: Preset) -> Tensor:
    """float32 [length, head_dim]: what cos and sin are taken of; its halves are equal (rotate-half).

    Of each half t, h and w have 22, 21 and 21 of 64 columns: h and w get head_dim // 6 * 2 dimensions each, t the rest.
    """
    across = preset.head_dim // 6 * 2
    dims = (preset.head_dim - 2 * across, across, across)
    grids = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in preset.shape), indexing="ij")
    halves = []
    for axis, (dim, grid) in enumerate(zip(dims, grids, strict=True)):
        frequencies = 1.0 / preset.rope_base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        if preset.yarn is not None:
            # upstream takes the original rows for both h and w; they differ where a latent frame is not square
            original = preset.yarn.original[min(axis, 1)]
            frequencies = frequencies * _stretched(frequencies, preset.yarn, original)
        halves.append(grid.flatten()[:, None] * frequencies)
    return _placed(torch.cat(halves * 2, -1), preset)


def _stretched(frequencies: Tensor, yarn: Yarn, original: int) -> Tensor:
    """Factors: 1 for frequencies with `fast` turns and more over the original length, 1 / scale for those with `slow`
    and less, a ramp between."""
    fast, slow = (2 * math.pi * turns / original for turns in (yarn.fast, yarn.slow))
    keep = ((frequencies - slow) / (fast - slow)).clamp(0, 1)
    return (1 - keep) / yarn.scale + keep


def absolute(preset: Preset) -> Tensor:
    """bfloat16 [length, dim]: sines, then cosines, of t, then of h, then of w; h and w get dim // 6 * 2 columns each.
    The table is rounded to bfloat16 whatever the model computes in, as published."""
    across = preset.dim // 6 * 2
    dims = (preset.dim - 2 * across, across, across)
    columns = []
    for axis, (dim, count) in enumerate(zip(dims, preset.shape, strict=True)):
        omega = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
        angles = torch.arange(count, dtype=torch.float64)[:, None] * omega
        table = torch.cat([angles.sin(), angles.cos()], 1).bfloat16()
        view = [1, 1, 1, dim]
        view[axis] = count
        columns.append(table.view(view).expand(*preset.shape, dim))
    return _placed(torch.cat(columns, -1).flatten(0, 2), preset)


def _placed(rows: Tensor, preset: Preset) -> Tensor:
    table = rows.new_zeros(preset.length, rows.shape[1])
    table[preset.first : preset.first + len(rows)] = rows
    return table


def zigzag(table: Tensor, rank: int, ranks: int, dim: int = 0) -> Tensor:
    """A context-parallel rank's part of a sequence: chunks rank and 2 ranks - 1 - rank of 2 ranks, so that each has as
    much causal attention to do (megatron-core's and transformer-engine's order)."""
    if ranks == 1:
        return table
    chunks = table.chunk(2 * ranks, dim)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]], dim)
