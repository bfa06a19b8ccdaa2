"""GELU by the error function, between the two layers of an MLP, and the same in FP8 as the second of them takes it.

    out = x P(x),  P(x) = (1 + erf(x / sqrt(2))) / 2
    dx = d_out (P(x) + x p(x)),  p(x) = exp(-x^2 / 2) / sqrt(2 pi)

In fp32. Of the tail 1 - P(|x|) = exp(-x^2 / 2) t (a1 + t (a2 + ...)) / 2, t = 1 / (1 + 0.3275911 |x| / sqrt(2)), the
exponential is what the gradient needs too (Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26: erf to
1.5e-7). It takes a third of the instructions of erf, whose pass over bfloat16 does not keep up with memory.

`gelu_fp8` reads x for the largest |out|, then again for out in FP8 (hpc.kernels.e4m3), and never writes out in
bfloat16: 6 bytes a number, where GELU, maximum and cast with transpose, each in a pass of its own, take 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpc.kernels import choose, e4m3, jit, maths, processors, tl, triton
from hpc.kernels.e4m3 import FP8_MAX, Straight, Wrap, allocate, factor, in_e4m3, store_columns, store_rows, tile


@jit
def _share(x):
    """P(x) and exp(-x^2 / 2) of x in fp32."""
    t = 1.0 / (1.0 + 0.23164189 * tl.abs(x))
    e = tl.exp2(x * x * -0.72134752)
    tail = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    tail = 0.5 * e * t * (0.254829592 + t * (-0.284496736 + tail))
    return tl.where(x >= 0.0, 1.0 - tail, tail), e


@jit
def _forward(x_ptr, out_ptr, numbers, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    p, _ = _share(x)
    tl.store(out_ptr + at, (x * p).to(out_ptr.dtype.element_ty), mask=at < numbers)


@jit
def _backward(x_ptr, d_out_ptr, dx_ptr, numbers, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    d_out = tl.load(d_out_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    p, e = _share(x)
    tl.store(dx_ptr + at, (d_out * (p + x * (e * 0.39894228))).to(dx_ptr.dtype.element_ty), mask=at < numbers)


@jit
def _largest(x_ptr, amax_ptr, numbers, run, BLOCK: tl.constexpr):
    """The largest |out| of run tiles into amax_ptr."""
    first = tl.program_id(0).to(tl.int64) * run * BLOCK
    largest = tl.zeros((BLOCK,), tl.int32)  # the bits of numbers that are not negative are in their order, NaN last
    for step in range(0, run):
        at = first + step * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
        p, _ = _share(x)
        largest = tl.maximum(largest, tl.abs(x * p).to(tl.int32, bitcast=True))
    tl.atomic_max(amax_ptr.to(tl.pointer_type(tl.int32), bitcast=True), tl.max(largest, axis=0))


@jit
def _tokens(x_ptr, rows_ptr, left, at, within, by, FP8_MAX: tl.constexpr):
    """Of the tokens whose x is at `at`: stored by rows, and given back in fp32."""
    mask = (left > 0)[:, None] & within[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    p, _ = _share(x)
    return store_rows(rows_ptr, at, mask, x * p * by, FP8_MAX)


@jit
def _quantize(
    x_ptr, amax_ptr, given_ptr, rows_ptr, columns_ptr, inverse_ptr, tokens,
    D: tl.constexpr, GIVEN: tl.constexpr, FP8_MAX: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_L tokens x BLOCK_D channels, to rows_ptr [tokens, D] and columns_ptr [D, tokens]."""
    by = factor(amax_ptr, given_ptr, inverse_ptr, GIVEN, FP8_MAX)
    _, first, col0 = tile(tokens, D, BLOCK_L, BLOCK_D)
    i, j = tl.arange(0, BLOCK_L // 4) * 4, tl.arange(0, BLOCK_D)
    left, within, at = tokens - first - i, col0 + j < D, i[:, None] * D + j[None, :]
    row = first.to(tl.int64)
    x_ptr += row * D + col0
    rows_ptr += row * D + col0
    columns_ptr += col0 * tokens + row
    a = _tokens(x_ptr, rows_ptr, left, at, within, by, FP8_MAX)
    b = _tokens(x_ptr, rows_ptr, left - 1, at + D, within, by, FP8_MAX)
    c = _tokens(x_ptr, rows_ptr, left - 2, at + 2 * D, within, by, FP8_MAX)
    d = _tokens(x_ptr, rows_ptr, left - 3, at + 3 * D, within, by, FP8_MAX)
    store_columns(columns_ptr, tokens, tokens - first, within, a, b, c, d, BLOCK_L, BLOCK_D)


def config() -> dict[str, int]:
    """Numbers of a tile, warps: 16 bytes of bfloat16 for each thread, twice."""
    return {"BLOCK": 2048, "num_warps": 4}


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        out, use = torch.empty_like(x), config()
        if x.numel():
            _forward[(triton.cdiv(x.numel(), use["BLOCK"]),)](x, out, x.numel(), **use)
        return out

    @staticmethod
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return _launch_backward(x, d_out)


class _GeluFp8(torch.autograd.Function):
    """wrap(gelu(x) in FP8), whose gradient is taken as gelu(x)'s."""

    @staticmethod
    def forward(ctx, x, given, wrap):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        d, tokens, use = x.shape[-1], x.numel() // x.shape[-1], config()
        amax = torch.zeros(1, dtype=torch.float32, device=x.device)
        made, programs = allocate(1, tokens, d, amax)
        if programs:
            tiles = triton.cdiv(x.numel(), use["BLOCK"])
            run = triton.cdiv(tiles, processors(x) * 16)
            _largest[(triton.cdiv(tiles, run),)](x, amax, x.numel(), run, **use)
            _quantize[(programs,)](
                x, amax, given, made.rows_ND, made.columns_DN, made.scale_inv, tokens,
                D=d, GIVEN=given is not None, FP8_MAX=FP8_MAX, **e4m3.config(),
            )  # fmt: skip
        return wrap(made)

    @staticmethod
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return _launch_backward(x, d_out.reshape(x.shape)), None, None


def _launch_backward(x: Tensor, d_out: Tensor) -> Tensor:
    dx, use = torch.empty_like(x), config()
    if x.numel():
        _backward[(triton.cdiv(x.numel(), use["BLOCK"]),)](x, d_out.contiguous(), dx, x.numel(), **use)
    return dx


def gelu(x: Tensor, *, kernels: str = "auto") -> Tensor:
    """Of any shape; of x's type, as the gradient."""
    if choose(kernels, x) == "torch":
        return gelu_reference(x)
    return _Gelu.apply(x.contiguous())


def gelu_fp8(
    x: Tensor, *, wrap: Wrap, fp8_scale: Tensor | None = None, kernels: str = "auto"
) -> Tensor:
    """What wrap makes of gelu(x) in FP8, tokens [.., D] as rows: wrap and fp8_scale as hpc.kernels.modulate's
    gated_modulate_fp8 has them."""
    if choose(kernels, x) == "torch":
        wide_ND = gelu_reference(x.to(maths(x))).flatten(0, -2)
        return Straight.apply(wide_ND, in_e4m3(wide_ND, fp8_scale), wrap)
    return _GeluFp8.apply(x.contiguous(), fp8_scale, wrap)


def gelu_reference(x: Tensor) -> Tensor:
    """In plain torch, in fp32 or fp64."""
    return torch.nn.functional.gelu(x.to(maths(x))).to(x.dtype)
