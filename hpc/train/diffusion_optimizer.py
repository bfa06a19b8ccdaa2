"""A step of AdamW over sharded weights, and of their means: on GPUs in one pass with clipping, elsewhere one by one.

PyTorch's way passes over gradients to clip them, over all for AdamW, and over weights once for each mean. In one pass
(hpc.kernels.adamw_ema) every number is touched once. The state stays where torch.optim.AdamW has it, so checkpoints are
the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpc.kernels.adamw_ema import MOST_AVERAGES, adamw_ema
from hpc.train import ema, fsdp
from hpc.train.ema import local
from hpc.train.settings.optimizer import Optimizer


def make(model: nn.Module, o: Optimizer) -> torch.optim.AdamW:
    """Of the weights that are trained."""
    weights = ema.trained(model)
    return torch.optim.AdamW(weights, o.rate, o.betas, o.eps, o.weight_decay, fused=weights[0].device.type == "cuda")


def step(model: nn.Module, optimizer: torch.optim.AdamW, o: Optimizer, means: Sequence[dict[str, Tensor]],
         kept: Sequence[float], at_once: bool, kernels: str = "auto") -> float:  # fmt: skip
    """One step, with the rate that the optimizer has, and of each mean, of which the share `kept` stays. Returns the
    norm of all gradients; where it is not finite nothing has changed. at_once: in one pass; kernels: see adamw_ema."""
    weights = ema.trained(model)
    if not at_once:
        norm = fsdp.clip(weights, o.clip)
        if math.isfinite(norm):
            optimizer.step()
            for mean, share in zip(means, kept, strict=True):
                ema.update(mean, model, share)
        return norm
    # the GPU is still at the backward pass: nothing below waits for it before its work has been laid out
    own = [n for n, weight in enumerate(weights) if weight.grad is not None and local(weight).numel()]
    every = [fsdp.moments(optimizer, weight) for weight in weights]
    states = [every[n] for n in own]
    values = [list(mean.values()) for mean in means]
    averages = [[local(mean[n]) for n in own] for mean in values]
    [group] = optimizer.param_groups
    whole = fsdp.norm(weights)
    scale = torch.where(whole.isfinite(), (o.clip / whole).clamp(max=1.0), torch.nan)
    adamw_ema(
        [local(weights[n]).detach() for n in own], [local(weights[n].grad) for n in own],  # type: ignore[arg-type]
        [local(state["exp_avg"]) for state in states], [local(state["exp_avg_sq"]) for state in states],
        lr=group["lr"], betas=o.betas, eps=o.eps, weight_decay=o.weight_decay,
        step=local(every[0]["step"]).to(whole.device) + 1,
        averages=averages[:MOST_AVERAGES], average_betas=list(kept)[:MOST_AVERAGES], grad_scale=scale, kernels=kernels,
    )  # fmt: skip
    torch._foreach_add_([state["step"] for state in every], whole.isfinite().to(every[0]["step"]))
    norm = whole.item()
    if math.isfinite(norm):
        for mean, share in zip(means[MOST_AVERAGES:], kept[MOST_AVERAGES:], strict=True):
            ema.update(mean, model, share)
    return norm
