"""GELU, and GELU in FP8: values, gradients and bytes are those of the formula."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from torch import Tensor

from hpc.kernels.e4m3 import Quantized
from hpc.kernels.gelu import gelu, gelu_fp8


def numbers(*shape: int, device: torch.device) -> Tensor:
    return (3 * torch.randn(*shape, device=device)).requires_grad_()


@pytest.mark.parametrize("shape", [(2, 5, 24), (3, 1000), (1, 1)])
def test_equal_to_the_formula(shape: tuple[int, ...], device: torch.device) -> None:
    x, grad = numbers(*shape, device=device), torch.randn(shape, device=device)
    exact = x.detach().double().requires_grad_()
    wanted = torch.nn.functional.gelu(exact)
    found = gelu(x, kernels="fused")
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    [d_found], [d_wanted] = torch.autograd.grad(found, x, grad), torch.autograd.grad(wanted, exact, grad.double())
    torch.testing.assert_close(d_found.double(), d_wanted, rtol=1e-6, atol=2e-6)


def test_numbers_far_out(device: torch.device) -> None:
    x = torch.tensor([-100.0, -12.0, -5.0, 0.0, 5.0, 12.0, 1e18, torch.nan], device=device)
    x.requires_grad_()
    out = gelu(x, kernels="fused")
    torch.testing.assert_close(out, torch.nn.functional.gelu(x.detach()), rtol=1e-6, atol=1e-6, equal_nan=True)
    [grad] = torch.autograd.grad(out[:7].sum(), x)
    torch.testing.assert_close(grad[:7], torch.tensor([0.0, 0, 0, 0.5, 1, 1, 1], device=device), rtol=0, atol=1e-5)


def test_bfloat16_is_rounded_once(device: torch.device) -> None:
    x, grad = numbers(4, 512, device=device).detach().bfloat16().requires_grad_(), torch.randn(4, 512, device=device)
    found = gelu(x, kernels="fused")
    exact = x.detach().float().requires_grad_()
    wanted = torch.nn.functional.gelu(exact)
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=1e-6)
    [d_found] = torch.autograd.grad(found, x, grad.bfloat16())
    [d_wanted] = torch.autograd.grad(wanted, exact, grad.bfloat16().float())
    assert d_found.dtype == torch.bfloat16
    torch.testing.assert_close(d_found.float(), d_wanted, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("fp8_scale", [None, 64.0])
@pytest.mark.parametrize("shape", [(2, 5, 24), (3, 35, 136), (1, 128, 256)])
def test_bytes_of_fp8(fp8_scale: float | None, shape: tuple[int, ...], device: torch.device) -> None:
    """With a scale of 64 the first number is beyond 448. The gradient passes as if FP8 were not there."""
    x = numbers(*shape, device=device).detach().bfloat16()
    x.view(-1)[0] = 20.0
    x.requires_grad_()
    scale = None if fp8_scale is None else torch.tensor([fp8_scale], device=device)
    grad, made, grads = torch.randn(shape, device=device).bfloat16(), [], []
    for kernels in ("fused", "torch"):

        def wrap(one: Quantized) -> Tensor:
            made.append(one)
            return (one.rows_ND.float() * one.scale_inv).view(shape).bfloat16()

        out = gelu_fp8(x, wrap=wrap, fp8_scale=scale, kernels=kernels)
        grads += torch.autograd.grad(out, x, grad)
    found, wanted = made
    torch.testing.assert_close(found.amax, wanted.amax, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.scale_inv, wanted.scale_inv, rtol=1e-5, atol=0)
    assert torch.equal(found.columns_DN.view(torch.uint8), found.rows_ND.view(torch.uint8).t())
    ours, theirs = (t.rows_ND.float() * t.scale_inv for t in made)
    # next to the edge between two neighbours rounding may go either way
    torch.testing.assert_close(ours, theirs, rtol=1 / 8, atol=float(wanted.scale_inv) * 2**-9)
    assert (ours != theirs).float().mean() < 0.01
    assert (found.rows_ND.float().abs().amax() == 448) and (fp8_scale is None or float(ours.max()) == 7.0)
    torch.testing.assert_close(grads[0], grads[1], rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("fp8_scale", [None, 64.0])
@pytest.mark.parametrize("kernels", ["fused", "torch"])
def test_nan_is_not_hidden_by_fp8(kernels: str, fp8_scale: float | None, device: torch.device) -> None:
    x, made = numbers(70, 136, device=device).detach(), []
    x[33, 5] = torch.nan

    def wrap(one: Quantized) -> Tensor:
        made.append(one)
        return one.rows_ND.float()

    out = gelu_fp8(x, wrap=wrap, kernels=kernels, fp8_scale=fp8_scale and torch.tensor([fp8_scale], device=device))
    assert out[33, 5].isnan() and out.isnan().sum() == 1 and made[0].columns_DN[5, 33].float().isnan()
