"""The forms of the FP8 pass that are tried beside the product's write the product's bytes."""

from __future__ import annotations

import functools

import interpreted  # noqa: F401
import pytest
import quantize_forms
import torch

from hpc.kernels import modulate


@pytest.mark.parametrize("fp8_scale", [None, 64.0])
@pytest.mark.parametrize(("together", "tokens"), [(4, 40), (8, 40), (8, 37)])
def test_the_same_bytes(together: int, tokens: int, fp8_scale: float | None, device: torch.device) -> None:
    """More than one tile each way, the last ones not full; numbers beyond 448, and one NaN."""
    torch.manual_seed(0)
    z = torch.randn(2, tokens, 136, device=device).bfloat16()
    shift, scale = torch.randn(2, 272, device=device).chunk(2, dim=-1)
    shift[:, 1] = 20.0
    z[1, 33, 5] = float("nan")
    _, _, mean, r = modulate._launch_forward(z, None, None, shift, scale, 1e-6)
    amax = torch.full((1,), 25.0, device=device)
    given = None if fp8_scale is None else torch.full((1,), fp8_scale, device=device)
    wanted = modulate._launch_quantize(z, shift, scale, mean, r, amax, given)
    launch = functools.partial(quantize_forms.launch, together=together, tile=(32, 64), warps=4)
    for found, right in zip(launch(z, shift, scale, mean, r, amax, given), wanted, strict=True):
        assert torch.equal(found.view(torch.uint8), right.view(torch.uint8))
    assert len(quantize_forms.forms()) == 28
