"""From noise to latents: solvers of the differential equation that a denoiser defines.

Each takes `denoised(x, level)`, which returns x0 as the network sees it, noise `x` at the highest level, and the
levels, falling. The state is float64, the denoiser is given float32.

    karras(...)      noise levels sigma, dense at the low end
    multistep(...)   second order, one evaluation a step: Predict1's and Predict2's ("2ab")
    heun(...)        second order, two evaluations a step (Karras et al. 2022, algorithm 1, without churn)
    shifted(...)     noise levels t of a flow
    unipc(...)       Predict2.5's: a predictor and a corrector that costs nothing (Zhao et al., "UniPC", 2023,
                     https://arxiv.org/abs/2302.04867; B(h) = e^h - 1, second order)
    euler(...)       first order, over either
    sample(...)      all of it: a network, a text, given frames, guidance -> latents

cosmos_predict1 4ed35fa: diffusion/modules/res_sampler.py, functional/multi_step.py, functional/runge_kutta.py (Zhang et
al., "Improved order analysis and design of exponential integrator for diffusion models sampling", 2023,
https://arxiv.org/abs/2308.02157); cosmos_predict2.5 50369b8: models/fm_solvers_unipc.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpc.models.diffusion import EDM, Condition, Objective, mixed, wide
from hpc.models.dit import DiT
from hpc.models.dit_presets import OVER_SIGMA, unfit

Denoised = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], level [B]) -> x0, of float32."""


def guided(with_text: Denoised, without: Denoised, guidance: float) -> Denoised:
    """Classifier-free guidance (Ho, Salimans, 2022, https://arxiv.org/abs/2207.12598), as the published models count
    it: with + guidance (with - without); 0 is none. `without` has the negative prompt."""
    if guidance == 0:
        return with_text

    def denoised(x: Tensor, level_B: Tensor) -> Tensor:
        found = with_text(x, level_B)
        return found + guidance * (found - without(x, level_B))

    return denoised


def noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal, float32, on the CPU: the same on every machine, and what the published code begins with."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def karras(steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0) -> Tensor:
    """steps + 1 levels, from sigma_max to sigma_min."""
    i = torch.arange(steps + 1, dtype=torch.float64) / steps
    return (sigma_max ** (1 / rho) + i * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def shifted(steps: int, shift: float = 5.0) -> Tensor:
    """steps + 1 levels, from nearly 1 to 0."""
    u = torch.linspace(0.999, 0, steps + 1, dtype=torch.float64)
    return shift * u / (1 + (shift - 1) * u)


def flow_karras(steps: int, sigma_max: float = 200.0, sigma_min: float = 0.01) -> Tensor:
    """t = sigma / (1 + sigma) of steps + 1 levels, and 0, for flows that were made of an EDM: one step more than
    `steps`, as published."""
    sigmas = karras(steps, sigma_max, sigma_min)
    return torch.cat([sigmas / (1 + sigmas), sigmas.new_zeros(1)])


def _of(denoised: Denoised) -> Callable[[Tensor, Tensor], Tensor]:
    """In float64, at one level for all samples."""

    def evaluate(x: Tensor, level: Tensor) -> Tensor:
        return denoised(x.float(), level.float().expand(len(x)).to(x.device)).double()

    return evaluate


def multistep(denoised: Denoised, x: Tensor, sigmas: Tensor) -> Tensor:
    """One evaluation for each level; the last one's x0 is the result. x: noise times sigmas[0]."""
    evaluate = _of(denoised)
    x = x.double()
    before: tuple[Tensor, Tensor] | None = None  # level and x0 of the step before
    for here, to in pairwise(sigmas):
        x0 = evaluate(x, here)
        if before is None:
            x = (1 - to / here) * x0 + to / here * x
        else:
            h = (here / to).log()  # in -log sigma
            c = (here / before[0]).log() / h
            phi1 = -torch.expm1(-h) / h
            phi2 = (1 - phi1) / h
            x = to / here * x + h * ((phi1 - phi2 / c) * x0 + phi2 / c * before[1])
        before = (here, x0)
    return evaluate(x, sigmas[-1]).float()


def heun(denoised: Denoised, x: Tensor, sigmas: Tensor) -> Tensor:
    """As `multistep`, with two evaluations a step."""
    evaluate = _of(denoised)
    x = x.double()
    for here, to in pairwise(sigmas):
        slope = (x - evaluate(x, here)) / here
        there = x + (to - here) * slope
        x = x + (to - here) * (slope + (there - evaluate(there, to)) / to) / 2
    return evaluate(x, sigmas[-1]).float()


def euler(denoised: Denoised, x: Tensor, times: Tensor) -> Tensor:
    """times: from 1 or less to 0, or sigmas to 0: the slope is (x - x0) / level either way."""
    evaluate = _of(denoised)
    x = x.double()
    for here, to in pairwise(times):
        x = x + (to - here) * (x - evaluate(x, here)) / here
    return x.float()


def unipc(denoised: Denoised, x: Tensor, times: Tensor) -> Tensor:
    """times: from less than 1 to 0. The last step gives the last x0 itself."""
    evaluate = _of(denoised)
    x = x.double()
    steps = len(times) - 1
    signal = ((1 - times) / times).log()  # half the logarithm of the signal to noise ratio; inf at the end
    before, found, order = x, [], 1  # x of the step before, x0 of all steps, the order of the last
    for i in range(steps):
        x0 = evaluate(x, times[i])
        if i:  # the corrector: the last step again, now that x0 at its end is known
            h = signal[i] - signal[i - 1]
            e = torch.expm1(-h)
            base = times[i] / times[i - 1] * before - (1 - times[i]) * e * found[-1]
            if order == 1:
                x = base - (1 - times[i]) * e * 0.5 * (x0 - found[-1])
            else:
                r = (signal[i - 2] - signal[i - 1]) / h
                first = (-e / h - 1) / e
                second = ((-e / h - 1) / -h - 0.5) * 2 / e
                # weights a, b of the two differences: a + b = first, a r + b = second
                a = (first - second) / (1 - r)
                difference = a * (found[-2] - found[-1]) / r + (first - a) * (x0 - found[-1])
                x = base - (1 - times[i]) * e * difference
        found = [*found[-1:], x0]
        order = min(2, steps - i, len(found))
        before = x
        h = signal[i + 1] - signal[i]
        e = torch.expm1(-h)
        x = times[i + 1] / times[i] * x - (1 - times[i + 1]) * e * x0
        if order == 2:
            r = (signal[i - 1] - signal[i]) / h
            x = x - (1 - times[i + 1]) * e * 0.5 * (found[-2] - x0) / r
    return x.float()


class Sampling(NamedTuple):
    """How to generate; a Preset says what a published model was shown with."""

    solver: str = "multistep"
    schedule: str = "karras"
    """One of hpc.models.dit_presets.SOLVERS, with noise levels that it goes over."""
    steps: int = 35
    guidance: float = 7.0


SOLVERS = {"multistep": multistep, "heun": heun, "unipc": unipc, "euler": euler}


def levels_of(how: Sampling, of: Objective) -> Tensor:
    """Falling: sigma of karras and karras-zero, else t."""
    if how.schedule == "karras":
        return karras(how.steps)
    if how.schedule == "karras-zero":
        return torch.cat([karras(how.steps - 1, sigma_min=0.0002), torch.zeros(1, dtype=torch.float64)])
    return shifted(how.steps, of.shift) if how.schedule == "shifted" else flow_karras(how.steps)


@torch.no_grad()
def sample(
    model: DiT,
    of: Objective,
    how: Sampling,
    condition: Condition,
    negative_BLE: Tensor | None,
    noise_BCTHW: Tensor,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Latents of videos, float32, as a tokenizer decodes them; given frames are exactly those given.

    condition: latents of given frames as a tokenizer encodes them. negative_BLE: the text to steer away from, which is
    asked for unless the guidance is 0; given frames stay in both. check: is called before each evaluation, and may
    raise. Raises ValueError for a solver that is not one for this objective.
    """
    if words := unfit(how.solver, how.schedule, "edm" if isinstance(of, EDM) else "flow"):
        raise ValueError(words)
    if how.guidance and negative_BLE is None:
        raise ValueError("guidance needs a text to steer away from: an empty prompt's, if nothing else")
    if condition.latents_BCTHW is not None:
        condition = condition._replace(latents_BCTHW=condition.latents_BCTHW.float() * of.latent_scale)
    x, over_sigma = noise_BCTHW.float(), how.schedule in OVER_SIGMA

    def with_text(text_BLE: Tensor) -> Denoised:
        c = condition._replace(text_BLE=text_BLE)
        if isinstance(of, EDM):  # the published code's noise on given frames is that which it begins with
            return lambda x, sigma_B: of.denoised(model, x, sigma_B, c, noise_BCTHW)
        if over_sigma:  # x0 + sigma n, of which the network sees x / (1 + sigma)
            return lambda x, sigma_B: of.denoised(model, x / (1 + wide(sigma_B)), sigma_B / (1 + sigma_B), c)
        # the network was trained with timesteps out of 1000, and is told whole ones
        return lambda x, t_B: of.denoised(model, x, t_B, c, of.told(torch.floor(1000 * t_B) / 1000))

    denoised = with_text(condition.text_BLE)
    if how.guidance and negative_BLE is not None:
        denoised = guided(denoised, with_text(negative_BLE), how.guidance)
    levels = levels_of(how, of)
    if over_sigma:
        x = x * levels[0].item()

    def checked(x: Tensor, level_B: Tensor) -> Tensor:
        check()
        return denoised(x, level_B)

    found = SOLVERS[how.solver](checked, x, levels)
    return mixed(condition.mask_B1T11, condition.latents_BCTHW, found) / of.latent_scale
