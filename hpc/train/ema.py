"""The exponential moving average of a model's weights, in float32, each rank its own part of them.

    mean = ema.begin(model)
    ema.update(mean, model, ema.share_kept(settings, step))      # after each step
    with ema.swapped(mean, model): ...                           # the model has the averaged weights here

With a `width` s, the share of the old mean that stays after step t (counted from 1) is (1 - 1/t)^(g + 1), so that the
weight of an earlier step grows as a power of its number, and the mean always spans the same share of what training
there was. g is the largest root of g^3 + 7 g^2 + (16 - 1/s^2) g + 12 - 1/s^2 = 0, which comes from
s = (g + 1)^(1/2) (g + 2)^-1 (g + 3)^-(1/2); s = 0.1 gives g = 6.94 (Karras et al., "Analyzing and Improving the
Training Dynamics of Diffusion Models", 2023, section 3.1; cosmos_predict2 661da47 has it with s = 0.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hpc.train.settings.optimizer import Mean


def exponent(width: float) -> float:
    """g of a width s."""
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(max(root.real for root in roots))


def share_kept(settings: Mean, step: int) -> float:
    """Of the old mean, by the step number `step`, counted from 1. The first step's weights are the first mean."""
    if settings.width is None:
        return settings.rate or 0.0
    return (1 - 1 / step) ** (exponent(settings.width) + 1)


def begin(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights that are trained in float32, by name, sharded as they are."""
    return {name: weight.detach().clone().float() for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def update(mean: dict[str, Tensor], model: nn.Module, kept: float) -> None:
    """mean = kept x mean + (1 - kept) x weights."""
    weights = [local(weight).float() for weight in trained(model)]
    torch._foreach_lerp_([local(one) for one in mean.values()], weights, 1 - kept)


@contextlib.contextmanager
def swapped(mean: dict[str, Tensor], model: nn.Module) -> Iterator[None]:
    """The model computes with the averaged weights inside, and has its own ones back, bit for bit, after."""
    own = [local(weight).detach().clone() for weight in trained(model)]
    try:
        put(model, [local(one) for one in mean.values()])
        yield
    finally:
        put(model, own)


@torch.no_grad()
def put(model: nn.Module, values: list[Tensor]) -> None:
    """Values for this rank's part of each trained weight, in order. What FSDP has gathered of old ones is dropped."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    for weight, value in zip(trained(model), values, strict=True):
        local(weight).copy_(value)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
