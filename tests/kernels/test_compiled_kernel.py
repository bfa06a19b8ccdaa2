"""Kernels in a function that torch.compile has compiled: the same values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpc.kernels.modulate import gated_modulate
from hpc.kernels.qk_norm_rope import qk_norm_rope

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.compile takes Triton's kernels on GPUs")


def block(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, cos: Tensor, sin: Tensor):  # type: ignore[no-untyped-def]
    z, out = gated_modulate(torch.nn.functional.silu(x), y, gate, shift, scale, kernels="fused")
    q = (out * 2).unflatten(-1, (-1, 32))
    q, k = qk_norm_rope(q, q + 1, weight, weight, cos, sin, eps=1e-6, layout="bshd", kernels="fused")
    return z, (q * k).sigmoid()


def test_compiled_as_eager(device: torch.device) -> None:
    x, y = (torch.randn(2, 40, 128, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    vectors = [torch.randn(2, 128, device=device).requires_grad_() for _ in range(3)]
    weight, angle = torch.randn(32, device=device).requires_grad_(), torch.randn(40, 16, device=device)
    inputs = [x, y, *vectors, weight]
    results = []
    for function in (block, torch.compile(block)):
        out = function(*inputs, angle.cos(), angle.sin())
        results.append([*out, *torch.autograd.grad([t.float().square().sum() for t in out], inputs)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=2e-2)
