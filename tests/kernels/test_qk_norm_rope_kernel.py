"""Norm and rotation of heads: values and gradients are those of the formula in fp64."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from torch import Tensor

from hpc.kernels.qk_norm_rope import head_norm, qk_norm_rope, qk_norm_rope_reference, qkv_norm_rope

EPS = 1e-5


def near(found: Tensor | None, wanted: Tensor | None, dtype: torch.dtype) -> None:
    assert found is not None and wanted is not None and found.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(found.double(), wanted.double(), **tolerance)


def angles(*shape: int, device: torch.device) -> tuple[Tensor, Tensor]:
    angle = torch.randn(*shape, device=device) * 3
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layout", "s", "b", "hq", "hk", "d", "batched"),
    [("sbhd", 5, 2, 4, 2, 16, False), ("bshd", 3, 2, 3, 1, 12, True), ("sbhd", 4, 3, 5, 5, 6, True),
     ("bshd", 7, 1, 40, 8, 4, False)],
)  # fmt: skip
def test_equal_to_the_formula(
    dtype: torch.dtype, layout: str, s: int, b: int, hq: int, hk: int, d: int, batched: bool, device: torch.device
) -> None:
    tokens = (s, b) if layout == "sbhd" else (b, s)
    # as slices of a wider tensor: strides count, not shapes
    q, k = (torch.randn(*tokens, h, d + 8, device=device).to(dtype)[..., :d].requires_grad_() for h in (hq, hk))
    wq, wk = (torch.randn(d, device=device).requires_grad_() for _ in range(2))
    cos, sin = angles(*((b, s) if batched else (s,)), d // 2, device=device)
    found = qk_norm_rope(q, k, wq, wk, cos, sin, eps=EPS, layout=layout, kernels="fused")
    doubles = [t.detach().double().requires_grad_() for t in (q, k, wq, wk)]
    wanted = qk_norm_rope_reference(*doubles, cos.double(), sin.double(), eps=EPS, layout=layout)
    grads = [torch.randn(t.shape, device=device).to(dtype) for t in found]
    torch.autograd.backward(found, grads)
    torch.autograd.backward(wanted, [g.double() for g in grads])
    for ours, exact in zip(found, wanted, strict=True):
        near(ours, exact, dtype)
    for ours, exact in zip((q, k), doubles, strict=False):
        near(ours.grad, exact.grad, dtype)
    for ours, exact in zip((wq, wk), doubles[2:], strict=True):
        near(ours.grad, exact.grad, torch.float32)


@pytest.mark.parametrize(("groups", "per_group", "rotated"), [(2, 4, True), (3, 1, True), (2, 2, False)])
def test_packed_as_megatron_gives_it(groups: int, per_group: int, rotated: bool, device: torch.device) -> None:
    s, b, d = 5, 2, 8
    packed = torch.randn(s, b, groups * (per_group + 2) * d, device=device, requires_grad=True)
    wq, wk = (torch.randn(d, device=device).requires_grad_() for _ in range(2))
    cos, sin = angles(s, d // 2, device=device) if rotated else (None, None)
    found = qkv_norm_rope(packed, wq, wk, cos, sin, groups=groups, eps=EPS, kernels="fused")
    assert all(t.is_contiguous() for t in found)
    leaf, *weights = (t.detach().double().requires_grad_() for t in (packed, wq, wk))
    # megatron-core 0.16.1, SelfAttention.get_query_key_value_tensors: split within each group, then heads in a row
    q, k, v = leaf.view(s, b, groups, -1).split([per_group * d, d, d], dim=3)
    q = q.reshape(s, b, -1, d)
    table = (None, None) if cos is None or sin is None else (cos.double(), sin.double())
    wanted = (*qk_norm_rope_reference(q, k, *weights, *table, eps=EPS), v)
    grads = [torch.randn(t.shape, device=device) for t in found]
    grads[1] = grads[1].transpose(0, 1).contiguous().transpose(0, 1)  # as attention may give them
    torch.autograd.backward(found, grads)
    torch.autograd.backward(wanted, [g.double() for g in grads])
    for ours, exact in zip((*found, packed.grad, wq.grad, wk.grad), (*wanted, *(t.grad for t in (leaf, *weights))),
                           strict=True):  # fmt: skip
        near(ours, exact, torch.float32)
    plain = qkv_norm_rope(packed, wq, wk, cos, sin, groups=groups, eps=EPS, kernels="torch")
    for ours, exact in zip(found, plain, strict=True):
        near(ours, exact, torch.float32)


def test_norm_alone(device: torch.device) -> None:
    x = torch.randn(3, 2, 3, 10, device=device, requires_grad=True)
    weight = torch.randn(10, device=device, requires_grad=True)
    doubles = [t.detach().double().requires_grad_() for t in (x, weight)]
    found, wanted = head_norm(x, weight, eps=EPS, kernels="fused"), head_norm(*doubles, eps=EPS, kernels="torch")
    found.square().sum().backward()
    wanted.square().sum().backward()
    for ours, exact in ((found, wanted), (x.grad, doubles[0].grad), (weight.grad, doubles[1].grad)):
        near(ours, exact, torch.float32)
    norm = torch.nn.functional.rms_norm(doubles[0], (10,), doubles[1], EPS)
    torch.testing.assert_close(wanted, norm)


def test_the_same_bits_each_time(device: torch.device) -> None:
    q, k = (torch.randn(9, 2, h, 16, device=device).bfloat16().requires_grad_() for h in (4, 2))
    weights = [torch.randn(16, device=device).requires_grad_() for _ in range(2)]
    cos, sin = angles(9, 8, device=device)
    runs = []
    for _ in range(2):
        out = qk_norm_rope(q, k, *weights, cos, sin, eps=EPS, kernels="fused")
        runs.append(torch.autograd.grad([o.float().square().sum() for o in out], [q, k, *weights]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_what_does_not_fit_is_said(device: torch.device) -> None:
    q, k, w = torch.randn(5, 2, 4, 8, device=device), torch.randn(5, 2, 2, 8, device=device), torch.ones(8)
    cos, sin = angles(2, 4, device=device)
    with pytest.raises(ValueError, match=r"cos is \[2, 4\].*\[5, 4\], or \[2, 5, 4\]"):
        qk_norm_rope(q, k, w, w, cos, sin, eps=EPS)
    with pytest.raises(ValueError, match="both cos and sin"):
        qk_norm_rope(q, k, w, w, cos, None, eps=EPS)
    with pytest.raises(ValueError, match="'hbsd' is neither"):
        qk_norm_rope(q, k, w, w, None, None, eps=EPS, layout="hbsd")
    with pytest.raises(ValueError, match="its last dimension holds 3 groups"):
        qkv_norm_rope(q.flatten(2), w, w, None, None, groups=3, eps=EPS)
