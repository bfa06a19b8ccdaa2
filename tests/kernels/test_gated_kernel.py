"""The gated residual: values and gradients are those of the formula in fp64."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch

from hpc.kernels.gated import gated, gated_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("g", "n", "d"), [(2, 7, 24), (1, 5, 64), (5, 1, 6)])
def test_equal_to_the_formula(dtype: torch.dtype, g: int, n: int, d: int, device: torch.device) -> None:
    x, y = (torch.randn(g, n, d, device=device).to(dtype).requires_grad_() for _ in range(2))
    gate = torch.randn(g, 2 * d, device=device).requires_grad_().chunk(2, dim=-1)[1]
    inputs, doubles = [x, y, gate], [t.detach().double().requires_grad_() for t in (x, y, gate)]
    dz = torch.randn(g, n, d, device=device).to(dtype)
    found, wanted = gated(*inputs, kernels="fused"), gated_reference(*doubles)
    ours, exact = torch.autograd.grad(found, inputs, dz), torch.autograd.grad(wanted, doubles, dz.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for one, other, kind in zip((found, *ours), (wanted, *exact), (dtype, dtype, dtype, torch.float32), strict=True):
        assert one.dtype == kind
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=1e-5 if kind == torch.float32 else 1e-2)


def test_what_does_not_fit_is_said(device: torch.device) -> None:
    x = torch.zeros(2, 3, 4, device=device)
    with pytest.raises(ValueError, match=r"for x \[2, 3, 4\].*the gate \[2, 4\]; given: \[2, 3, 4\] and \[2, 3\]"):
        gated(x, x, x[:, :, 0])
