"""transformer-engine's Linear takes the FP8 output of the modulation as it is, and its gradients come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpc.kernels.e4m3 import Quantized
from hpc.kernels.modulate import gated_modulate, gated_modulate_fp8

if not torch.cuda.is_available():
    pytest.skip("transformer-engine needs a GPU", allow_module_level=True)
te = pytest.importorskip("transformer_engine.pytorch")


def test_linear_takes_it(device: torch.device) -> None:
    from transformer_engine.common.recipe import Float8CurrentScaling
    from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer, Float8Tensor
    from transformer_engine_torch import DType

    g, n, d = 2, 64, 256
    inputs = [torch.randn(g, n, d, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
    inputs += [torch.randn(g, d, device=device).requires_grad_() for _ in range(3)]
    linear = te.Linear(d, 128, bias=False, params_dtype=torch.bfloat16, device="cuda")
    quantizer = Float8CurrentScalingQuantizer(DType.kFloat8E4M3, device)

    def wrap(quantized: Quantized) -> Tensor:
        return Float8Tensor(
            shape=(g, n, d), dtype=torch.bfloat16, data=quantized.rows_ND.view(torch.uint8).view(g, n, d),
            fp8_scale_inv=quantized.scale_inv, fp8_dtype=DType.kFloat8E4M3,
            data_transpose=quantized.columns_DN.view(torch.uint8), quantizer=quantizer,
        )  # fmt: skip

    grad = torch.randn(g, n, 128, device=device, dtype=torch.bfloat16)
    results = []
    for op in (lambda: gated_modulate_fp8(*inputs, wrap=wrap), lambda: gated_modulate(*inputs)):
        with te.fp8_autocast(enabled=True, fp8_recipe=Float8CurrentScaling()):
            z, out = op()
            y = linear(out)
        results.append([y, *torch.autograd.grad([y, z], [*inputs, linear.weight], [grad, torch.ones_like(z)])])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()  # theirs rounds to bf16 before it scales
