"""What is measured of a diffusion model while it trains: errors at fixed noise levels, with fixed noise, on held-out
clips; and videos that it makes of their texts and first frames.

The error at a level t is the mean squared error of the velocity (of an EDM, at sigma = t / (1 - t), the weighted one of
x0), over the frames that are not given. Noise and given frames of a clip follow from its name alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from hpc.data.work import BadInput
from hpc.models import context_parallel, samplers
from hpc.models.diffusion import EDM, Condition, Objective, first_frames, mixed, wide
from hpc.models.dit import DiT
from hpc.models.samplers import Sampling
from hpc.train import ema, pictures
from hpc.train.clips import looked_at
from hpc.train.diffusion_input import Inputs, shared
from hpc.train.diffusion_model import computing
from hpc.train.loader import taken
from hpc.train.randomness import generator, numbers
from hpc.train.ranks import Here
from hpc.train.settings import TrainDiffusion

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Clip(NamedTuple):
    """A held-out one, of this rank and of those with which it shares videos."""

    key: str
    frames: Tensor
    """As of a hpc.train.loader.Batch of one sample, like the next three."""
    inside: Tensor
    fps: Tensor
    more: list[Any]
    counts: bool
    """False: it is here only so that every rank has as many."""


def clips(settings: TrainDiffusion, held: pa.Table, inputs: Inputs, rank: int, ranks: int) -> list[Clip]:
    """A data-parallel rank's part of the held-out clips that are looked at: the same ones on any number of ranks.
    Raises ValueError where there are held-out ones, and none fits a shape."""
    out = []
    for one, shape, start, counts in looked_at(settings, held, rank, ranks):
        try:
            frames, inside, fps = taken(one, shape, 0 if one["latents"] else start, settings.fit,
                                        channels=settings.config.latent_channels)  # fmt: skip
            more = [inputs.read(one)] if inputs.read else []
        except BadInput as error:
            raise ValueError(f"validation: {error.bad.detail}") from error
        out.append(Clip(one["key"], torch.from_numpy(frames)[None], torch.from_numpy(inside)[None],
                        torch.tensor([fps]), more, counts))  # fmt: skip
    return out


def given(of: Objective, settings: TrainDiffusion, name: str, frames: int, device: torch.device) -> Tensor | None:
    """given_BT of a clip: its number of given frames is drawn as in training, by its name."""
    if not settings.config.condition_mask:
        return None
    return first_frames(torch.tensor([numbers(0, "given", name).random()]), of.given_frames, frames).to(device)


def noise(what: str, name: str, shape: torch.Size, device: torch.device) -> Tensor:
    return torch.randn(shape[1:], generator=generator(device, 0, what, name), device=device)[None]


def errors(of: Objective, model: DiT, x0: Tensor, c: Condition, drawn: Tensor, own: Tensor, t: float) -> Tensor:
    """[B, T]: of each latent frame, means over the rest; 0 of given ones. x0: as scaled for training; given frames are
    its own, unless the condition has others."""
    c = c._replace(latents_BCTHW=x0 if c.latents_BCTHW is None else c.latents_BCTHW)
    if isinstance(of, EDM):
        sigma_B = torch.full((len(x0),), t / (1 - t), device=x0.device)
        found = of.denoised(model, of.noised(x0, drawn, sigma_B), sigma_B, c, own)
        off = mixed(c.mask_B1T11, x0, found) - x0
        off = off * wide(of.weight(sigma_B)).sqrt()
    else:
        t_B = torch.full((len(x0),), t, device=x0.device)
        target = drawn - x0
        off = mixed(c.mask_B1T11, target, of.velocity(model, of.noised(x0, drawn, t_B), t_B, c)) - target
    return off.square().mean((1, 3, 4))


@torch.no_grad()
def look(settings: TrainDiffusion, model: DiT, of: Objective, inputs: Inputs, held: list[Clip],
         group: dist.ProcessGroup | None, here: Here) -> dict[str, float]:  # fmt: skip
    """held_out_<level> of each level, and their mean, held_out; over all ranks' clips. Every rank calls it."""
    sums_N2 = torch.zeros(len(LEVELS), 2, dtype=torch.float64)
    for clip in held:
        seen = inputs.of(clip.frames, clip.inside, clip.fps, clip.more)
        shape = seen.x0_BCTHW.shape
        given_BT = given(of, settings, clip.key, shape[2], here.device)
        drawn, own = (noise(what, clip.key, shape, here.device) for what in ("noise", "given noise"))
        c = Condition(seen.text_BLE, given_BT, None, seen.fps_B, seen.padding_BHW)
        x0, c, (drawn, own) = shared(seen.x0_BCTHW, c, [drawn, own], group)  # type: ignore[assignment]
        made = x0.shape[2] if c.given_BT is None else float((1 - c.given_BT).sum())
        for number, level in enumerate(LEVELS):
            with computing(settings, here.device):
                found = errors(of, model, x0, c, drawn, own, level).sum().item()
            if clip.counts:
                sums_N2[number] += torch.tensor([found, made], dtype=torch.float64)
    dist.all_reduce(sums_N2, group=here.words)
    each = (sums_N2[:, 0] / sums_N2[:, 1]).tolist()
    said = {f"held_out_{level:g}": value for level, value in zip(LEVELS, each, strict=True)}
    return {"held_out": sum(each) / len(each), **said}


def pictures_of(settings: TrainDiffusion, model: DiT, mean: dict[str, Tensor], of: Objective, inputs: Inputs,
                held: list[Clip], group: dist.ProcessGroup | None, here: Here, folder: Path,
                step: int) -> list[Path]:  # fmt: skip
    """Rank 0 writes pictures/<step>.webp, clips and what is made of them below each other, and the made videos as .mp4,
    by the weights and by their mean from the same noise; every rank calls it, since each has a part of the weights.
    Returns the files, on rank 0."""
    looked_at = held[: settings.pictures.clips]
    now = [made(settings, model, of, inputs, clip, group, here.device) for clip in looked_at]
    with ema.swapped(mean, model):
        later = [made(settings, model, of, inputs, clip, group, here.device) for clip in looked_at]
    if here.rank:
        return []
    strips, files = [], [folder / f"pictures/{step:09}.webp"]
    for number, (clip, *both) in enumerate(zip(looked_at, now, later, strict=True)):
        latents = inputs.of(clip.frames, clip.inside, clip.fps, clip.more).x0_BCTHW / of.latent_scale
        shown = [inputs.pixels(latents)[0], *(inputs.pixels(one)[0] for one in both)]
        strips.append(pictures.strip(*shown))
        for which, one in zip(("regular", "ema"), shown[1:], strict=True):
            files.append(folder / f"pictures/{step:09}_{number}_{which}.mp4")
            pictures.play(one, float(clip.fps) or 24.0, files[-1])
    pictures.write(strips, files[0])
    return files


@torch.no_grad()
def made(settings: TrainDiffusion, model: DiT, of: Objective, inputs: Inputs, clip: Clip,
         group: dist.ProcessGroup | None, device: torch.device) -> Tensor:  # fmt: skip
    """Latents, as a tokenizer decodes them, of a video with a clip's text and given frames: its whole."""
    known, p = settings.preset, settings.pictures
    seen = inputs.of(clip.frames, clip.inside, clip.fps, clip.more)
    shape = seen.x0_BCTHW.shape
    c = Condition(seen.text_BLE, given(of, settings, clip.key, shape[2], device), seen.x0_BCTHW / of.latent_scale,
                  seen.fps_B, seen.padding_BHW)  # fmt: skip
    if c.given_BT is None:
        c = c._replace(latents_BCTHW=None)
    guidance = known.guidance if p.guidance is None else p.guidance
    guidance = 0.0 if settings.text.source == "none" else guidance
    _, c, (begin,) = shared(seen.x0_BCTHW, c, [noise("picture", clip.key, shape, device)], group)
    how = Sampling(known.solver, known.schedule, p.steps, guidance)
    with computing(settings, device):
        found = samplers.sample(model, of, how, c, inputs.no_text(1) if guidance else None, begin)  # type: ignore[arg-type]
    return found if group is None else context_parallel.whole(found, group)
