"""Per-head RMSNorm of queries and keys, then rotary embedding: one pass over q and k, forward and backward.

For a head x of D channels, the weight w of its norm and the angles of its token (c = cos, s = sin, D/2 of each):

    r = 1 / sqrt(mean(x^2) + eps)        n = x * r * w
    y[:D/2] = n[:D/2] * c - n[D/2:] * s  y[D/2:] = n[D/2:] * c + n[:D/2] * s       (rotate-half)

    dn = the same rotation of dy by -angle,  g = dn * w,  h = x * r
    dx = r * (g - h * mean(g * h)),  dw = sum over tokens and heads of dn * h

All in fp32, whatever the tensors hold. The halves of three-axis embeddings (44/42/42 of time, height, width) are the
same thing with another table: column j of the table has the angle of channels j and j + D/2. Without a table it is the
norm alone, as cross attention takes it.

A head's D channels are two tiles of D/2, so that the rotation never leaves a thread. In the forward a program takes
whole tokens: all their heads share one row of the table. In the backward it takes a few heads of many tokens: the sums
for dw stay in its registers, are written once and added in the order of the programs: the same bits each time. r is
computed again there.

`qkv_norm_rope` takes what megatron-core's linear_qkv gives, [.., groups, (heads per group + 2) * D] with the queries,
the key and the value of a group side by side: q, k and v leave it contiguous, as cuDNN's attention wants them, and
their gradients come back into one packed tensor without a split, a cat or a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpc.kernels import apart, choose, jit, maths, processors, tl, triton


@jit
def _forward_heads(
    x_ptr, y_ptr, weight_ptr, c, s, eps, group_stride, head_stride,
    PER_GROUP: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """All H heads of one token: x_ptr and y_ptr point to its first; y's heads are contiguous."""
    eps = tl.cast(eps, tl.float32)
    col = tl.arange(0, BLOCK_C)[None, :]
    for first in tl.static_range(0, H, BLOCK_H):
        head = first + tl.arange(0, BLOCK_H)[:, None]
        mask = (head < H) & (col < HALF)
        at = (head // PER_GROUP) * group_stride + (head % PER_GROUP) * head_stride + col
        a = tl.load(x_ptr + at, mask=mask, other=0.0)
        b = tl.load(x_ptr + at + HALF, mask=mask, other=0.0)
        if NORM:
            a, b = a.to(tl.float32), b.to(tl.float32)
            r = tl.rsqrt(tl.sum(a * a + b * b, axis=1)[:, None] / (2 * HALF) + eps)
            a *= r * tl.load(weight_ptr + col, mask=col < HALF, other=0.0).to(tl.float32)
            b *= r * tl.load(weight_ptr + col + HALF, mask=col < HALF, other=0.0).to(tl.float32)
        if ROPE:
            a, b = a * c - b * s, b * c + a * s
        out = head * (2 * HALF) + col
        tl.store(y_ptr + out, a.to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(y_ptr + out + HALF, b.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _forward(
    q_ptr, k_ptr, v_ptr, q_out_ptr, k_out_ptr, v_out_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
    tokens, inner, eps,
    q_outer, q_inner, q_group, q_head, k_outer, k_inner, k_head, v_outer, v_inner, v_head,
    table_outer, table_inner, per_program,
    PER_GROUP: tl.constexpr, HQ: tl.constexpr, HK: tl.constexpr, HALF: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, ROPE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK_C)[None, :]
    first = tl.program_id(0) * per_program
    for step in range(0, tl.minimum(per_program, tokens - first)):
        token = first + step
        o, i, n = (token // inner).to(tl.int64), (token % inner).to(tl.int64), token.to(tl.int64)
        c, s = 0.0, 0.0
        if ROPE:
            at = o * table_outer + i * table_inner + col
            c = tl.load(cos_ptr + at, mask=col < HALF, other=0.0).to(tl.float32)
            s = tl.load(sin_ptr + at, mask=col < HALF, other=0.0).to(tl.float32)
        _forward_heads(q_ptr + o * q_outer + i * q_inner, q_out_ptr + n * (HQ * 2 * HALF), q_weight_ptr, c, s, eps,
                       q_group, q_head, PER_GROUP, HQ, HALF, True, ROPE, BLOCK_Q, BLOCK_C)  # fmt: skip
        if K:
            _forward_heads(k_ptr + o * k_outer + i * k_inner, k_out_ptr + n * (HK * 2 * HALF), k_weight_ptr, c, s, eps,
                           k_head, 0, 1, HK, HALF, True, ROPE, BLOCK_K, BLOCK_C)  # fmt: skip
        if V:
            _forward_heads(v_ptr + o * v_outer + i * v_inner, v_out_ptr + n * (HK * 2 * HALF), v_ptr, c, s, eps,
                           v_head, 0, 1, HK, HALF, False, False, BLOCK_K, BLOCK_C)  # fmt: skip


@jit
def _backward_heads(
    x_ptr, dy_ptr, dx_ptr, weight_ptr, cos_ptr, sin_ptr, sums_ptr, first, tokens, inner, eps,
    x_outer, x_inner, x_group, x_head, dy_outer, dy_inner, dy_group, dy_head, dx_token, dx_group, dx_head,
    table_outer, table_inner,
    PER_GROUP: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The heads first .. first + BLOCK_H of H, of this program's tokens; their part of dw, [2 * HALF], to sums_ptr."""
    eps = tl.cast(eps, tl.float32)
    program, programs = tl.program_id(0), tl.num_programs(0)
    col = tl.arange(0, BLOCK_C)[None, :]
    head = first + tl.arange(0, BLOCK_H)[:, None]
    mask = (head < H) & (col < HALF)
    group, slot = head // PER_GROUP, head % PER_GROUP
    x_at = group * x_group + slot * x_head + col
    dy_at = group * dy_group + slot * dy_head + col
    dx_at = group * dx_group + slot * dx_head + col
    if NORM:
        # the weights and the table as tiles of equal rows: a row alone, of no fewer numbers than there are threads, is
        # kept by Triton 3.6 in a layout of its own, and every tile that meets it turned in shared memory, step by step
        w_a = tl.load(weight_ptr + 0 * head + col, mask=mask, other=0.0).to(tl.float32)
        w_b = tl.load(weight_ptr + 0 * head + col + HALF, mask=mask, other=0.0).to(tl.float32)
        dw_a = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
        dw_b = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    for step in range(0, tl.cdiv(tokens - program, programs)):
        token = program + step * programs
        o, i, n = (token // inner).to(tl.int64), (token % inner).to(tl.int64), token.to(tl.int64)
        dy = dy_ptr + o * dy_outer + i * dy_inner + dy_at
        da = tl.load(dy, mask=mask, other=0.0)
        db = tl.load(dy + HALF, mask=mask, other=0.0)
        if NORM:
            x = x_ptr + o * x_outer + i * x_inner + x_at
            a = tl.load(x, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)
            da, db = da.to(tl.float32), db.to(tl.float32)
            if ROPE:
                at = o * table_outer + i * table_inner + 0 * head + col
                c = tl.load(cos_ptr + at, mask=mask, other=0.0).to(tl.float32)
                s = tl.load(sin_ptr + at, mask=mask, other=0.0).to(tl.float32)
                da, db = da * c + db * s, db * c - da * s
            r = tl.rsqrt(tl.sum(a * a + b * b, axis=1)[:, None] / (2 * HALF) + eps)
            a, b = a * r, b * r
            dw_a += da * a
            dw_b += db * b
            da, db = da * w_a, db * w_b
            mean = tl.sum(da * a + db * b, axis=1)[:, None] / (2 * HALF)
            da, db = r * (da - a * mean), r * (db - b * mean)
        dx = dx_ptr + n * dx_token + dx_at
        tl.store(dx, da.to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dx + HALF, db.to(dx_ptr.dtype.element_ty), mask=mask)
    if NORM:
        at = (tl.program_id(1) * programs + program) * (2 * HALF) + tl.arange(0, BLOCK_C)
        inside = tl.arange(0, BLOCK_C) < HALF
        tl.store(sums_ptr + at, tl.sum(dw_a, axis=0), mask=inside)
        tl.store(sums_ptr + at + HALF, tl.sum(dw_b, axis=0), mask=inside)


@jit
def _backward(
    q_ptr, k_ptr, dq_ptr, dk_ptr, dv_ptr, q_out_ptr, k_out_ptr, v_out_ptr,
    q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, sums_ptr,
    tokens, inner, eps,
    q_outer, q_inner, q_group, q_head, k_outer, k_inner, k_head,
    dq_outer, dq_inner, dq_group, dq_head, dk_outer, dk_inner, dk_head, dv_outer, dv_inner, dv_head,
    q_out_token, q_out_group, q_out_head, k_out_token, k_out_head,
    table_outer, table_inner,
    PER_GROUP: tl.constexpr, HQ: tl.constexpr, HK: tl.constexpr, HALF: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, ROPE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (p, c): the tokens p, p + programs, ... of tile c of the heads: those of q, then of k, then of v.

    sums_ptr [tiles of q and k, programs, 2 * HALF].
    """
    Q_TILES: tl.constexpr = (HQ + BLOCK_Q - 1) // BLOCK_Q
    K_TILES: tl.constexpr = (HK + BLOCK_K - 1) // BLOCK_K
    tile = tl.program_id(1)
    if tile < Q_TILES:
        _backward_heads(
            q_ptr, dq_ptr, q_out_ptr, q_weight_ptr, cos_ptr, sin_ptr, sums_ptr, tile * BLOCK_Q, tokens, inner, eps,
            q_outer, q_inner, q_group, q_head, dq_outer, dq_inner, dq_group, dq_head,
            q_out_token, q_out_group, q_out_head, table_outer, table_inner,
            PER_GROUP, HQ, HALF, True, ROPE, BLOCK_Q, BLOCK_C)  # fmt: skip
    elif tile < Q_TILES + K_TILES:
        if K:
            _backward_heads(
                k_ptr, dk_ptr, k_out_ptr, k_weight_ptr, cos_ptr, sin_ptr, sums_ptr, (tile - Q_TILES) * BLOCK_K,
                tokens, inner, eps, k_outer, k_inner, k_head, 0, dk_outer, dk_inner, dk_head, 0,
                k_out_token, k_out_head, 0, table_outer, table_inner,
                1, HK, HALF, True, ROPE, BLOCK_K, BLOCK_C)  # fmt: skip
    else:
        if V:
            _backward_heads(
                dv_ptr, dv_ptr, v_out_ptr, k_weight_ptr, cos_ptr, sin_ptr, sums_ptr,
                (tile - Q_TILES - K_TILES) * BLOCK_K, tokens, inner, eps,
                0, 0, 0, 0, dv_outer, dv_inner, dv_head, 0, k_out_token, k_out_head, 0, table_outer, table_inner,
                1, HK, HALF, False, False, BLOCK_K, BLOCK_C)  # fmt: skip


@jit
def _sum_rows(
    sums_ptr, q_out_ptr, k_out_ptr, q_rows, k_rows,
    D: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sums_ptr [q_rows + k_rows, D]: the sums of the first rows to q_out_ptr, of the others to k_out_ptr."""
    col = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    second = tl.program_id(1)
    rows = tl.where(second == 0, q_rows, k_rows)
    sums_ptr += tl.where(second == 0, 0, q_rows) * D
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        total += tl.load(sums_ptr + row * D + col[None, :], mask=(row < rows) & (col < D)[None, :], other=0.0)
    if second == 0:
        tl.store(q_out_ptr + col, tl.sum(total, axis=0).to(q_out_ptr.dtype.element_ty), mask=col < D)
    else:
        if K:
            tl.store(k_out_ptr + col, tl.sum(total, axis=0).to(k_out_ptr.dtype.element_ty), mask=col < D)


def config(*, backward: bool) -> dict[str, int]:
    """Heads of a tile at most, warps; of a program: tokens (forward), or how many are on a multiprocessor (backward).

    The backward's tiles are small: it holds two inputs, and as many sums for the weights as a tile has numbers.
    """
    return {"heads": 8, "warps": 2, "waves": 10} if backward else {"heads": 16, "warps": 4, "tokens": 1}


def _table(cos: Tensor | None, seq_dim: int) -> tuple[int, int]:
    """(outer, inner) strides of a table [S, D/2] or [B, S, D/2] for tokens whose dimension seq_dim is the sequence."""
    if cos is None:
        return 0, 0
    batch, seq = (0, cos.stride(0)) if cos.ndim == 2 else (cos.stride(0), cos.stride(1))
    return (seq, batch) if seq_dim == 0 else (batch, seq)


def _launch_forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, weights: tuple[Tensor, Tensor | None],
    cos: Tensor | None, sin: Tensor | None, eps: float, seq_dim: int,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """q [o, i, groups, per group, D], k and v [o, i, groups, D] of any strides but the last -> contiguous, rotated."""
    outer, inner, groups, per_group, d = q.shape
    q_out = q.new_empty(outer, inner, groups * per_group, d)
    k_out = None if k is None else k.new_empty(k.shape)
    v_out = None if v is None else v.new_empty(v.shape)
    tokens, hk = outer * inner, 1 if k is None else k.shape[2]
    use = config(backward=False)
    if tokens:
        _forward[(triton.cdiv(tokens, use["tokens"]),)](
            q, k, v, q_out, k_out, v_out, *weights, cos, sin, tokens, inner, eps,
            *q.stride()[:4], *(k.stride()[:3] if k is not None else (0, 0, 0)),
            *(v.stride()[:3] if v is not None else (0, 0, 0)), *_table(cos, seq_dim), use["tokens"],
            PER_GROUP=per_group, HQ=groups * per_group, HK=hk, HALF=d // 2, K=k is not None, V=v is not None,
            ROPE=cos is not None, BLOCK_Q=min(triton.next_power_of_2(groups * per_group), use["heads"]),
            BLOCK_K=min(triton.next_power_of_2(hk), use["heads"]), BLOCK_C=triton.next_power_of_2(d // 2),
            num_warps=use["warps"],
        )  # fmt: skip
    return q_out, k_out, v_out


def _launch_backward(
    q: Tensor, k: Tensor | None, grads: tuple[Tensor, Tensor | None, Tensor | None],
    outs: tuple[Tensor, Tensor | None, Tensor | None], weights: tuple[Tensor, Tensor | None],
    cos: Tensor | None, sin: Tensor | None, eps: float, seq_dim: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Writes the gradients of q, k, v (shapes as in _launch_forward; grads[0] too) to outs, whose outer and inner
    dimensions are contiguous; those of the weights."""
    outer, inner, groups, per_group, d = q.shape
    dq, dk, dv = (g if g is None or g.stride(-1) == 1 else g.contiguous() for g in grads)
    q_out, k_out, v_out = outs
    tokens, hk, nothing = outer * inner, 1 if k is None else k.shape[2], (0, 0, 0)
    use = config(backward=True)
    hq = groups * per_group
    block_q, block_k = (min(triton.next_power_of_2(h), use["heads"]) for h in (hq, hk))
    q_tiles, k_tiles = triton.cdiv(hq, block_q), 0 if k is None else triton.cdiv(hk, block_k)
    tiles = q_tiles + k_tiles * (1 if dv is None else 2)
    programs = max(min(tokens, processors(q) * use["waves"] // tiles), 1)
    sums = torch.empty(q_tiles + k_tiles, programs, d, dtype=torch.float32, device=q.device)
    dw_q = (torch.empty_like if tokens else torch.zeros_like)(weights[0])
    dw_k = None if weights[1] is None else (torch.empty_like if tokens else torch.zeros_like)(weights[1])
    if tokens:
        _backward[(programs, tiles)](
            q, k, dq, dk, dv, q_out, k_out, v_out, *weights, cos, sin, sums, tokens, inner, eps,
            *q.stride()[:4], *(k.stride()[:3] if k is not None else nothing),
            *dq.stride()[:4], *(dk.stride()[:3] if dk is not None else nothing),
            *(dv.stride()[:3] if dv is not None else nothing),
            *q_out.stride()[1:4], *(k_out.stride()[1:3] if k_out is not None else (0, 0)), *_table(cos, seq_dim),
            PER_GROUP=per_group, HQ=hq, HK=hk, HALF=d // 2, K=k is not None, V=dv is not None,
            ROPE=cos is not None, BLOCK_Q=block_q, BLOCK_K=block_k, BLOCK_C=triton.next_power_of_2(d // 2),
            num_warps=use["warps"],
        )  # fmt: skip
        _sum_rows[(triton.cdiv(d, 8), 1 if dw_k is None else 2)](
            sums, dw_q, dw_k, q_tiles * programs, k_tiles * programs,
            D=d, K=dw_k is not None, BLOCK_R=256, BLOCK_C=8, num_warps=4,
        )  # fmt: skip
    return dw_q, dw_k


class _Head(torch.autograd.Function):
    """The norm alone of x [o, i, H, D]."""

    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        x = x if x.stride(-1) == 1 else x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _launch_forward(x.unsqueeze(3), None, None, (weight, None), None, None, eps, 0)[0]

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dw, _ = _launch_backward(
            x.unsqueeze(3), None, (dy.unsqueeze(3), None, None), (dx.unsqueeze(3), None, None), (weight, None),
            None, None, ctx.eps, 0,
        )  # fmt: skip
        return dx, dw, None


class _Heads(torch.autograd.Function):
    """Of q [o, i, H, D] and k [o, i, HK, D]."""

    @staticmethod
    def forward(ctx, q, k, q_weight, k_weight, cos, sin, eps, seq_dim):  # type: ignore[no-untyped-def]
        q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
        ctx.save_for_backward(q, k, q_weight, k_weight, cos, sin)
        ctx.eps, ctx.seq_dim = eps, seq_dim
        return _launch_forward(q.unsqueeze(3), k, None, (q_weight, k_weight), cos, sin, eps, seq_dim)[:2]

    @staticmethod
    def backward(ctx, dq, dk):  # type: ignore[no-untyped-def]
        q, k, q_weight, k_weight, cos, sin = ctx.saved_tensors
        dx, dxk = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k))
        dw_q, dw_k = _launch_backward(
            q.unsqueeze(3), k, (dq.unsqueeze(3), dk, None), (dx.unsqueeze(3), dxk, None), (q_weight, k_weight),
            cos, sin, ctx.eps, ctx.seq_dim,
        )  # fmt: skip
        return dx, dxk, dw_q, dw_k, None, None, None, None


class _Packed(torch.autograd.Function):
    """Of qkv [o, i, groups, heads per group + 2, D], contiguous."""

    @staticmethod
    def forward(ctx, qkv, q_weight, k_weight, cos, sin, eps, seq_dim):  # type: ignore[no-untyped-def]
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)
        ctx.eps, ctx.seq_dim = eps, seq_dim
        q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        return _launch_forward(q, k, v, (q_weight, k_weight), cos, sin, eps, seq_dim)

    @staticmethod
    def backward(ctx, dq, dk, dv):  # type: ignore[no-untyped-def]
        qkv, q_weight, k_weight, cos, sin = ctx.saved_tensors
        dx = torch.empty_like(qkv)
        q, k = qkv[..., :-2, :], qkv[..., -2, :]
        parts = dx[..., :-2, :], dx[..., -2, :], dx[..., -1, :]
        dq = dq.unflatten(2, q.shape[2:4])
        grads, weights = (dq, dk, dv), (q_weight, k_weight)
        dw_q, dw_k = _launch_backward(q, k, grads, parts, weights, cos, sin, ctx.eps, ctx.seq_dim)
        return dx, dw_q, dw_k, None, None, None, None


def _check(d: int, cos: Tensor | None, sin: Tensor | None, shape_BS: tuple[int, int], layout: str) -> None:
    if layout not in ("sbhd", "bshd"):
        raise ValueError(f"layout: {layout!r} is neither 'sbhd' nor 'bshd'")
    if d % 2:
        raise ValueError(f"heads of {d} channels cannot be rotated by halves: the width must be even")
    if (cos is None) != (sin is None):
        raise ValueError("give both cos and sin, or neither (the norm alone)")
    b, s = shape_BS
    if cos is not None and sin is not None:
        for name, table in (("cos", cos), ("sin", sin)):
            if table.shape not in ((s, d // 2), (b, s, d // 2)):
                raise ValueError(
                    f"{name} is {list(table.shape)}; for {b} x {s} tokens and heads of {d} channels a table is "
                    f"[{s}, {d // 2}], or [{b}, {s}, {d // 2}]"
                )
        if cos.stride() != sin.stride() or cos.stride(-1) != 1:
            raise ValueError(f"cos and sin lie differently in memory: strides {cos.stride()} and {sin.stride()}")


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor | None, sin: Tensor | None, *,
    eps: float, layout: str = "sbhd", kernels: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Normed and rotated queries and keys, contiguous, of the same shapes and types.

    q [S, B, HQ, D] and k [S, B, HK, D] (layout sbhd) or [B, S, H, D] (bshd), of any strides; weights [D]; cos and sin
    [S, D/2] or [B, S, D/2], best fp32, alike in memory; None: no rotation. Gradients for q, k and the weights.
    """
    seq_dim = layout.index("s") if layout in ("sbhd", "bshd") else 0
    _check(q.shape[-1], cos, sin, (q.shape[1 - seq_dim], q.shape[seq_dim]), layout)
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {list(q.shape)} and k {list(k.shape)} differ in more than their heads")
    if choose(kernels, q) == "torch":
        return qk_norm_rope_reference(q, k, q_weight, k_weight, cos, sin, eps=eps, layout=layout)
    return _Heads.apply(*apart(q, k, q_weight, k_weight, cos, sin), eps, seq_dim)


def qkv_norm_rope(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor | None, sin: Tensor | None, *,
    groups: int, eps: float, layout: str = "sbhd", kernels: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q, k, v, contiguous, from megatron's packed [S, B, groups * (heads per group + 2) * D] (bshd: [B, S, ...]).

    In a group: its queries, its key, its value (megatron-core 0.16.1, SelfAttention.get_query_key_value_tensors).
    `groups` are those of this rank. q is [.., HQ, D] with the heads in the order of the groups, k and v [.., groups,
    D]; v is copied unchanged. The rest as in qk_norm_rope.
    """
    d = q_weight.shape[0]
    if qkv.ndim != 3 or qkv.shape[2] % (groups * d) or qkv.shape[2] < 3 * groups * d:
        raise ValueError(f"qkv is {list(qkv.shape)}; its last dimension holds {groups} groups of (1 or more + 2) x {d}")
    qkv = qkv.unflatten(2, (groups, -1, d))
    seq_dim = layout.index("s") if layout in ("sbhd", "bshd") else 0
    _check(d, cos, sin, (qkv.shape[1 - seq_dim], qkv.shape[seq_dim]), layout)
    if choose(kernels, qkv) == "torch":
        q, k, v = qkv[..., :-2, :].flatten(2, 3), qkv[..., -2, :], qkv[..., -1, :]
        q, k = qk_norm_rope_reference(q, k, q_weight, k_weight, cos, sin, eps=eps, layout=layout)
        return q, k, v.contiguous()
    return _Packed.apply(*apart(qkv, q_weight, k_weight, cos, sin), eps, seq_dim)


def head_norm(x: Tensor, weight: Tensor, *, eps: float, kernels: str = "auto") -> Tensor:
    """RMSNorm of each head of x [.., .., H, D] by the weight [D], as the queries and keys of cross attention take it,
    whose lengths differ."""
    if choose(kernels, x) == "torch":
        return _norm_reference(x, weight, eps)
    return _Head.apply(*apart(x, weight), eps)


def _norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(maths(x, weight))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)


def qk_norm_rope_reference(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor | None, sin: Tensor | None, *,
    eps: float, layout: str = "sbhd",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The formula in plain torch, in fp32, or in fp64 for tensors of it."""

    def one(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.to(maths(x, weight))
        n = _norm_reference(wide, weight, eps)
        if cos is not None and sin is not None:
            c, s = (t if t.ndim == 3 else t[None] for t in (cos.to(n.dtype), sin.to(n.dtype)))
            c, s = (t.transpose(0, 1)[:, :, None] if layout == "sbhd" else t[:, :, None] for t in (c, s))
            a, b = n.chunk(2, dim=-1)
            n = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
        return n.to(x.dtype)

    return one(q, q_weight), one(k, k_weight)
