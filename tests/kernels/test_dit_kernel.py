"""A diffusion transformer by kernels computes what it does by torch's operators: values, gradients, whatever of it is
computed again on the way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import interpreted  # noqa: F401
import pytest
import torch
from test_dit import PREDICT1, PREDICT25, tensor
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpc.kernels.e4m3 import Quantized
from hpc.models import dit
from hpc.models.dit import DiT
from hpc.models.dit_presets import Config

LATENTS = (2, 16, 2, 4, 4)
ONE = dataclasses.replace(PREDICT25, blocks=1)
LEVELS = {"one of a video": torch.tensor([0.3, 0.8]), "one of a frame": torch.tensor([[0.0, 0.3], [0.6, 0.9]])}


def awake(config: Config, kernels: str, device: torch.device, **more: Any) -> DiT:
    """With blocks that are not the identity, as they are at first."""
    torch.manual_seed(0)
    model = DiT(config, kernels=kernels, **more).to(device)
    for name, weight in model.named_parameters():
        if name.endswith("2.weight") or "_norm" in name:
            nn.init.normal_(weight, float("_norm" in name), 0.3)
    return model


def ran(model: DiT, config: Config, levels: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What it gives, and the gradients of all weights and of the latents."""
    dtype = model.x_embedder.weight.dtype
    x = tensor("x", *LATENTS).to(device, dtype).requires_grad_()
    text, fps = tensor("text", 2, 6, config.text_input).to(device, dtype), torch.tensor([12.0, 30.0], device=device)
    out = model(x, levels.to(device), text, torch.eye(2, device=device), fps).latents_BCTHW
    (out * tensor("gradient", *out.shape).to(device)).sum().backward()
    return {"out": out.detach(), "x": x.grad} | {name: p.grad for name, p in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], limit: float) -> None:
    for name, value in other.items():
        if value is not None:  # the head of the log-variance has no part in this
            assert (one[name] - value).norm() <= limit * value.norm() + 1e-12, name


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("config", [PREDICT1, PREDICT25], ids=["predict1", "predict2.5"])
def test_equal_to_torchs_operators(config: Config, levels: str, device: torch.device) -> None:
    found, wanted = (
        ran(awake(config, kernels, device), config, LEVELS[levels], device) for kernels in ("fused", "torch")
    )
    same(found, wanted, 1e-4)


def test_recomputed_in_bfloat16(device: torch.device) -> None:
    grads = []
    for kernels, again in (("fused", False), ("fused", True), ("torch", False)):
        model = awake(ONE, kernels, device).bfloat16()
        for block in model.blocks:
            if again:
                block.forward = lambda *x, forward=block.forward: checkpoint(forward, *x, use_reentrant=False)
        grads.append(ran(model, ONE, LEVELS["one of a video"], device))
    same(grads[1], grads[0], 0.0)
    found, wanted = (torch.cat([one[name].flatten().float() for name in sorted(one)]) for one in (grads[0], grads[2]))
    assert (found - wanted).norm() < 0.02 * wanted.norm()


class Taking(nn.Linear):
    """A linear layer that says what it was given."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, bias=False)
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x)
        return super().forward(x)


def test_layers_are_given_fp8_where_they_take_it(device: torch.device) -> None:
    """...once for the queries, keys and values together, and for either layer of the MLP."""
    seen: list[Quantized] = []
    takes = True

    def quantizing(x_BSD: Tensor) -> Any:
        def wrap(one: Quantized) -> Tensor:
            seen.append(one)
            return (one.rows_ND.float() * one.scale_inv).view(x_BSD.shape).to(x_BSD.dtype)

        return wrap if takes else None

    with torch.random.fork_rng():
        model = awake(ONE, "fused", device, linear=Taking, quantizing=quantizing)
    found = ran(model, ONE, LEVELS["one of a video"], device)
    assert len(seen) == 4 * ONE.blocks
    for block in model.blocks:
        q, k, v = (getattr(block.self_attn, name).given[0] for name in ("q_proj", "k_proj", "v_proj"))
        assert q is k and k is v
    same(found, ran(awake(ONE, "torch", device), ONE, LEVELS["one of a video"], device), 0.2)
    takes = False
    model.zero_grad()
    same(ran(model, ONE, LEVELS["one of a video"], device),
         ran(awake(ONE, "torch", device), ONE, LEVELS["one of a video"], device), 1e-4)  # fmt: skip
    assert len(seen) == 4 * ONE.blocks


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="kernels: 'fast' is not one of auto, torch, fused"):
        dit.Joints("fast").fused(torch.zeros(1))
