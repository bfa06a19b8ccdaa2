"""Kernels in a function that torch.compile has compiled: the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import interpreted  # noqa: F401
import pytest
import torch
from torch import Tensor

from hpc.kernels.gated import gated
from hpc.kernels.gelu import gelu
from hpc.kernels.modulate import gated_modulate, modulate
from hpc.kernels.qk_norm_rope import head_norm, qk_norm_rope


def block(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each form of every kernel that a block of hpc.models.dit has."""
    x, h = modulate(torch.nn.functional.silu(x), shift, scale, kernels="fused")
    z, out = gated_modulate(x, y * h, gate, shift, scale, kernels="fused")
    q = (out * 2).unflatten(-1, (-1, 32))
    q, k = qk_norm_rope(q, q + 1, weight, weight, cos, sin, eps=1e-6, layout="bshd", kernels="fused")
    k = head_norm(k + q, weight, eps=1e-6, kernels="fused")
    return gated(z, gelu(out - 1, kernels="fused"), gate, kernels="fused"), (q * k).sigmoid()


def example(device: torch.device) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    x, y = (torch.randn(2, 40, 128, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    vectors = [torch.randn(2, 128, device=device).requires_grad_() for _ in range(3)]
    weight, angle = torch.randn(32, device=device).requires_grad_(), torch.randn(40, 16, device=device)
    return [x, y, *vectors, weight], angle


def values(function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], angle: Tensor) -> list[Tensor]:
    """What it gives, and the gradients."""
    out = function(*inputs, angle.cos(), angle.sin())
    return [*out, *torch.autograd.grad([t.float().square().sum() for t in out], inputs)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.compile takes Triton's kernels on GPUs")
def test_compiled_as_eager(device: torch.device) -> None:
    """By the size of each: single numbers are what is left of larger ones, rounded at other places."""
    torch.compiler.reset()
    inputs, angle = example(device)
    eager, compiled = (values(function, inputs, angle) for function in (block, torch.compile(block, fullgraph=True)))
    for one, other in zip(compiled, eager, strict=True):
        assert (one.double() - other.double()).norm() < 0.02 * other.double().norm()
