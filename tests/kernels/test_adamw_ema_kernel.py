"""AdamW with averages and copies: several steps are those of torch.optim.AdamW in fp64 and of the averages' formula."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from torch import Tensor

from hpc.kernels import adamw_ema as module
from hpc.kernels.adamw_ema import adamw_ema

SHAPES = [(3, 5), (1,), (0,), (1024,), (2050,)]  # nothing, one tile, some tiles and a rest
HOW = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SHARES = (0.5, 0.9, 0.99)


def zeros(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one tensor is more than one program's."""
    monkeypatch.setattr(module, "CHUNK", 2048)
    module._chunks.cache_clear()


@pytest.mark.parametrize(
    ("kernels", "averages", "copied", "grad_type", "shifted"),
    [("fused", 0, False, torch.float32, 0), ("fused", 1, True, torch.float32, 0), ("fused", 3, True, torch.bfloat16, 0),
     ("fused", 2, False, torch.float32, 1), ("torch", 2, True, torch.bfloat16, 0)],
)  # fmt: skip
def test_equal_to_torchs_own(
    kernels: str, averages: int, copied: bool, grad_type: torch.dtype, shifted: int, device: torch.device
) -> None:
    """shifted: parameters whose memory begins where no 16 bytes do, as in the flat buffers of sharded ones."""
    params = [torch.randn(torch.Size(s).numel() + shifted, device=device)[shifted:].view(s) for s in SHAPES]
    exact = [p.double().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(exact, **HOW)
    m, v, copies = zeros(SHAPES, device), zeros(SHAPES, device), zeros(SHAPES, device, torch.bfloat16)
    kept = [[p.clone() for p in params] for _ in range(averages)]
    means = [[p.double() for p in params] for _ in range(averages)]
    scale = torch.tensor(0.25, device=device)
    for step in (1, 2, 3):
        grads = [torch.randn(s, device=device).to(grad_type) for s in SHAPES]
        adamw_ema(
            params, grads, m, v, **HOW, step=step, averages=kept, average_betas=SHARES[:averages],
            copies=copies if copied else None, grad_scale=scale, kernels=kernels,
        )  # fmt: skip
        for leaf, grad in zip(exact, grads, strict=True):
            leaf.grad = grad.double() * 0.25
        optimizer.step()
        for mean, share in zip(means, SHARES, strict=False):
            for old, new in zip(mean, exact, strict=True):
                old.mul_(share).add_(new.detach(), alpha=1 - share)
    for ours, right in zip(params, exact, strict=True):
        torch.testing.assert_close(ours.double(), right.detach(), rtol=1e-5, atol=1e-6)
    for found, wanted in zip(kept, means, strict=True):
        for ours, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=1e-6)
    for ours, right in zip(copies, params, strict=True):
        assert torch.equal(ours, right.bfloat16() if copied else torch.zeros_like(ours))


@pytest.mark.parametrize("kernels", ["fused", "torch"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number_changes_nothing(kernels: str, scale: float, device: torch.device) -> None:
    state = [[torch.randn(7, device=device)] for _ in range(4)]
    before = [tensors[0].clone() for tensors in state]
    adamw_ema(state[0], [torch.ones(7, device=device)], *state[1:3], **HOW, step=5, averages=[state[3]],
              average_betas=[0.9], grad_scale=torch.tensor(scale, device=device), kernels=kernels)  # fmt: skip
    assert all(torch.equal(tensors[0], old) for tensors, old in zip(state, before, strict=True))


def test_what_does_not_fit_is_said(device: torch.device) -> None:
    one = [torch.zeros(4, 2, device=device)]
    with pytest.raises(ValueError, match=r"grads\[0\] is \[2, 4\] torch.float32 with strides \(1, 2\); .* 8 numbers"):
        adamw_ema(one, [one[0].t()], one, one, **HOW, step=1)
    with pytest.raises(ValueError, match=r"exp_avgs\[0\] is .*bfloat16.*numbers of torch.float32,"):
        adamw_ema(one, one, [one[0].bfloat16()], one, **HOW, step=1)
    with pytest.raises(ValueError, match="2 averages with 1 betas"):
        adamw_ema(one, one, one, one, **HOW, step=1, averages=[one, one], average_betas=[0.9])
    with pytest.raises(ValueError, match="exp_avg_sqs: 0 tensors for 1 parameters"):
        adamw_ema(one, one, one, [], **HOW, step=1)
