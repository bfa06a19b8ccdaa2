"""Gated residual: what joins a part of a diffusion transformer to the residual stream where no norm follows at once.

For a token with residual x, output y of the part, and its group's gate (D channels each; a group is what shares a
gate: a sample, or a latent frame of one, L tokens):

    z = x + gate * y

    dx = dz,  dy = gate * dz,  d_gate = sum over the group of dz * y

In fp32, z rounded to x's type. Forward: x and y read, z written; backward: dz and y read, dy written, dx is dz itself.
Programs and sums are as in kernels/modulate.py, which does the same with the norm and modulation that follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpc.kernels import apart, choose, jit, maths, processors, tl, triton


@jit
def _forward(
    x_ptr, y_ptr, gate_ptr, z_ptr, tokens, run, gate_stride, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program (group, part) takes the tokens part * run ... of the group's."""
    group, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * run
    col = tl.arange(0, BLOCK)
    inside = col < D
    gate = tl.load(gate_ptr + group * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    at = (group * tokens + first) * D + col
    for _ in range(0, tl.minimum(run, tokens - first)):
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(z_ptr + at, (x + gate * y).to(z_ptr.dtype.element_ty), mask=inside)
        at += D


@jit
def _backward(
    y_ptr, gate_ptr, dz_ptr, dy_ptr, sums_ptr, tokens, run, gate_stride, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """sums_ptr [groups, parts, D]: this program's of d_gate."""
    group, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * run
    col = tl.arange(0, BLOCK)
    inside = col < D
    gate = tl.load(gate_ptr + group * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    at = (group * tokens + first) * D + col
    d_gate = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, tl.minimum(run, tokens - first)):
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dz = tl.load(dz_ptr + at, mask=inside, other=0.0).to(tl.float32)
        d_gate += dz * y
        tl.store(dy_ptr + at, (gate * dz).to(dy_ptr.dtype.element_ty), mask=inside)
        at += D
    tl.store(sums_ptr + (group * tl.num_programs(1) + tl.program_id(1)) * D + col, d_gate, mask=inside)


def config(d: int) -> dict[str, int]:
    """Warps, and programs per multiprocessor, for d channels; tests/bench_kernels.py tries others."""
    return {"warps": min(max(triton.next_power_of_2(d) // 256, 1), 16), "waves": 8}


def _runs(x_GLD: Tensor) -> tuple[int, int]:
    """(tokens of a program, programs of a group)."""
    groups, tokens, d = x_GLD.shape
    parts = min(max(processors(x_GLD) * config(d)["waves"] // max(groups, 1), 1), max(tokens, 1))
    run = triton.cdiv(tokens, parts)
    return run, triton.cdiv(tokens, max(run, 1))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(y, gate)
        groups, tokens, d = x.shape
        run, parts = _runs(x)
        z = torch.empty_like(x)
        if x.numel():
            _forward[(groups, parts)](
                x, y, gate, z, tokens, run, gate.stride(0),
                D=d, BLOCK=triton.next_power_of_2(d), num_warps=config(d)["warps"],
            )  # fmt: skip
        return z

    @staticmethod
    def backward(ctx, dz):  # type: ignore[no-untyped-def]
        y, gate = ctx.saved_tensors
        groups, tokens, d = y.shape
        run, parts = _runs(y)
        dy = torch.empty_like(y)
        sums = torch.empty(groups, parts, d, dtype=torch.float32, device=y.device)
        if y.numel():
            _backward[(groups, parts)](
                y, gate, dz.contiguous(), dy, sums, tokens, run, gate.stride(0),
                D=d, BLOCK=triton.next_power_of_2(d), num_warps=config(d)["warps"],
            )  # fmt: skip
        return dz, dy, sums.sum(1).to(gate.dtype)


def gated(x_GLD: Tensor, y_GLD: Tensor, gate_GD: Tensor, *, kernels: str = "auto") -> Tensor:
    """x + gate * y, of x's type, with gradients for all three.

    x and y [G, L, D]; gate [G, D], in fp32 or as x, of any row stride.
    """
    groups, _, d = x_GLD.shape
    if y_GLD.shape != x_GLD.shape or gate_GD.shape != (groups, d):
        raise ValueError(f"for x {list(x_GLD.shape)} y must be of the same shape and the gate [{groups}, {d}]; given: "
                         f"{list(y_GLD.shape)} and {list(gate_GD.shape)}")  # fmt: skip
    if choose(kernels, x_GLD) == "torch":
        return gated_reference(x_GLD, y_GLD, gate_GD)
    gate_GD = gate_GD if gate_GD.stride(-1) == 1 else gate_GD.contiguous()
    return _Gated.apply(*apart(x_GLD.contiguous(), y_GLD.contiguous(), gate_GD))


def gated_reference(x_GLD: Tensor, y_GLD: Tensor, gate_GD: Tensor) -> Tensor:
    """The formula in plain torch, in fp32, or in fp64 for tensors of it."""
    dtype = maths(x_GLD)
    return (x_GLD.to(dtype) + gate_GD.to(dtype)[:, None] * y_GLD.to(dtype)).to(x_GLD.dtype)
