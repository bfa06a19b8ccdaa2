"""Gated residual, LayerNorm, adaLN modulation: what stands between two parts of a diffusion transformer, in one pass.

For a token with residual x, output y of the part before, and its group's gate, shift, scale (D channels each; a group
is what shares them: a sample, or a latent frame of one, L tokens):

    z = x + gate * y                                  (rounded to x's type: the residual stream goes on with it)
    r = 1 / sqrt(var(z) + eps),  h = (z - mean(z)) * r
    out = h * (1 + scale) + shift

    g = d_out * (1 + scale),  dz' = dz + r * (g - mean(g) - h * mean(g * h))
    dx = dz',  dy = gate * dz',  d_gate = sum dz' * y,  d_scale = sum d_out * h,  d_shift = sum d_out   (over the group)

All in fp32. Forward: x and y read, z and out written; backward: z, y, d_out and dz read, dx and dy written, and nothing
else of that size (mean and r are kept from the forward, 8 bytes a token). A program takes a run of one group's tokens,
so that gate, shift and scale are read once for all of them and the sums for their gradients stay in registers; each
program writes its sums, which are added in their order: the same bits each time. The next token's rows are on their
way while one is worked on.

`gated_modulate_fp8` gives out in FP8 (hpc.kernels.e4m3). It writes z with the statistics first, then reads z alone
again: 10 bytes an element, where out in bf16, its maximum and the cast with transpose take 14.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpc.kernels import apart, choose, e4m3, jit, maths, processors, tl, triton
from hpc.kernels.e4m3 import (
    FP8_MAX,
    Quantized,
    Straight,
    Wrap,
    allocate,
    factor,
    in_e4m3,
    store_columns,
    store_rows,
    tile,
)


@jit
def _forward(
    x_ptr, y_ptr, gate_ptr, shift_ptr, scale_ptr, z_ptr, out_ptr, mean_ptr, r_ptr, amax_ptr,
    tokens, run, eps, gate_stride, shift_stride, scale_stride,
    D: tl.constexpr, GATED: tl.constexpr, OUT: tl.constexpr, AMAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (group, part) takes the tokens part * run ... of the group's. AMAX: the largest |out| into amax_ptr."""
    eps = tl.cast(eps, tl.float32)
    group, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * run
    col = tl.arange(0, BLOCK)
    inside = col < D
    shift = tl.load(shift_ptr + group * shift_stride + col, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(scale_ptr + group * scale_stride + col, mask=inside, other=0.0).to(tl.float32)
    gate = 0.0
    if GATED:
        gate = tl.load(gate_ptr + group * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    last = tl.minimum(first + run, tokens)
    row = group * tokens + first
    at = row * D + col
    x = tl.load(x_ptr + at, mask=inside & (first < last), other=0.0)
    y = x
    if GATED:
        y = tl.load(y_ptr + at, mask=inside & (first < last), other=0.0)
    largest = tl.zeros((BLOCK,), tl.int32)  # the bits of numbers that are not negative are in their order, NaN last
    for step in range(0, last - first):
        now, at_now = row + step, at
        z = x.to(tl.float32)
        if GATED:
            z = (z + gate * y.to(tl.float32)).to(z_ptr.dtype.element_ty)
            at += D
            more = inside & (first + step + 1 < last)
            x = tl.load(x_ptr + at, mask=more, other=0.0)
            y = tl.load(y_ptr + at, mask=more, other=0.0)
            tl.store(z_ptr + at_now, z, mask=inside)
            z = z.to(tl.float32)
        else:
            at += D
            x = tl.load(x_ptr + at, mask=inside & (first + step + 1 < last), other=0.0)
        mean = tl.sum(z, axis=0) / D
        h = tl.where(inside, z - mean, 0.0)
        r = tl.rsqrt(tl.sum(h * h, axis=0) / D + eps)
        out = h * r * scale + shift
        tl.store(mean_ptr + now, mean)
        tl.store(r_ptr + now, r)
        if OUT:
            tl.store(out_ptr + at_now, out.to(out_ptr.dtype.element_ty), mask=inside)
        if AMAX:
            largest = tl.maximum(largest, tl.where(inside, tl.abs(out).to(tl.int32, bitcast=True), 0))
    if AMAX:
        tl.atomic_max(amax_ptr.to(tl.pointer_type(tl.int32), bitcast=True), tl.max(largest, axis=0))


@jit
def _backward(
    z_ptr, y_ptr, gate_ptr, scale_ptr, mean_ptr, r_ptr, dz_ptr, d_out_ptr, dx_ptr, dy_ptr, sums_ptr,
    tokens, run, gate_stride, scale_stride,
    D: tl.constexpr, GATED: tl.constexpr, STREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sums_ptr [groups, parts, 3, D]: this program's of d_shift, d_scale, d_gate. STREAM: there is a dz."""
    group, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * run
    col = tl.arange(0, BLOCK)
    inside = col < D
    scale = 1.0 + tl.load(scale_ptr + group * scale_stride + col, mask=inside, other=0.0).to(tl.float32)
    gate = 0.0
    if GATED:
        gate = tl.load(gate_ptr + group * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    last = tl.minimum(first + run, tokens)
    row = group * tokens + first
    at = row * D + col
    more = inside & (first < last)
    z, d_out = tl.load(z_ptr + at, mask=more, other=0.0), tl.load(d_out_ptr + at, mask=more, other=0.0)
    y, dz = z, z
    if GATED:
        y = tl.load(y_ptr + at, mask=more, other=0.0)
    if STREAM:
        dz = tl.load(dz_ptr + at, mask=more, other=0.0)
    d_shift = tl.zeros((BLOCK,), tl.float32)
    d_scale = tl.zeros((BLOCK,), tl.float32)
    d_gate = tl.zeros((BLOCK,), tl.float32)
    for step in range(0, last - first):
        at_now = at
        mean, r = tl.load(mean_ptr + row + step), tl.load(r_ptr + row + step)
        h = tl.where(inside, (z.to(tl.float32) - mean) * r, 0.0)
        d = d_out.to(tl.float32)
        y_now, dz_now = y.to(tl.float32), dz.to(tl.float32)
        at += D
        more = inside & (first + step + 1 < last)
        z, d_out = tl.load(z_ptr + at, mask=more, other=0.0), tl.load(d_out_ptr + at, mask=more, other=0.0)
        if GATED:
            y = tl.load(y_ptr + at, mask=more, other=0.0)
        if STREAM:
            dz = tl.load(dz_ptr + at, mask=more, other=0.0)
        d_shift += d
        d_scale += d * h
        g = d * scale
        dx = r * (g - tl.sum(g, axis=0) / D - h * (tl.sum(g * h, axis=0) / D))
        if STREAM:
            dx += dz_now
        if GATED:
            d_gate += dx * y_now
            tl.store(dy_ptr + at_now, (gate * dx).to(dy_ptr.dtype.element_ty), mask=inside)
        tl.store(dx_ptr + at_now, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    sums_ptr += (group * tl.num_programs(1) + tl.program_id(1)) * (3 * D) + col
    tl.store(sums_ptr, d_shift, mask=inside)
    tl.store(sums_ptr + D, d_scale, mask=inside)
    if GATED:
        tl.store(sums_ptr + 2 * D, d_gate, mask=inside)


@jit
def _tokens(
    z_ptr, mean_ptr, r_ptr, rows_ptr, row, left, at, within, shift, scale, by, FP8_MAX: tl.constexpr
):  # fmt: skip
    """Of the tokens row, whose z is at `at`: stored by rows, and given back in fp32."""
    inside = left > 0
    mask = inside[:, None] & within[None, :]
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + row, mask=inside, other=0.0)[:, None]
    r = tl.load(r_ptr + row, mask=inside, other=0.0)[:, None]
    out = (z - mean) * r * scale[None, :] + shift[None, :]
    return store_rows(rows_ptr, at, mask, out * by, FP8_MAX)


@jit
def _quantize(
    z_ptr, shift_ptr, scale_ptr, mean_ptr, r_ptr, amax_ptr, given_ptr, rows_ptr, columns_ptr, inverse_ptr,
    tokens, all_tokens, shift_stride, scale_stride,
    D: tl.constexpr, GIVEN: tl.constexpr, FP8_MAX: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_L tokens of one group x BLOCK_D channels, to rows_ptr [all_tokens, D] and columns_ptr [D, ..]."""
    by = factor(amax_ptr, given_ptr, inverse_ptr, GIVEN, FP8_MAX)
    group, first, col0 = tile(tokens, D, BLOCK_L, BLOCK_D)
    i, j = tl.arange(0, BLOCK_L // 4) * 4, tl.arange(0, BLOCK_D)
    left, within = tokens - first - i, col0 + j < D
    shift = tl.load(shift_ptr + group * shift_stride + col0 + j, mask=within, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(scale_ptr + group * scale_stride + col0 + j, mask=within, other=0.0).to(tl.float32)
    # addresses in a tile are 32 bits wide, from that of its first number on
    row, at = group * tokens + first, i[:, None] * D + j[None, :]
    z_ptr += row * D + col0
    rows_ptr += row * D + col0
    columns_ptr += col0 * all_tokens + row
    mean_ptr += row
    r_ptr += row
    a = _tokens(z_ptr, mean_ptr, r_ptr, rows_ptr, i, left, at, within, shift, scale, by, FP8_MAX)
    b = _tokens(z_ptr, mean_ptr, r_ptr, rows_ptr, i + 1, left - 1, at + D, within, shift, scale, by, FP8_MAX)
    c = _tokens(z_ptr, mean_ptr, r_ptr, rows_ptr, i + 2, left - 2, at + 2 * D, within, shift, scale, by, FP8_MAX)
    d = _tokens(z_ptr, mean_ptr, r_ptr, rows_ptr, i + 3, left - 3, at + 3 * D, within, shift, scale, by, FP8_MAX)
    store_columns(columns_ptr, all_tokens, tokens - first, within, a, b, c, d, BLOCK_L, BLOCK_D)


@jit
def _sum_parts(
    sums_ptr, d_shift_ptr, d_scale_ptr, d_gate_ptr, parts,
    D: tl.constexpr, GATED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sums_ptr [groups, parts, 3, D] -> [groups, D] of each; program (group, columns, which)."""
    group, which = tl.program_id(0), tl.program_id(2)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums_ptr += group.to(tl.int64) * parts * (3 * D) + which * D
    total = tl.zeros((BLOCK_P, BLOCK), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)[:, None]
        mask = (part < parts) & (col < D)[None, :]
        total += tl.load(sums_ptr + part * (3 * D) + col[None, :], mask=mask, other=0.0)
    whole = tl.sum(total, axis=0)
    out = group * D + col
    if which == 0:
        tl.store(d_shift_ptr + out, whole.to(d_shift_ptr.dtype.element_ty), mask=col < D)
    elif which == 1:
        tl.store(d_scale_ptr + out, whole.to(d_scale_ptr.dtype.element_ty), mask=col < D)
    else:
        if GATED:
            tl.store(d_gate_ptr + out, whole.to(d_gate_ptr.dtype.element_ty), mask=col < D)


def config(d: int, *, backward: bool) -> dict[str, int]:
    """Warps, and programs per multiprocessor, for d channels; tests/bench_kernels.py tries others."""
    wide = triton.next_power_of_2(d)
    # numbers of a row in each thread: 16; the backward also holds three sums for each, and has 8 where warps allow
    warps = min(max(wide // (256 if backward else 512), 1), 16)
    return {"warps": warps, "waves": 2 if backward else 8}


def _runs(x_GLD: Tensor, waves: int) -> tuple[int, int]:
    """(tokens of a program, programs of a group)."""
    groups, tokens, _ = x_GLD.shape
    parts = min(max(processors(x_GLD) * waves // max(groups, 1), 1), max(tokens, 1))
    run = triton.cdiv(tokens, parts)
    return run, triton.cdiv(tokens, max(run, 1))


def _launch_forward(
    x_GLD: Tensor, y_GLD: Tensor | None, gate_GD: Tensor | None, shift_GD: Tensor, scale_GD: Tensor, eps: float,
    amax: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """(z, out, mean, r); with amax (fp32 zero) its value instead of out."""
    groups, tokens, d = x_GLD.shape
    z_GLD = x_GLD if y_GLD is None else torch.empty_like(x_GLD)
    out_GLD = torch.empty_like(x_GLD) if amax is None else None
    mean, r = (torch.empty(groups * tokens, dtype=torch.float32, device=x_GLD.device) for _ in range(2))
    use = config(d, backward=False)
    run, parts = _runs(x_GLD, use["waves"])
    if x_GLD.numel():
        _forward[(groups, parts)](
            x_GLD, y_GLD, gate_GD, shift_GD, scale_GD, z_GLD, out_GLD, mean, r, amax, tokens, run, eps,
            0 if gate_GD is None else gate_GD.stride(0), shift_GD.stride(0), scale_GD.stride(0),
            D=d, GATED=y_GLD is not None, OUT=amax is None, AMAX=amax is not None,
            BLOCK=triton.next_power_of_2(d), num_warps=use["warps"],
        )  # fmt: skip
    return z_GLD, out_GLD, mean, r


def _launch_backward(
    z: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, mean: Tensor, r: Tensor,
    dz: Tensor | None, d_out: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, y, gate, shift, scale."""
    dz, d_out = None if dz is None else dz.contiguous(), d_out.contiguous()
    groups, tokens, d = z.shape
    use = config(d, backward=True)
    run, parts = _runs(z, use["waves"])
    dx, dy = torch.empty_like(z), None if y is None else torch.empty_like(y)
    sums = torch.empty(groups, parts, 3, d, dtype=torch.float32, device=z.device)
    new = torch.empty if z.numel() else torch.zeros
    d_gate, d_shift, d_scale = (None if t is None else new(groups, d, dtype=t.dtype, device=t.device)
                                for t in (gate, shift, scale))  # fmt: skip
    if z.numel():
        _backward[(groups, parts)](
            z, y, gate, scale, mean, r, dz, d_out, dx, dy, sums, tokens, run,
            0 if gate is None else gate.stride(0), scale.stride(0),
            D=d, GATED=y is not None, STREAM=dz is not None, BLOCK=triton.next_power_of_2(d), num_warps=use["warps"],
        )  # fmt: skip
        _sum_parts[(groups, triton.cdiv(d, 64), 2 if gate is None else 3)](
            sums, d_shift, d_scale, d_gate, parts, D=d, GATED=gate is not None, BLOCK_P=64, BLOCK=64, num_warps=4
        )
    return dx, dy, d_gate, d_shift, d_scale


class _Modulate(torch.autograd.Function):
    """(z, out) of x, y, gate, shift, scale; y and gate None: z is x."""

    @staticmethod
    def forward(ctx, x, y, gate, shift, scale, eps):  # type: ignore[no-untyped-def]
        z, out, mean, r = _launch_forward(x, y, gate, shift, scale, eps)
        ctx.save_for_backward(z, y, gate, shift, scale, mean, r)
        return (x.view_as(x) if y is None else z), out

    @staticmethod
    def backward(ctx, dz, d_out):  # type: ignore[no-untyped-def]
        return *_launch_backward(*ctx.saved_tensors, dz, d_out), None


def _check(x_GLD: Tensor, y_GLD: Tensor | None, **vectors_GD: Tensor) -> None:
    if x_GLD.ndim != 3 or (y_GLD is not None and y_GLD.shape != x_GLD.shape):
        given = None if y_GLD is None else list(y_GLD.shape)
        raise ValueError(f"x and y are [groups, tokens, channels], alike; given: {list(x_GLD.shape)} and {given}")
    groups, _, d = x_GLD.shape
    for name, vector in vectors_GD.items():
        if vector.shape != (groups, d):
            raise ValueError(f"{name} is {list(vector.shape)}; for x {list(x_GLD.shape)} it must be [{groups}, {d}]")


def _rows(*tensors: Tensor) -> list[Tensor]:
    """Vectors of groups may be chunks of something wider; their channels must lie side by side."""
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]


def gated_modulate(
    x_GLD: Tensor, y_GLD: Tensor, gate_GD: Tensor, shift_GD: Tensor, scale_GD: Tensor, *, eps: float = 1e-6,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(z, out), both of x's type: the residual stream after the gated part, and its modulated norm.

    x and y [G, L, D]; gate, shift, scale [G, D], in fp32 or as x, of any row stride (chunks of one tensor). For
    adaLN by sample G is the batch and L all its tokens; for conditioning by latent frame G is batch * frames. Gradients
    for all five.
    """
    _check(x_GLD, y_GLD, gate=gate_GD, shift=shift_GD, scale=scale_GD)
    if choose(kernels, x_GLD) == "torch":
        return gated_modulate_reference(x_GLD, y_GLD, gate_GD, shift_GD, scale_GD, eps=eps)
    return _Modulate.apply(*apart(x_GLD.contiguous(), y_GLD.contiguous(), *_rows(gate_GD, shift_GD, scale_GD)), eps)


def modulate(
    x_GLD: Tensor, shift_GD: Tensor, scale_GD: Tensor, *, eps: float = 1e-6, kernels: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(x, its modulated norm), for what has no part before it: the first of a block. Whoever goes on with the x that is
    given back, instead of the one given, has the residual stream's gradient added where the norm's is made."""
    _check(x_GLD, None, shift=shift_GD, scale=scale_GD)
    if choose(kernels, x_GLD) == "torch":
        return x_GLD, modulate_reference(x_GLD, shift_GD, scale_GD, eps=eps)
    return _Modulate.apply(*apart(x_GLD.contiguous(), None, None, *_rows(shift_GD, scale_GD)), eps)


def _launch_quantize(
    z_GLD: Tensor, shift_GD: Tensor, scale_GD: Tensor, mean: Tensor, r: Tensor, amax: Tensor, given: Tensor | None
) -> Quantized:
    groups, tokens, d = z_GLD.shape
    made, programs = allocate(groups, tokens, d, amax)
    if programs:
        _quantize[(programs,)](
            z_GLD, shift_GD, scale_GD, mean, r, amax, given, made.rows_ND, made.columns_DN, made.scale_inv, tokens,
            groups * tokens, shift_GD.stride(0), scale_GD.stride(0),
            D=d, GIVEN=given is not None, FP8_MAX=FP8_MAX, **e4m3.config(),
        )  # fmt: skip
    return made


class _ModulateFp8(torch.autograd.Function):
    """(z, wrap(out in FP8)); the gradient of the second is taken as out's. y and gate None: z is x."""

    @staticmethod
    def forward(ctx, x, y, gate, shift, scale, eps, given, wrap):  # type: ignore[no-untyped-def]
        amax = torch.zeros(1, dtype=torch.float32, device=x.device)
        z, _, mean, r = _launch_forward(x, y, gate, shift, scale, eps, amax)
        ctx.save_for_backward(z, y, gate, shift, scale, mean, r)
        out = wrap(_launch_quantize(z, shift, scale, mean, r, amax, given))
        return (x.view_as(x) if y is None else z), out

    @staticmethod
    def backward(ctx, dz, d_out):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors  # once: where they are computed again, only the first time has them
        return *_launch_backward(*saved, dz, d_out.reshape(saved[0].shape)), None, None, None


def gated_modulate_fp8(
    x_GLD: Tensor, y_GLD: Tensor, gate_GD: Tensor, shift_GD: Tensor, scale_GD: Tensor, *,
    wrap: Wrap, fp8_scale: Tensor | None = None, eps: float = 1e-6, kernels: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """gated_modulate with out in FP8: (z, what wrap makes of it), with gradients for all five.

    wrap makes the tensor that goes on, of as many elements as x: transformer-engine's Float8Tensor of x's type, whose
    gradient comes back in x's type. It may keep the rest (amax). fp8_scale, fp32 [1]: out is multiplied by it (delayed
    scaling); None: 448 / max |out| (current scaling; 1 where that is 0 or not finite). Numbers beyond 448 become 448,
    NaN stays. out is not rounded to x's type before it is scaled.
    """
    _check(x_GLD, y_GLD, gate=gate_GD, shift=shift_GD, scale=scale_GD)
    if choose(kernels, x_GLD) == "torch":
        return gated_modulate_fp8_reference(
            x_GLD, y_GLD, gate_GD, shift_GD, scale_GD, wrap=wrap, fp8_scale=fp8_scale, eps=eps
        )
    given = apart(x_GLD.contiguous(), y_GLD.contiguous(), *_rows(gate_GD, shift_GD, scale_GD))
    return _ModulateFp8.apply(*given, eps, fp8_scale, wrap)


def modulate_fp8(
    x_GLD: Tensor, shift_GD: Tensor, scale_GD: Tensor, *,
    wrap: Wrap, fp8_scale: Tensor | None = None, eps: float = 1e-6, kernels: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """modulate with out in FP8: see gated_modulate_fp8."""
    _check(x_GLD, None, shift=shift_GD, scale=scale_GD)
    if choose(kernels, x_GLD) == "torch":
        return x_GLD, _quantized_reference(x_GLD, shift_GD, scale_GD, wrap, fp8_scale, eps)
    given = apart(x_GLD.contiguous(), None, None, *_rows(shift_GD, scale_GD))
    return _ModulateFp8.apply(*given, eps, fp8_scale, wrap)


def modulate_reference(x_GLD: Tensor, shift_GD: Tensor, scale_GD: Tensor, *, eps: float = 1e-6) -> Tensor:
    """The formula in plain torch, in fp32, or in fp64 for tensors of it."""
    wide = x_GLD.to(maths(x_GLD))
    h = torch.nn.functional.layer_norm(wide, wide.shape[-1:], eps=eps)
    return (h * (1 + scale_GD.to(wide.dtype)[:, None]) + shift_GD.to(wide.dtype)[:, None]).to(x_GLD.dtype)


def gated_modulate_reference(
    x_GLD: Tensor, y_GLD: Tensor, gate_GD: Tensor, shift_GD: Tensor, scale_GD: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The same with the gated residual; z is rounded before it is normed, as it is stored."""
    dtype = maths(x_GLD)
    z = (x_GLD.to(dtype) + gate_GD.to(dtype)[:, None] * y_GLD.to(dtype)).to(x_GLD.dtype)
    return z, modulate_reference(z, shift_GD, scale_GD, eps=eps)


def gated_modulate_fp8_reference(
    x_GLD: Tensor, y_GLD: Tensor, gate_GD: Tensor, shift_GD: Tensor, scale_GD: Tensor, *,
    wrap: Wrap, fp8_scale: Tensor | None = None, eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same in FP8."""
    z = gated_modulate_reference(x_GLD, y_GLD, gate_GD, shift_GD, scale_GD, eps=eps)[0]
    return z, _quantized_reference(z, shift_GD, scale_GD, wrap, fp8_scale, eps)


def _quantized_reference(
    z: Tensor, shift_GD: Tensor, scale_GD: Tensor, wrap: Wrap, fp8_scale: Tensor | None,
    eps: float,
) -> Tensor:  # fmt: skip
    wide_ND = modulate_reference(z.to(maths(z)), shift_GD, scale_GD, eps=eps).flatten(0, 1)
    return Straight.apply(wide_ND, in_e4m3(wide_ND, fp8_scale), wrap)
