"""Kernels in a function that torch.compile has compiled: the same values and gradients, each op alone and all of a
block together; by AOTAutograd alone (aot_eager) and by inductor, so that a failure tells which of them it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import interpreted  # noqa: F401
import pytest
import torch
from test_recomputed_kernel import wrap
from torch import Tensor

from hpc.kernels import apart
from hpc.kernels.gated import gated
from hpc.kernels.gelu import gelu
from hpc.kernels.modulate import gated_modulate, gated_modulate_fp8, modulate, modulate_fp8
from hpc.kernels.qk_norm_rope import head_norm, qk_norm_rope, qkv_norm_rope

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.compile takes Triton's kernels on GPUs")


def rotated(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    q, k = (t.unflatten(-1, (-1, 32)) for t in (q, k))
    return qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps=1e-6, layout="bshd", kernels="fused")


def block(x, y, gate, shift, scale, w, cos, sin):  # type: ignore[no-untyped-def]
    """Each form of every kernel that a block of hpc.models.dit has; one weight for all norms."""
    x, h = modulate(torch.nn.functional.silu(x), shift, scale, kernels="fused")
    z, out = gated_modulate(x, y * h, gate, shift, scale, kernels="fused")
    q, k = rotated(out * 2, out * 2 + 1, w, w, cos, sin)
    k = head_norm(k + q, w, eps=1e-6, kernels="fused")
    return gated(z, gelu(out - 1, kernels="fused"), gate, kernels="fused"), (q * k).sigmoid()


USES: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "modulate": lambda x, y, gate, shift, scale, w, cos, sin: modulate(x * 1, shift, scale, kernels="fused"),
    "gated_modulate": lambda x, y, gate, shift, scale, w, cos, sin: gated_modulate(
        x * 1, y, gate, shift, scale, kernels="fused"),
    "gated": lambda x, y, gate, shift, scale, w, cos, sin: gated(x * 1, y, gate, kernels="fused"),
    "gelu": lambda x, y, gate, shift, scale, w, cos, sin: gelu(x * 1, kernels="fused"),
    "head_norm": lambda x, y, gate, shift, scale, w, cos, sin: head_norm(
        x.unflatten(-1, (-1, 32)) * 1, w, eps=1e-6, kernels="fused"),
    "qk_norm_rope": lambda x, y, gate, shift, scale, w, cos, sin: rotated(x, y, w, w * 2, cos, sin),
    "qk_norm_rope, one weight": lambda x, y, gate, shift, scale, w, cos, sin: rotated(x, y, w, w, cos, sin),
    "qkv_norm_rope": lambda x, y, gate, shift, scale, w, cos, sin: qkv_norm_rope(
        x * 1, w, w * 2, cos, sin, groups=1, eps=1e-6, layout="bshd", kernels="fused"),
    "block": block,
}  # fmt: skip


def example(device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """What is learned, by name, and angles."""
    torch.manual_seed(0)
    inputs = {n: torch.randn(2, 40, 128, device=device, dtype=torch.bfloat16).requires_grad_() for n in ("x", "y")}
    inputs |= {n: torch.randn(2, 128, device=device).requires_grad_() for n in ("gate", "shift", "scale")}
    inputs["weight"] = torch.randn(32, device=device).requires_grad_()
    return inputs, torch.randn(40, 16, device=device)


def values(use: Callable[..., Any], inputs: dict[str, Tensor], angle: Tensor) -> dict[str, Tensor]:
    """What it gives, and the gradients, by name."""
    out = use(*inputs.values(), angle.cos(), angle.sin())
    outs = out if isinstance(out, tuple) else (out,)
    loss = sum(t.float().square().sum() for t in outs)
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    named = {f"output {i}": t for i, t in enumerate(outs)}
    return named | {f"gradient of {n}": g for n, g in zip(inputs, grads, strict=True) if g is not None}


@GPU
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("use", USES)
def test_compiled_as_eager(use: str, backend: str, device: torch.device) -> None:
    """By the size of each: single numbers are what is left of larger ones, rounded at other places."""
    torch.compiler.reset()
    inputs, angle = example(device)
    eager = values(USES[use], inputs, angle)
    compiled = values(torch.compile(USES[use], fullgraph=True, backend=backend), inputs, angle)
    assert compiled.keys() == eager.keys()
    off = {name: float((compiled[name].double() - one.double()).norm() / one.double().norm())
           for name, one in eager.items()}  # fmt: skip
    wrong = {name: by for name, by in off.items() if not by < 0.02}
    assert not wrong, f"{use} compiled by {backend} is off by these parts of its size: {wrong}"


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        a, b = ctx.saved_tensors
        return grad * b, grad * a * 10


@pytest.mark.parametrize("given", [lambda a: (a, a), lambda a: (a.contiguous(), a), lambda a: (a, a.view_as(a))])
def test_a_tensor_given_twice_has_both_gradients(given: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    torch.compiler.reset()
    a = torch.tensor([2.0, 3.0], requires_grad=True)
    compiled = torch.compile(lambda a: Product.apply(*apart(*given(a))), fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(a).sum(), a)
    assert grad.tolist() == [22.0, 33.0]


SAME: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "gated": lambda x, v, w: gated(x, x, v, kernels="fused"),
    "modulate": lambda x, v, w: modulate(x, v, v, kernels="fused"),
    "gated_modulate": lambda x, v, w: gated_modulate(x, x, v, v, v, kernels="fused"),
    "modulate_fp8": lambda x, v, w: modulate_fp8(x, v, v, wrap=wrap, kernels="fused"),
    "gated_modulate_fp8": lambda x, v, w: gated_modulate_fp8(x, x, v, v, v, wrap=wrap, kernels="fused"),
    "qk_norm_rope": lambda x, v, w: qk_norm_rope(
        x[:, :, None], x[:, :, None], w, w, None, None, eps=1e-6, kernels="fused"),
    "qkv_norm_rope": lambda x, v, w: qkv_norm_rope(
        x.repeat(1, 1, 3), w, w, None, None, groups=1, eps=1e-6, kernels="fused"),
}  # fmt: skip


@pytest.mark.parametrize("op", SAME)
def test_no_op_gives_a_tensor_twice(op: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called with the same ones."""
    calls, apply = [], torch.autograd.Function.apply.__func__

    def watched(function: type, *args: object) -> object:
        tensors = [id(a) for a in args if isinstance(a, Tensor)]
        assert len(set(tensors)) == len(tensors), f"{function} is given a tensor twice"
        calls.append(function)
        return apply(function, *args)

    monkeypatch.setattr(torch.autograd.Function, "apply", classmethod(watched))
    SAME[op](torch.randn(2, 10, 16, device=device), torch.randn(2, 16, device=device), torch.randn(16, device=device))
    assert calls
