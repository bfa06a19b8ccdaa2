"""Activations in FP8 (e4m3) as transformer-engine's GEMMs take them: by rows, and transposed for the weight gradient.

    small = clip(wide * s, -448, 448),  s = 448 / max |wide| (current scaling), or given (delayed)

s is 1 where the largest number is 0 or not finite; NaN stays NaN.

hpc.kernels.modulate and hpc.kernels.gelu make them in a second pass, a tile of tokens x channels a program. One thread
has the same channels of four successive tokens, whose bytes lie side by side in the transposed tensor: they are joined
before the tile is turned in shared memory, four bytes at a time. (Joined by tl.join: ptxas 12.8 miscompiles shifts of
them, or dies.) Programs that run at the same time take the tiles of the same tokens, so that whole rows are read.
Either is worth 5 % of such an op's time; tests/bench_kernels.py --sweep tries other tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpc.kernels import jit, tl, triton

FP8_MAX = 448.0
"""The largest e4m3 number."""


class Quantized(NamedTuple):
    """An activation in FP8 as transformer-engine's Float8Tensor holds it (_data, _transpose, _scale_inv)."""

    rows_ND: Tensor
    """float8_e4m3fn [tokens, D]."""
    columns_DN: Tensor
    """The same numbers, [D, tokens], contiguous."""
    scale_inv: Tensor
    """fp32 [1]: a number times this is what it stands for."""
    amax: Tensor
    """fp32 [1]: the largest |out| before it was scaled, for delayed scaling's history."""


Wrap = Callable[[Quantized], Tensor]
"""Makes the tensor that goes on, of as many elements as it was: transformer-engine's Float8Tensor. It may keep the rest
(amax)."""


@jit
def tile(tokens, D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr):
    """(group, first token of it, first channel) of this program's tile, channels changing first, groups last."""
    number, across, along = tl.program_id(0), tl.cdiv(D, BLOCK_D), tl.cdiv(tokens, BLOCK_L)
    group = (number // (across * along)).to(tl.int64)
    return group, number // across % along * BLOCK_L, (number % across * BLOCK_D).to(tl.int64)


@jit
def factor(amax_ptr, given_ptr, inverse_ptr, GIVEN: tl.constexpr, FP8_MAX: tl.constexpr):
    """s; the first program stores its inverse."""
    if GIVEN:
        by = tl.load(given_ptr)
    else:
        amax = tl.load(amax_ptr)
        by = tl.where((amax > 0.0) & (amax < float("inf")), FP8_MAX / amax, 1.0)
    if tl.program_id(0) == 0:
        tl.store(inverse_ptr, 1.0 / by)
    return by


@jit
def store_rows(rows_ptr, at, mask, wide, FP8_MAX: tl.constexpr):
    """wide, scaled, is stored; given back within e4m3's range, in fp32: an instruction makes two numbers bytes, side by
    side, and of a row they are other two than of a column."""
    small = tl.maximum(wide, -FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    small = tl.minimum(small, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(rows_ptr + at, small.to(tl.float8e4nv), mask=mask)
    return small


@jit
def store_columns(
    columns_ptr, all_tokens, left, within, a, b, c, d, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """a, b, c, d [BLOCK_L / 4, BLOCK_D]: every fourth of the tile's tokens, from its first, second, .. on. left: tokens
    of the group from the tile's first on; within [BLOCK_D]: which channels there are."""
    small = tl.join(tl.join(a, c), tl.join(b, d)).to(tl.float8e4nv)
    small = tl.reshape(small, (BLOCK_L // 4, BLOCK_D, 4))
    turned = tl.reshape(tl.permute(small, (1, 0, 2)), (BLOCK_D, BLOCK_L))
    i, j = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    tl.store(columns_ptr + j[:, None] * all_tokens + i[None, :], turned, mask=within[:, None] & (i < left)[None, :])


def config() -> dict[str, int]:
    """Tokens and channels of a tile, warps."""
    return {"BLOCK_L": 64, "BLOCK_D": 128, "num_warps": 2}


def allocate(groups: int, tokens: int, d: int, amax: Tensor) -> tuple[Quantized, int]:
    """(what a pass over groups of tokens with d channels fills, its programs)."""
    rows_ND = torch.empty(groups * tokens, d, dtype=torch.float8_e4m3fn, device=amax.device)
    columns_DN = torch.empty(d, groups * tokens, dtype=torch.float8_e4m3fn, device=amax.device)
    use = config()
    programs = groups * triton.cdiv(tokens, use["BLOCK_L"]) * triton.cdiv(d, use["BLOCK_D"])
    inverse = torch.empty_like(amax) if programs else torch.ones_like(amax)
    return Quantized(rows_ND, columns_DN, inverse, amax), programs


def in_e4m3(wide_ND: Tensor, fp8_scale: Tensor | None) -> Quantized:
    """By torch's operators."""
    out_ND = wide_ND.detach()
    amax = out_ND.abs().amax().view(1)
    by = fp8_scale
    if by is None:
        by = torch.where((amax > 0) & amax.isfinite(), FP8_MAX / amax, torch.ones_like(amax))
    rows_ND = (out_ND * by).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return Quantized(rows_ND, rows_ND.t().contiguous(), 1 / by, amax)


class Straight(torch.autograd.Function):
    """wrap(quantized) in the place of `wide`, whose gradient it gets."""

    @staticmethod
    def forward(ctx, wide, quantized, wrap):  # type: ignore[no-untyped-def]
        ctx.shape = wide.shape
        return wrap(quantized)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad.reshape(ctx.shape), None, None
