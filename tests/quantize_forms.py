"""Another form of the second pass to FP8 than hpc.kernels.modulate's: a thread turns a few tokens' bytes by itself.

The product's form turns a tile of bytes in shared memory, one byte at a time. Here a program reads the tokens of its
tile in TOGETHER parts, every TOGETHER-th token in each, so that one thread has the same channels of as many successive
tokens, whose bytes lie side by side before the tile is turned. (Putting them side by side by shifts is what ptxas 12.8
miscompiles, or dies of.)

    python tests/bench_kernels.py --only modulate_fp8_forms        times it beside the product's, on a GPU

Bytes must be those of the product's form: tests/kernels/test_quantize_forms_kernel.py.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from hpc.kernels import jit, tl, triton
from hpc.kernels.modulate import FP8_MAX, Quantized

TILES = ((32, 128), (32, 256), (64, 64), (64, 128), (64, 256), (128, 64), (128, 128))
"""Tokens x channels."""


@jit
def _part(
    z_ptr, mean_ptr, r_ptr, rows_ptr, row, left, at, within, shift, scale, by, FP8_MAX: tl.constexpr
):  # fmt: skip
    """Tokens row [tokens] of all channels, [tokens, channels] in fp32; in FP8 they are stored by rows. left: tokens of
    the group from each on."""
    inside = left > 0
    mask = inside[:, None] & within[None, :]
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + row, mask=inside, other=0.0)[:, None]
    r = tl.load(r_ptr + row, mask=inside, other=0.0)[:, None]
    out = ((z - mean) * r * scale[None, :] + shift[None, :]) * by
    small = tl.maximum(out, -FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    small = tl.minimum(small, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(rows_ptr + at, small.to(tl.float8e4nv), mask=mask)
    return small


@jit
def _four(
    z_ptr, mean_ptr, r_ptr, rows_ptr, row, step, left, at, within, shift, scale, by,
    D: tl.constexpr, FP8_MAX: tl.constexpr,
):  # fmt: skip
    """Tokens row, row + step, .. of all channels, side by side: [tokens, channels, 2, 2]."""
    a = _part(z_ptr, mean_ptr, r_ptr, rows_ptr, row, left, at, within, shift, scale, by, FP8_MAX)
    row, left, at = row + step, left - step, at + step * D
    b = _part(z_ptr, mean_ptr, r_ptr, rows_ptr, row, left, at, within, shift, scale, by, FP8_MAX)
    row, left, at = row + step, left - step, at + step * D
    c = _part(z_ptr, mean_ptr, r_ptr, rows_ptr, row, left, at, within, shift, scale, by, FP8_MAX)
    row, left, at = row + step, left - step, at + step * D
    d = _part(z_ptr, mean_ptr, r_ptr, rows_ptr, row, left, at, within, shift, scale, by, FP8_MAX)
    return tl.join(tl.join(a, c), tl.join(b, d))


@jit
def _quantize(
    z_ptr, shift_ptr, scale_ptr, mean_ptr, r_ptr, amax_ptr, given_ptr, rows_ptr, columns_ptr, inverse_ptr,
    tokens, all_tokens, shift_stride, scale_stride,
    D: tl.constexpr, GIVEN: tl.constexpr, FP8_MAX: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """As the product's. TOGETHER: 4 or 8."""
    group = tl.program_id(0).to(tl.int64)
    if GIVEN:
        by = tl.load(given_ptr)
    else:
        amax = tl.load(amax_ptr)
        by = tl.where((amax > 0.0) & (amax < float("inf")), FP8_MAX / amax, 1.0)
    if (group == 0) & (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        tl.store(inverse_ptr, 1.0 / by)
    row0, col0 = group * tokens + tl.program_id(1) * BLOCK_L, (tl.program_id(2) * BLOCK_D).to(tl.int64)
    i, j = tl.arange(0, BLOCK_L // TOGETHER), tl.arange(0, BLOCK_D)
    left, within = tokens - tl.program_id(1) * BLOCK_L - i * TOGETHER, col0 + j < D
    shift = tl.load(shift_ptr + group * shift_stride + col0 + j, mask=within, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(scale_ptr + group * scale_stride + col0 + j, mask=within, other=0.0).to(tl.float32)
    z_ptr += row0 * D + col0
    rows_ptr += row0 * D + col0
    row, at = row0 + i * TOGETHER, (i * TOGETHER * D)[:, None] + j[None, :]
    if TOGETHER == 8:
        even = _four(z_ptr, mean_ptr, r_ptr, rows_ptr, row, 2, left, at, within, shift, scale, by, D, FP8_MAX)
        row, left, at = row + 1, left - 1, at + D
        odd = _four(z_ptr, mean_ptr, r_ptr, rows_ptr, row, 2, left, at, within, shift, scale, by, D, FP8_MAX)
        out = tl.join(even, odd)
    else:
        out = _four(z_ptr, mean_ptr, r_ptr, rows_ptr, row, 1, left, at, within, shift, scale, by, D, FP8_MAX)
    small = tl.reshape(out.to(tl.float8e4nv), (BLOCK_L // TOGETHER, BLOCK_D, TOGETHER))
    turned = tl.reshape(tl.permute(small, (1, 0, 2)), (BLOCK_D, BLOCK_L))
    token = tl.arange(0, BLOCK_L)
    at = j[:, None] * all_tokens + token[None, :]
    mask = within[:, None] & (tl.program_id(1) * BLOCK_L + token < tokens)[None, :]
    tl.store(columns_ptr + (col0 * all_tokens + row0) + at, turned, mask=mask)


def launch(
    z_GLD: Tensor, shift_GD: Tensor, scale_GD: Tensor, mean: Tensor, r: Tensor, amax: Tensor, given: Tensor | None,
    *, together: int, tile: tuple[int, int], warps: int,
) -> Quantized:  # fmt: skip
    """In the place of hpc.kernels.modulate._launch_quantize."""
    groups, tokens, d = z_GLD.shape
    rows_ND = torch.empty(groups * tokens, d, dtype=torch.float8_e4m3fn, device=z_GLD.device)
    columns_DN = torch.empty(d, groups * tokens, dtype=torch.float8_e4m3fn, device=z_GLD.device)
    inverse = torch.empty_like(amax)
    _quantize[(groups, triton.cdiv(tokens, tile[0]), triton.cdiv(d, tile[1]))](
        z_GLD, shift_GD, scale_GD, mean, r, amax, given, rows_ND, columns_DN, inverse, tokens, groups * tokens,
        shift_GD.stride(0), scale_GD.stride(0), D=d, GIVEN=given is not None, FP8_MAX=FP8_MAX,
        BLOCK_L=tile[0], BLOCK_D=tile[1], TOGETHER=together, num_warps=warps,
    )  # fmt: skip
    return Quantized(rows_ND, columns_DN, inverse, amax)


def forms() -> dict[str, Callable[..., Quantized]]:
    """By name: "8 tokens, 32 x 256, 4 warps"."""
    return {f"{together} tokens, {tile[0]} x {tile[1]}, {warps} warps":
            functools.partial(launch, together=together, tile=tile, warps=warps)
            for together, tile, warps in itertools.product((4, 8), TILES, (4, 8))}  # fmt: skip
