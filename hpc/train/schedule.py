"""The learning rate of each step: a function of the step's number, so that nothing of it is saved."""

from __future__ import annotations

import math

import torch

from hpc.train.settings.optimizer import Cycle, Optimizer


def rate(o: Optimizer, step: int, steps: int) -> float:
    """Of the step number `step`, counted from 1, of `steps`: up in a line over the warm-up, then down to `final`."""
    if step <= o.warmup:
        return o.rate * step / o.warmup
    if o.decay == "constant":
        return o.rate
    done = (step - o.warmup) / max(1, steps - o.warmup)
    left = (1 + math.cos(math.pi * done)) / 2 if o.decay == "cosine" else 1 - done
    return o.rate * (o.final + (1 - o.final) * left)


def cycled(c: Cycle, highest: float, step: int) -> float:
    """Of the step number `step`, counted from 1; highest: what f is a share of."""
    n = step - 1
    if n < c.warmup:
        return highest * (c.f_start + (c.f_max - c.f_start) * n / c.warmup)
    left = max(0, c.length - n) / (c.length - c.warmup)
    return highest * (c.f_min + (c.f_max - c.f_min) * left)


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
