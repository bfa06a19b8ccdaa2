"""Noise levels, what networks are given and trained to find: EDM of Predict1, rectified flow of Predict2 and 2.5.

Noise n is standard normal, x0 the latents of a video times `latent_scale`.

    EDM         x = x0 + sigma n           the network gives x0, by skip and scale (Karras et al., "Elucidating the
                                           design space of diffusion-based generative models", 2022,
                                           https://arxiv.org/abs/2206.00364)
    flow        x = (1 - t) x0 + t n       the network gives the velocity n - x0 (Liu et al., "Flow straight and fast",
                                           2022, https://arxiv.org/abs/2209.03003)

t = sigma / (1 + sigma) makes one of the other: x of flow is x of EDM / (1 + sigma).

The first latent frames of a video may be given. They take the place of the noisy ones, a mask tells the network, what
it says of them is not used, and the loss, a mean over all frames, has zeros there.

Draws are arguments: who calls makes them, for the whole latents of a sample before those are split over ranks, by what
they are for alone (hpc.train.randomness). Everything here is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hpc.models.dit import DiT
from hpc.models.dit_presets import Preset


class Condition(NamedTuple):
    """What a video is made of, but noise."""

    text_BLE: Tensor
    given_BT: Tensor | None = None
    """1 where a latent frame is given, 0 elsewhere; None of networks that take none."""
    latents_BCTHW: Tensor | None = None
    """x0 of the given frames; the others are not looked at."""
    fps_B: Tensor | None = None
    padding_BHW: Tensor | None = None
    first_frame: int = 0
    """The place of the first latent frame that is here, where ranks share a video's (hpc.models.context_parallel)."""

    @property
    def mask_B1T11(self) -> Tensor | float:
        return 0.0 if self.given_BT is None else self.given_BT[:, None, :, None, None]


class Draws(NamedTuple):
    """Of a training step, for samples B."""

    noise_BCTHW: Tensor
    """Standard normal."""
    level_B: Tensor
    """Standard normal: what the noise level is made of."""
    high_B2: Tensor
    """Uniform from 0 to 1: whether the level is a high one, and which."""
    given_level_B: Tensor
    """Standard normal: what the noise level of given frames is made of (EDM alone)."""
    given_noise_BCTHW: Tensor | None
    """Standard normal: theirs (EDM alone)."""


class Loss(NamedTuple):
    loss: Tensor
    """To be minimised: the mean over all there is."""
    per_sample_B: Tensor
    """Without the log-variance and its weight: what to report and to compare. EDM: weighted squared error of x0; flow:
    squared error of the velocity. Over all frames, given ones count as 0."""
    level_B: Tensor
    """sigma, or t."""


def wide(x_B: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1, 1]."""
    return x_B.view(-1, 1, 1, 1, 1)


def mixed(mask_B1T11: Tensor | float, where_1: Tensor | None, where_0: Tensor) -> Tensor:
    if where_1 is None or not isinstance(mask_B1T11, Tensor):
        return where_0
    return torch.where(mask_B1T11.bool(), where_1.to(where_0.dtype), where_0)


def first_frames(uniform_B: Tensor, shares: Sequence[float], frames: int) -> Tensor:
    """given_BT: the first 0, 1, 2, ... latent frames, each number with its share. A single frame (a picture) is never
    given. uniform_B: draws from 0 to 1."""
    total = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    counts_B = torch.bucketize(uniform_B.double().cpu() * total[-1], total, right=True).clamp(max=len(shares) - 1)
    if frames == 1:
        counts_B = counts_B * 0
    return (torch.arange(frames) < counts_B[:, None]).float().to(uniform_B.device)


@dataclass(frozen=True)
class EDM:
    """Predict1. cosmos_predict1 4ed35fa: diffusion/training/models/model_image.py, model.py, extend_model.py,
    diffusion/modules/denoiser_scaling.py"""

    latent_scale: float = 0.5
    """Also sigma_data: the standard deviation of x0 that the scales are made for."""
    multiplier: float = 1.0
    """Of noise levels: the square root of the latent frames, where the level goes with a video's length."""
    given_log_mean: float = -3.0
    given_log_std: float = 2.0
    """Of the noise on given frames in training."""
    given_sigma: float = 0.001
    """...and when generating."""
    given_frames: tuple[float, ...] = (1.0,)
    """Shares of 0, 1, 2, ... given latent frames in training."""

    def levels(self, level_B: Tensor, high_B2: Tensor) -> Tensor:
        """sigma of standard normal draws."""
        return torch.exp(level_B) * self.multiplier

    def noised(self, x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        return x0 + wide(sigma_B) * noise

    def scales(self, sigma_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise, Table 1 of the paper."""
        data = self.latent_scale
        total = sigma_B**2 + data**2
        return data**2 / total, sigma_B * data / total.sqrt(), 1 / total.sqrt(), sigma_B.log() / 4

    def weight(self, sigma_B: Tensor) -> Tensor:
        """1 / c_out^2."""
        return (sigma_B**2 + self.latent_scale**2) / (sigma_B * self.latent_scale) ** 2

    def _denoised(
        self, model: DiT, x: Tensor, sigma_B: Tensor, c: Condition, given_sigma_B: Tensor, given_noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x0, and the log-variance of a network that has it."""
        skip, out, scale, level_B = self.scales(sigma_B)
        if c.latents_BCTHW is not None and given_noise is not None:
            # given frames reach the network scaled by what their own noise asks for
            own = self.scales(given_sigma_B)[2] / scale
            x = mixed(c.mask_B1T11, self.noised(c.latents_BCTHW, given_noise, given_sigma_B) * wide(own), x)
        y = model(x * wide(scale), level_B, c.text_BLE, c.given_BT, c.fps_B, c.padding_BHW, c.first_frame)
        x0 = wide(skip) * x + wide(out) * y.latents_BCTHW
        return mixed(c.mask_B1T11, c.latents_BCTHW, x0), y.log_variance_B

    def denoised(self, model: DiT, x: Tensor, sigma_B: Tensor, c: Condition, given_noise: Tensor) -> Tensor:
        """x0 when generating; of given frames exactly what is given. given_noise: standard normal, the same in each
        step."""
        own_B = torch.full_like(sigma_B, self.given_sigma)
        return self._denoised(model, x, sigma_B, c, own_B, given_noise)[0]

    def loss(self, model: DiT, x0: Tensor, c: Condition, draws: Draws) -> Loss:
        """exp(-u) w (x0 - x0')^2 + u, u the network's log-variance if it has one, else 0: it may be negative."""
        c = c._replace(latents_BCTHW=x0)
        sigma_B = self.levels(draws.level_B, draws.high_B2)
        own_B = torch.exp(draws.given_level_B * self.given_log_std + self.given_log_mean)
        x = self.noised(x0, draws.noise_BCTHW, sigma_B)
        found, u_B = self._denoised(model, x, sigma_B, c, own_B, draws.given_noise_BCTHW)
        error_B = (found - x0).square().flatten(1).mean(1) * self.weight(sigma_B)
        loss_B = error_B if u_B is None else error_B * torch.exp(-u_B) + u_B
        return Loss(loss_B.mean(), error_B.detach(), sigma_B)


@dataclass(frozen=True)
class Flow:
    """Predict2.5; Predict2 is a SigmaFlow. cosmos_predict2.5 50369b8: models/text2world_model_rectified_flow.py,
    video2world_model_rectified_flow.py, schedulers/rectified_flow.py"""

    shift: float = 5.0
    """t is s u / (1 + (s - 1) u) of an evenly spaced u: more of the higher noise levels."""
    high: float = 0.0
    """The share of samples whose level is one of the highest, `high_levels` of 1000, all alike."""
    high_levels: tuple[float, float] = (980.0, 1000.0)
    given_level: float | None = None
    """What the network is told of given frames, as of a timestep out of 1000; None: what it is told of the others."""
    given_frames: tuple[float, ...] = (0.5, 0.25, 0.25)
    loss_scale: float = 1.0
    latent_scale: float = 1.0

    @property
    def times(self) -> Tensor:
        """The 1000 noise levels of training, falling from 1. As diffusers' FlowMatchEulerDiscreteScheduler has them."""
        u = torch.linspace(1, 1000, 1000, dtype=torch.float64).flip(0) / 1000
        return (self.shift * u / (1 + (self.shift - 1) * u)).float()

    def levels(self, level_B: Tensor, high_B2: Tensor) -> Tensor:
        """t: number floor(1000 sigmoid(draw)) of the 1000."""
        times = self.times.to(level_B.device)
        t_B = times[(torch.sigmoid(level_B) * 1000).long().clamp(max=999)]
        if not self.high:
            return t_B
        low, top = self.high_levels
        highest = times[(times * 1000 >= low) & (times * 1000 <= top)]
        chosen_B = highest[(high_B2[:, 1] * len(highest)).long().clamp(max=len(highest) - 1)]
        return torch.where(high_B2[:, 0] < self.high, chosen_B, t_B)

    def noised(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        return (1 - wide(t_B)) * x0 + wide(t_B) * noise

    def told(self, t_B: Tensor) -> Tensor:
        """What the network is told of a noise level."""
        return 1000 * t_B

    def velocity(self, model: DiT, x: Tensor, t_B: Tensor, c: Condition, told_B: Tensor | None = None) -> Tensor:
        """n - x0, as the network finds it: of given frames it means nothing. told_B: another level to tell it."""
        x = mixed(c.mask_B1T11, c.latents_BCTHW, x)
        level = self.told(t_B) if told_B is None else told_B
        if self.given_level is not None and c.given_BT is not None:
            level = torch.where(c.given_BT.bool(), self.given_level, level[:, None])
        return model(x, level, c.text_BLE, c.given_BT, c.fps_B, c.padding_BHW, c.first_frame).latents_BCTHW

    def denoised(self, model: DiT, x: Tensor, t_B: Tensor, c: Condition, told_B: Tensor | None = None) -> Tensor:
        """x0; of given frames exactly what is given."""
        return mixed(c.mask_B1T11, c.latents_BCTHW, x - wide(t_B) * self.velocity(model, x, t_B, c, told_B))

    def loss(self, model: DiT, x0: Tensor, c: Condition, draws: Draws) -> Loss:
        c = c._replace(latents_BCTHW=x0)
        t_B = self.levels(draws.level_B, draws.high_B2)
        target = draws.noise_BCTHW - x0
        found = self.velocity(model, self.noised(x0, draws.noise_BCTHW, t_B), t_B, c)
        error_B = (mixed(c.mask_B1T11, target, found) - target).square().flatten(1).mean(1)
        return Loss(error_B.mean() * self.loss_scale, error_B.detach(), t_B)


@dataclass(frozen=True)
class SigmaFlow(Flow):
    """Predict2: noise levels as of EDM, and the network is told t itself. cosmos_predict2 661da47:
    models/video2world_model.py, module/denoiser_scaling.py, pipelines/video2world.py"""

    multiplier: float = math.sqrt(24)
    """Of sigma: the square root of the latent frames."""
    high_sigmas: tuple[float, float] = (200.0, 100_000.0)
    """Of which the `high` share of samples is drawn, evenly in the logarithm."""
    given_level: float | None = 1e-4 / (1 + 1e-4)
    given_frames: tuple[float, ...] = (0.0, 0.5, 0.5)
    loss_scale: float = 10.0

    def levels(self, level_B: Tensor, high_B2: Tensor) -> Tensor:
        sigma_B = torch.exp(level_B) * self.multiplier
        low, top = (math.log(sigma) for sigma in self.high_sigmas)
        highest_B = torch.exp(high_B2[:, 1] * (top - low) + low)
        sigma_B = torch.where(high_B2[:, 0] < self.high, highest_B, sigma_B)
        return sigma_B / (1 + sigma_B)

    def told(self, t_B: Tensor) -> Tensor:
        return t_B


Objective = EDM | Flow
OBJECTIVES: dict[str, type[EDM] | type[Flow]] = {"edm": EDM, "flow": Flow, "sigma-flow": SigmaFlow}


def objective(preset: Preset) -> Objective:
    return OBJECTIVES[preset.objective](**preset.settings)
