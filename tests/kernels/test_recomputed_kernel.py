"""Every kernel with a backward pass in a region whose activations are computed again on the way back, all or a part of
them: the same gradients, bit for bit. What such a region saved may be asked for once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import interpreted  # noqa: F401
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hpc.kernels import cross_entropy, e4m3, gated, gelu, modulate, qk_norm_rope


def wrap(one: e4m3.Quantized) -> Tensor:
    return (one.rows_ND.float() * one.scale_inv).view(2, -1, one.rows_ND.shape[-1])


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1))


ANGLES = torch.arange(10.0)[:, None] * torch.arange(1.0, 5)
USES: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "modulate": lambda x, y, v: modulate.modulate(x, v, v, kernels="fused"),
    "gated_modulate": lambda x, y, v: modulate.gated_modulate(x, y, v, v, v, kernels="fused"),
    "modulate_fp8": lambda x, y, v: modulate.modulate_fp8(x, v, v, wrap=wrap, kernels="fused"),
    "gated_modulate_fp8": lambda x, y, v: modulate.gated_modulate_fp8(x, y, v, v, v, wrap=wrap, kernels="fused"),
    "gated": lambda x, y, v: (gated.gated(x, y, v, kernels="fused"),),
    "gelu": lambda x, y, v: (gelu.gelu(x, kernels="fused"),),
    "gelu_fp8": lambda x, y, v: (gelu.gelu_fp8(x, wrap=wrap, kernels="fused"),),
    "head_norm": lambda x, y, v: (qk_norm_rope.head_norm(heads(x), v[0, :8], eps=1e-6, kernels="fused"),),
    "qk_norm_rope": lambda x, y, v: qk_norm_rope.qk_norm_rope(
        heads(x), heads(y), v[0, :8], v[1, :8], ANGLES.cos().to(x.device), ANGLES.sin().to(x.device), eps=1e-6,
        layout="bshd", kernels="fused"),
    "qkv_norm_rope": lambda x, y, v: qk_norm_rope.qkv_norm_rope(
        x, v[0, :4], v[1, :4], None, None, groups=1, eps=1e-6, layout="bshd", kernels="fused"),
    "cross_entropy": lambda x, y, v: cross_entropy.cross_entropy(
        x * 1, torch.arange(20, device=x.device).view(2, 10) % 16, kernels="fused"),
}  # fmt: skip


def matmuls(context: object, operator: object, *given: object, **more: object) -> CheckpointPolicy:
    found = operator in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
    return CheckpointPolicy.MUST_SAVE if found else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("use", USES)
def test_computed_again(use: str, selective: bool, device: torch.device) -> None:
    x, y, w = (torch.randn(shape, device=device).requires_grad_() for shape in ((2, 10, 16), (2, 10, 16), (16, 16)))
    v = torch.randn(2, 16, device=device).requires_grad_()
    wanted_of = (x, y, v, w)

    def region(x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return tuple(one * 2 for one in USES[use](x @ w, y @ w, v))

    options = {"context_fn": functools.partial(create_selective_checkpoint_contexts, matmuls)} if selective else {}
    grads = []
    for run in (region, lambda *given: checkpoint(region, *given, use_reentrant=False, **options)):
        loss = sum(one.square().sum() for one in run(x, y, v))
        grads.append(torch.autograd.grad(loss, wanted_of, allow_unused=True))
    assert grads[0][0] is not None and grads[0][3] is not None
    for plain, again in zip(*grads, strict=True):
        assert again is None if plain is None else torch.equal(plain, again)
