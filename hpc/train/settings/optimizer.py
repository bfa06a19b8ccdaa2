"""What all trainers are told of how weights move: AdamW, its rate over the steps, and the mean of weights."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Optimizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019. Weights and moments in float32."""

    rate: Annotated[float, Meta(gt=0)] = 1e-4
    """The learning rate at its highest."""
    warmup: Annotated[int, Meta(ge=0)] = 1000
    """Steps in which it rises from 0 in a line."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls from there to the last step."""
    final: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of `rate` that is left at the last step; of no meaning where it is constant."""
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] = 1.0
    """Gradients with a larger norm, over all weights, are scaled down to it."""
    bad_steps: Annotated[int, Meta(ge=1)] = 20
    """A step whose gradients are not finite changes nothing and is counted; after so many in a row training fails."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {list(self.betas)} must both be at least 0 and less than 1")


class Cycle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate that rises in a line and falls in a line, as Predict2 and 2.5 have it ("lambdalinear" with one cycle:
    cosmos_predict2 661da47, functional/lr_scheduler.py; cosmos_predict2.5 50369b8, _src/common/functional/
    lr_scheduler.py). Of the step number n, from 0, the share of `rate` is

        f_start + (f_max - f_start) n / warmup                            before `warmup`
        f_min + (f_max - f_min) (length - n) / (length - warmup)          from there, f_min after `length`

    There a training of more steps than `length` fails; here it goes on with f_min.
    """

    f_start: Annotated[float, Meta(ge=0)] = 1e-6
    f_max: Annotated[float, Meta(gt=0)] = 0.99
    """0.5 in the published post-training, from 2,000 steps of warmup, to 0.2 after 100,000."""
    f_min: Annotated[float, Meta(ge=0)] = 0.4
    warmup: Annotated[int, Meta(ge=0)] = 100
    length: Annotated[int, Meta(ge=1)] = 400_000

    def __post_init__(self) -> None:
        if self.length <= self.warmup:
            raise ValueError(f"length: {self.length} steps must be more than the {self.warmup} of warmup, which are "
                             "the first of them")  # fmt: skip


class Mean(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exponential moving average of the weights, in float32. One of two ways."""

    width: float | None = None
    """A mean over a share of all steps so far, however many: the width of its weighting relative to training's length,
    0.1 as Cosmos-Predict2 has it (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
    2023, section 3.1)."""
    rate: float | None = None
    """A fixed share of the old mean that stays in each step, e.g. 0.999."""

    def __post_init__(self) -> None:
        if (self.width is None) == (self.rate is None):
            raise ValueError("width: give one of `width` (0.1) and `rate` (0.999)")
        if self.width is not None and not 0 < self.width < 0.28:
            raise ValueError(f"width: {self.width:g} must be above 0 and below 0.28, that of the mean of all steps")
        if self.rate is not None and not 0 <= self.rate < 1:
            raise ValueError(f"rate: {self.rate:g} must be at least 0 and less than 1")
