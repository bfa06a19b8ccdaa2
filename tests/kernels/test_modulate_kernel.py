"""Gated residual, LayerNorm and modulation: values, gradients and FP8 bytes are those of the formula."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from torch import Tensor

from hpc.kernels import modulate as module
from hpc.kernels.e4m3 import Quantized
from hpc.kernels.modulate import (
    gated_modulate,
    gated_modulate_fp8,
    gated_modulate_reference,
    modulate,
    modulate_fp8,
)


def near(found: Tensor | None, wanted: Tensor | None, dtype: torch.dtype) -> None:
    assert found is not None and wanted is not None and found.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found.detach().double(), wanted.detach().double(), **tolerance)


def example(g: int, n: int, d: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x, y, gate, shift, scale; the last three as chunks of one tensor, of the mean 0, x far from it."""
    x, y = (torch.randn(g, n, d, device=device).to(dtype).requires_grad_() for _ in range(2))
    gate, shift, scale = torch.randn(g, 3 * d, device=device).requires_grad_().chunk(3, dim=-1)
    return [(x + 3).detach().requires_grad_(), y, gate, shift, scale]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("g", "n", "d"), [(2, 7, 24), (1, 5, 64), (5, 1, 6), (3, 4, 130)])
def test_equal_to_the_formula(dtype: torch.dtype, g: int, n: int, d: int, device: torch.device) -> None:
    inputs = example(g, n, d, dtype, device)
    found = gated_modulate(*inputs, kernels="fused")
    grads = [torch.randn(t.shape, device=device).to(dtype) for t in found]
    ours = torch.autograd.grad(found, inputs, grads)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    z = gated_modulate_reference(*doubles)[0]
    near(found[0], z, dtype)
    # z is rounded to x's type before it is normed: of 8 by 0.016, which a scale of 3 makes 0.03 of what comes out
    z = z + (found[0].double() - z).detach()
    wanted = modulate(z, *doubles[3:], kernels="torch")
    exact = torch.autograd.grad(wanted, doubles, [t.double() for t in grads])
    near(found[1], wanted[1], dtype)
    for one, other in zip(ours[:2], exact[:2], strict=True):
        near(one, other, dtype)
    for one, other in zip(ours[2:], exact[2:], strict=True):
        assert one.dtype == torch.float32  # sums over tokens of what bf16 has rounded are as far off as that
        near(one, other, torch.float32) if dtype == torch.float32 else near(one.bfloat16(), other, torch.bfloat16)


def test_norm_and_modulation_alone(device: torch.device) -> None:
    x, _, _, shift, scale = example(3, 4, 40, torch.float32, device)
    inputs = [x, shift.bfloat16().detach().requires_grad_(), scale.bfloat16().detach().requires_grad_()]
    found = modulate(*inputs, kernels="fused")[1]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    norm = torch.nn.functional.layer_norm(doubles[0], (40,), eps=1e-6)
    wanted = norm * (1 + doubles[2][:, None]) + doubles[1][:, None]
    near(found, wanted, torch.float32)
    near(modulate(*inputs, kernels="torch")[1], wanted, torch.float32)
    ours, exact = (torch.autograd.grad(t.square().sum(), leaves) for t, leaves in ((found, inputs), (wanted, doubles)))
    near(ours[0], exact[0], torch.float32)
    for one, other in zip(ours[1:], exact[1:], strict=True):
        near(one, other.to(torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("fp8", [False, True])
def test_the_stream_that_goes_on_adds_its_gradient(fp8: bool, device: torch.device) -> None:
    """x, used beside its modulated norm, has the gradients of both."""
    x, _, _, shift, scale = example(2, 5, 24, torch.float32, device)
    inputs, grads = (x, shift, scale), [torch.randn(2, 5, 24, device=device) for _ in range(2)]
    wanted = torch.autograd.grad((x * 1, modulate(*inputs, kernels="torch")[1]), inputs, grads)
    for kernels in ("fused", "torch"):
        wrap = lambda one: (one.rows_ND.float() * one.scale_inv).view(x.shape)
        found = modulate_fp8(*inputs, wrap=wrap, kernels=kernels) if fp8 else modulate(*inputs, kernels=kernels)
        assert torch.equal(found[0], x)
        for one, other in zip(torch.autograd.grad(found, inputs, grads), wanted, strict=True):
            near(one, other, torch.float32)


def test_sums_of_more_programs_than_a_tile_has_rows(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(module, "processors", lambda tensor: 50)
    inputs = example(1, 140, 6, torch.float32, device)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    grads = [torch.randn(1, 140, 6, device=device) for _ in range(2)]
    ours = torch.autograd.grad(gated_modulate(*inputs, kernels="fused"), inputs, grads)
    exact = torch.autograd.grad(gated_modulate_reference(*doubles), doubles, [t.double() for t in grads])
    for one, other in zip(ours, exact, strict=True):
        near(one, other, torch.float32)


def test_the_residual_stream_alone_has_a_gradient(device: torch.device) -> None:
    """The last block's z may be all that is used, or out alone."""
    inputs = example(2, 3, 16, torch.float32, device)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    for which, used in ((0, inputs[:3]), (1, inputs)):
        ours = torch.autograd.grad(gated_modulate(*inputs, kernels="fused")[which].square().sum(), used)
        exact = torch.autograd.grad(gated_modulate_reference(*doubles)[which].square().sum(), doubles[: len(used)])
        for one, other in zip(ours, exact, strict=True):
            near(one, other, torch.float32)


def test_the_same_bits_each_time(device: torch.device) -> None:
    inputs = example(2, 9, 32, torch.bfloat16, device)
    runs = [torch.autograd.grad([t.float().square().sum() for t in gated_modulate(*inputs, kernels="fused")], inputs)
            for _ in range(2)]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def in_fp8(inputs: list[Tensor], fp8_scale: float | None, kernels: str) -> tuple[Tensor, Tensor, Quantized]:
    """(z, out, what was wrapped): out is what the FP8 numbers stand for, in the type of x. Three inputs: x, shift,
    scale."""
    seen: list[Quantized] = []

    def wrap(quantized: Quantized) -> Tensor:
        seen.append(quantized)
        return (quantized.rows_ND.float() * quantized.scale_inv).view(inputs[0].shape).to(inputs[0].dtype)

    scale = None if fp8_scale is None else torch.tensor([fp8_scale], device=inputs[0].device)
    op = gated_modulate_fp8 if len(inputs) == 5 else modulate_fp8
    z, out = op(*inputs, wrap=wrap, fp8_scale=scale, kernels=kernels)
    return z, out, seen[0]


@pytest.mark.parametrize("fp8_scale", [None, 64.0])
@pytest.mark.parametrize(("g", "n", "d"), [(2, 5, 24), (3, 1, 24), (2, 70, 136), (1, 128, 256)])
def test_bytes_of_fp8(fp8_scale: float | None, g: int, n: int, d: int, device: torch.device) -> None:
    """With a scale of 64 some numbers are beyond 448: those of one channel, which is shifted by 20."""
    inputs = [t.detach() for t in example(g, n, d, torch.bfloat16, device)]
    inputs[3][:, 1] = 20.0
    inputs[4][:, 1] = 0.0
    z, _, found = in_fp8(inputs, fp8_scale, "fused")
    z_wanted = gated_modulate_reference(*inputs)[0]
    if device.type == "cpu":
        assert torch.equal(z, z_wanted)
    else:  # in which the kernel multiplies and adds in one rounding
        torch.testing.assert_close(z, z_wanted, rtol=2**-7, atol=1e-5)
        assert (z != z_wanted).float().mean() < 1e-3
    _, _, wanted = in_fp8([z, *inputs[3:]], fp8_scale, "torch")
    torch.testing.assert_close(found.amax, wanted.amax, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.scale_inv, wanted.scale_inv, rtol=1e-5, atol=0)
    assert torch.equal(found.columns_DN.view(torch.uint8), found.rows_ND.view(torch.uint8).t())
    ours, theirs = (t.rows_ND.view(torch.uint8).int() for t in (found, wanted))
    # fp32 sums taken in another order move a number over the edge between two neighbours, rarely and no further
    assert (ours - theirs).abs().max() <= 1 and (ours != theirs).float().mean() < 0.01
    values = found.rows_ND.float() * found.scale_inv
    exact = modulate(z.double(), *(t.double() for t in inputs[3:]), kernels="torch")[1].flatten(0, 1)
    limit = 448 / fp8_scale if fp8_scale else float("inf")
    step = float(wanted.scale_inv) * 2**-9  # between the smallest numbers of e4m3
    torch.testing.assert_close(values.double(), exact.clamp(-limit, limit), rtol=1 / 16, atol=step)
    assert not fp8_scale or (values.abs() == limit).any()


def test_gradients_pass_fp8_as_if_it_were_not_there(device: torch.device) -> None:
    inputs = example(2, 5, 24, torch.float32, device)
    grads = [torch.randn(2, 5, 24, device=device) for _ in range(2)]
    wanted = torch.autograd.grad(gated_modulate(*inputs, kernels="torch"), inputs, grads)
    for kernels in ("fused", "torch"):
        found = torch.autograd.grad(in_fp8(inputs, None, kernels)[:2], inputs, grads)
        for one, other in zip(found, wanted, strict=True):
            near(one, other, torch.float32)


def test_fp8_without_a_part_before(device: torch.device) -> None:
    x, _, _, shift, scale = example(2, 5, 24, torch.float32, device)
    grad = torch.randn(2, 5, 24, device=device)
    exact = modulate(x, shift, scale, kernels="torch")[1]
    wanted = torch.autograd.grad(exact, (x, shift, scale), grad)
    for kernels in ("fused", "torch"):
        wrap = lambda one: (one.rows_ND.float() * one.scale_inv).view(x.shape)
        out = modulate_fp8(x, shift, scale, kernels=kernels, wrap=wrap)[1]
        torch.testing.assert_close(out, exact, rtol=1 / 16, atol=float(exact.detach().abs().max()) / 448 * 2**-9)
        for one, other in zip(torch.autograd.grad(out, (x, shift, scale), grad), wanted, strict=True):
            near(one, other, torch.float32)


@pytest.mark.parametrize("fp8_scale", [None, 64.0])
@pytest.mark.parametrize("kernels", ["fused", "torch"])
def test_nan_is_not_hidden_by_fp8(kernels: str, fp8_scale: float | None, device: torch.device) -> None:
    inputs = [t.detach() for t in example(2, 70, 136, torch.float32, device)]
    inputs[0][1, 33, 5] = torch.nan
    _, out, quantized = in_fp8(inputs, fp8_scale, kernels)
    assert out[1, 33].isnan().all() and out.isnan().sum() == 136
    assert torch.equal(quantized.columns_DN.view(torch.uint8), quantized.rows_ND.view(torch.uint8).t())
    assert quantized.amax.isnan() and quantized.scale_inv == 1 / (fp8_scale or 1)


def test_what_does_not_fit_is_said(device: torch.device) -> None:
    x, y, gate, shift, scale = example(2, 3, 16, torch.float32, device)
    with pytest.raises(ValueError, match=r"gate is \[1, 16\]; for x \[2, 3, 16\] it must be \[2, 16\]"):
        gated_modulate(x, y, gate[:1], shift, scale)
    with pytest.raises(ValueError, match=r"alike; given: \[2, 3, 16\] and \[2, 2, 16\]"):
        gated_modulate(x, y[:, :2], gate, shift, scale)
