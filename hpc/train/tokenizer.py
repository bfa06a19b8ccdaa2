"""train.tokenizer: a data set of clips -> a video tokenizer, by all ranks of a gang together. Read from top to bottom.

    freeze      which tars it is (on the login side of the barrier)
    process     the whole stage: train, then publish
    train       the loop: a batch, gradients, a step, the mean of weights, validation, a checkpoint
    ...         then what these call, in that order

A step's arithmetic: video -> encoder -> z -> (ids by FSQ | as it is | a draw of the posterior) -> decoder -> video, and
the mean absolute difference of the two, with what `loss` of the settings adds. Each loss is a mean over clips, computed
for each clip by itself, so that it is the same however a batch is spread over ranks and over parts of a share.

    <output>/<stage>@v1/training/      while it trains: checkpoints/, metrics.jsonl, samples.parquet, pictures/
    <output>/<stage>@v1/tokenizer/     in the end: config.json and model.safetensors, for hpc.models.tokenizers.load
    <output>/<stage>@v1/000000.json    what came of it; .html the same as a page, .jsonl its metrics
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from hpc.data import storage
from hpc.data.video import nvdec
from hpc.data.work import Made, Stopped, Work
from hpc.models import tokenizers
from hpc.models.quality import psnr, ssim
from hpc.models.tokenizers import cosmos, files, wan
from hpc.models.tokenizers.causal import CausalTokenizer, ResBlock
from hpc.train import ema, fsdp, page, pictures, ranks, samples
from hpc.train.agree import agreed
from hpc.train.checkpoint import Keeper
from hpc.train.clips import dataset, identity, looked_at, place, plain
from hpc.train.clips import freeze as freeze
from hpc.train.loader import Batch, Batches, taken
from hpc.train.metrics import lines, opened
from hpc.train.randomness import generator, key, numbers
from hpc.train.ranks import Here
from hpc.train.saver import Saver, load, state_of
from hpc.train.schedule import rate, set_rate
from hpc.train.settings import TrainTokenizer
from hpc.train.settings.tokenizer import Sizes, unfit
from hpc.train.trackers import missing

CHARTS = (("loss", "pixels"), ("psnr", "ema_psnr"), ("ssim", "ema_ssim"), ("usage", "ema_usage"), ("kl", "perceptual"),
          ("grad_norm",), ("samples_per_second",), ("rate",))  # fmt: skip
TOLD = ("steps", "samples", "skipped", "replaced", "decoded_by_cpu")
PICTURED = 4
"""Clips of which there are pictures."""
MEASURED = 16
"""Batches of which the means and deviations of latents are taken in the end."""


def start(settings: TrainTokenizer) -> Callable[[Work], Made]:
    missing(settings.metrics)
    return functools.partial(process, settings, ranks.start(settings.deterministic))


def process(settings: TrainTokenizer, here: Here, work: Work) -> Made:
    folder = place(settings, work)
    table = dataset(work.rows, folder, here)
    tokenizer, told = train(settings, table, folder, here, work.check, work.progress)
    out = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
    tree = {}
    if tokenizer is not None:  # on rank 0, which publishes
        files.save(tokenizer, work.scratch / "tokenizer")
        for path in sorted((work.scratch / "tokenizer").iterdir()):
            tree[storage.join(work.folder, f"tokenizer/{path.name}")] = path
        tree |= pictures.published(folder, work.folder)
        said = list(lines(folder / "metrics.jsonl"))
        told |= {"stage": settings.KIND, "fingerprint": work.fingerprint,
                 "tokenizer": storage.join(work.folder, "tokenizer")}  # fmt: skip
        out[0].write_text("".join(json.dumps(line) + "\n" for line in said))
        out[1].write_text(as_page(told, said, folder))
        out[2].write_text(json.dumps(told, indent=1) + "\n")
    counts = {name: float(told.get(name, 0)) for name in TOLD}
    return Made(out, counts, tree=tree)


def train(
    settings: TrainTokenizer,
    table: pa.Table,
    folder: Path,
    here: Here,
    check: Callable[[], None],
    progress: Callable[[float, str], None] = lambda share, words: None,
) -> tuple[CausalTokenizer | None, dict[str, Any]]:
    """Every rank calls it. Returns, on rank 0, the tokenizer with the mean of the weights, and what came of it; None
    and {} elsewhere. Goes on from the newest checkpoint in the folder. Raises Stopped, with one written, when `check`
    does; RuntimeError where nothing is learned any more."""
    begun = time.time()
    if settings.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
    tokenizer = first(settings).to(here.device)
    unfit(settings.shapes, tokenizer.temporal, tokenizer.spatial, settings.piece)
    known, held = samples.held_out(table, v.share, v.by) if (v := settings.validation).share else (table, table[:0])
    gpu = None if settings.in_memory else nvdec.device_for(settings.decode, here.device)
    batches = Batches(known, settings.shapes, settings.seed, settings.fit, gpu=gpu)
    if settings.in_memory:
        size = batches.keep(threads=os.cpu_count() or 1)
        logging.getLogger(__name__).warning("%.1f GiB of frames are in memory", size / 2**30)
    clips = validation_clips(settings, held, here)
    perceptual = None
    if wanted := settings.loss.perceptual:
        from hpc.models.features import load as load_features

        perceptual = load_features(wanted.model, here.device)
    if settings.compile:
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    fsdp.shard([tokenizer.encoder, tokenizer.decoder], fsdp.mesh(here.device))
    o = settings.optimizer
    optimizer = torch.optim.AdamW(tokenizer.parameters(), o.rate, o.betas, o.eps, o.weight_decay,
                                  fused=here.device.type == "cuda")  # fmt: skip
    mean = ema.begin(tokenizer)

    keeper = Keeper(folder / "checkpoints", settings.checkpoints, identity(settings, table), here.writers())
    saver = Saver(keeper, here.files)
    step = skipped = bad = 0
    if newest := keeper.newest():
        step, where = newest
        load(found := state_of(tokenizer, optimizer, [mean], step, skipped), where, here.files)
        skipped = found["trainer"]["skipped"]

    told = opened(settings, folder, step, here)
    stall = 0.0
    with told or contextlib.nullcontext():
        arriving = batches.of_rank(here.rank, here.count, step, settings.readers) if step < settings.steps else iter(())
        for batch in arriving:
            since = time.monotonic()
            step += 1
            speed = rate(o, step, settings.steps)
            set_rate(optimizer, speed)
            parts = gradients(settings, tokenizer, perceptual, batch, here.device)
            norm = fsdp.clip(tokenizer.parameters(), o.clip)
            if math.isfinite(norm):  # the same on every rank
                optimizer.step()
                ema.update(mean, tokenizer, ema.share_kept(settings.ema, step))
                bad = 0
            else:
                skipped, bad = skipped + 1, bad + 1
            optimizer.zero_grad()
            parts |= {"waited": torch.tensor(batch.waited, device=here.device),
                      "replaced": torch.tensor(here.count * len(batch.replaced), device=here.device)}  # fmt: skip
            parts["decoded_by_cpu"] = torch.tensor(here.count * batch.decoded_by_cpu, device=here.device)
            line = ranks.mean_of_all(parts)
            line |= ranks.took(here, time.monotonic() - since, line["waited"], stall, batch.shape.batch)
            line |= {"grad_norm": norm, "rate": speed, "skipped": skipped}
            leave, due = agreed(check, keeper.due(step, settings.steps), here.words)
            if clips and (step % settings.validation.every == 0 or step == settings.steps):
                since = time.monotonic()
                picture = folder / f"pictures/{step:09}.webp"
                line |= validate(settings, tokenizer, mean, clips, here, picture)
                line["validation_seconds"] = time.monotonic() - since
                if told:
                    told.show(step, [picture])
            if told:
                told.step(step, **line)
            since = time.monotonic()
            if leave or due:
                saver.save(step, state_of(tokenizer, optimizer, [mean], step, skipped, speed), {"loss": line["loss"]})
            if bad == o.bad_steps or leave:
                saver.wait()
            stall = time.monotonic() - since
            progress(step / settings.steps, f"step {step} of {settings.steps}, loss {line['loss']:.4f}, "
                                            f"{line['samples_per_second']:.1f} clips a second")  # fmt: skip
            if bad == o.bad_steps:
                raise RuntimeError(f"the gradients of {bad} steps in a row, up to step {step}, are not finite: lower "
                                   "`optimizer.rate`, or look at the data; checkpoints of earlier steps are in "
                                   f"{keeper.folder}")  # fmt: skip
            if step == settings.steps:
                break
            if leave:
                raise Stopped
    saver.wait()
    finished = exported(settings, tokenizer, mean, batches, here)
    if here.rank:
        return None, {}
    said = list(lines(folder / "metrics.jsonl"))
    return finished, {
        "steps": step, "samples": int(sum(line["samples"] for line in said)), "skipped": skipped,
        "replaced": int(sum(line["replaced"] for line in said)),
        "decoded_by_cpu": int(sum(line["decoded_by_cpu"] for line in said)),
        "ranks": here.count, "device": str(here.device),
        "seconds": round(time.time() - begun, 1), "parameters": sum(p.numel() for p in finished.parameters()),
        "clips": {"trained_on": sum(map(len, batches.rows)), "held_out": len(held),
                  **{why: len(keys) for why, keys in batches.left_out.items()}},
        "gpu_hours": said[-1]["gpu_hours"], "last": said[-1], "settings": plain(settings),
    }  # fmt: skip


# What it is made of


def first(settings: TrainTokenizer) -> CausalTokenizer:
    """With the weights that training begins with, in float32, the same on every rank. Raises what `tokenizers.load`
    does, and TypeError for a tokenizer that cannot be trained here."""
    if isinstance(settings.tokenizer, str):
        found = tokenizers.load(settings.tokenizer)
        if type(found) not in (cosmos.CosmosDiscrete, cosmos.CosmosContinuous, wan.WanVAE):
            known = ", ".join(files.KINDS)
            raise TypeError(f"tokenizer: {settings.tokenizer} is a {type(found).__name__}; {known} can be trained")
        return found.requires_grad_(True).train()  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(settings.seed, "weights") >> 1)
        return quietened(made(settings.tokenizer))


def made(sizes: Sizes) -> CausalTokenizer:
    """With random weights."""
    common = {"channels": sizes.of("channels"), "multipliers": sizes.of("multipliers"), "blocks": sizes.blocks}
    if sizes.family == "wan":
        latents, halvings = sizes.of("latent_channels"), len(sizes.of("multipliers")) - 1
        times = sizes.of("temporal").bit_length() - 1
        halves = (False,) * (halvings - times) + (True,) * times
        return wan.WanVAE(wan.Config(halves_frames=halves, mean=(0.0,) * latents, std=(1.0,) * latents, **common))
    common |= {"temporal": sizes.of("temporal"), "spatial": sizes.of("spatial"), "levels": sizes.of("levels"),
               "latent_channels": sizes.of("latent_channels")}  # fmt: skip
    of = cosmos.CosmosDiscrete if sizes.family == "cosmos-dv" else cosmos.CosmosContinuous
    return of(cosmos.Config(**common))


@torch.no_grad()
def quietened(tokenizer: CausalTokenizer) -> CausalTokenizer:
    """Random weights to begin with: each residual branch adds nothing yet, and the picture is nearly grey. A small DV
    had a loss of 0.157 after 100 steps on four clips so, and 0.178 with PyTorch's own first weights."""

    def last(conv: torch.nn.Module) -> torch.nn.Module:
        return conv.time if isinstance(conv, cosmos.SpaceTimeConv) else conv

    quiet = [(last(module.conv2), 0.0) for module in tokenizer.modules() if isinstance(module, ResBlock)]
    quiet += [(m.out, 0.0) for m in tokenizer.modules() if isinstance(m, (cosmos.Attention, wan.Attention))]
    for layer, scale in [*quiet, (last(tokenizer.decoder.conv_out), 0.1)]:
        for weight in layer.parameters():
            weight.mul_(scale)
    return tokenizer


def gradients(settings: TrainTokenizer, tokenizer: CausalTokenizer, perceptual: Any, batch: Batch,
              device: torch.device) -> dict[str, Tensor]:  # fmt: skip
    """Adds up the gradients of a rank's share of a batch. Returns its losses, means over the share."""
    share = len(batch.samples)
    each = settings.micro_batch or share
    sums: dict[str, Tensor] = {}
    for begin in range(0, share, each):
        here = slice(begin, begin + each)
        drawn = batch.samples[here]
        frames, inside = pieces(settings, drawn, batch.frames[here], batch.inside[here])
        video, inside = as_video(frames, device), inside.to(device)
        with computing(settings, device):
            passed = reconstructed(tokenizer, video, functools.partial(noise, settings.seed, drawn, device))
        losses = losses_of(settings, passed, video, inside)
        if perceptual is not None and settings.loss.perceptual:
            frames = chosen_frames(settings, drawn, video.shape[2], device)
            with computing(settings, device):
                losses["perceptual"] = perceptual(at(passed.video, frames), at(video, frames)).mean()
            losses["loss"] = losses["loss"] + settings.loss.perceptual.weight * losses["perceptual"]
        part = len(drawn) / share
        (losses["loss"] * part).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach() * part
    return sums


def pieces(
    settings: TrainTokenizer, drawn: list[int], frames_BTHWC: Tensor, inside_BHW: Tensor
) -> tuple[Tensor, Tensor]:
    """What is trained on of samples: whole frames, or a piece of each, at a place that its number draws."""
    if settings.piece is None:
        return frames_BTHWC, inside_BHW
    room = [whole - part for whole, part in zip(frames_BTHWC.shape[2:4], settings.piece, strict=True)]
    found = []
    for frames, inside, sample in zip(frames_BTHWC, inside_BHW, drawn, strict=True):
        top, left = numbers(settings.seed, "piece", sample).integers(0, room, endpoint=True)
        place = slice(top, top + settings.piece[0]), slice(left, left + settings.piece[1])
        found.append((frames[:, *place], inside[place]))
    return torch.stack([frames for frames, _ in found]), torch.stack([inside for _, inside in found])


class Passed(NamedTuple):
    """What came of a video."""

    video: Tensor
    """The reconstruction, float32 [B, 3, T, H, W]."""
    z: Tensor
    """float32 [B, channels, t, h, w]: before FSQ; of a posterior, its means."""
    ids: Tensor | None
    """int32 [B, t, h, w], of a discrete tokenizer."""
    log_variance: Tensor | None
    """Of a posterior, as z."""
    unevenness: Tensor | None
    """[B], of a discrete tokenizer."""


def reconstructed(tokenizer: CausalTokenizer, video: Tensor, noise: Callable[[Tensor], Tensor] | None) -> Passed:
    """noise: makes noise like a tensor, for tokenizers with a posterior; None: its mean is taken."""
    z, _ = tokenizer.encoder(video, None)
    codes, ids, log_variance, uneven = z, None, None, None
    if isinstance(tokenizer, cosmos.CosmosDiscrete):
        codes, ids = tokenizer.fsq(z)
        uneven = unevenness(tokenizer, z)
    elif isinstance(tokenizer, wan.WanVAE):
        z, log_variance = z.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        codes = z + (log_variance / 2).exp() * noise(z) if noise else z
    out, _ = tokenizer.decoder(codes, None)
    return Passed(out.float(), z.float(), ids, log_variance, uneven)


def losses_of(settings: TrainTokenizer, passed: Passed, video: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Means over clips; pixels beside a padded picture do not count. "loss" is their weighted sum."""
    shown = inside[:, None, None].to(video.dtype)
    off = (passed.video - video).abs() * shown
    pixels = (off.sum((1, 2, 3, 4)) / (shown.sum((1, 2, 3, 4)) * video.shape[1] * video.shape[2])).mean()
    out = {"pixels": pixels, "loss": pixels}
    if passed.log_variance is not None:
        variance = passed.log_variance.exp()
        out["kl"] = (passed.z.square() + variance - 1 - passed.log_variance).mean() / 2
        out["loss"] = out["loss"] + settings.loss.kl * out["kl"]
    if passed.unevenness is not None:
        out["unevenness"] = passed.unevenness.mean()
        if settings.loss.evenness:
            out["loss"] = out["loss"] + settings.loss.evenness * out["unevenness"]
    return out


def unevenness(tokenizer: cosmos.CosmosDiscrete, z_BCTHW: Tensor) -> Tensor:
    """[B]: 0 where each channel's levels are used equally often within a clip, 1 where one level alone is; mean over
    channels of 1 - entropy / log(levels). A value counts for levels near it, by exp(-4 distance^2), for a gradient."""
    bounded = tokenizer.fsq.bounded(z_BCTHW.movedim(1, -1)).flatten(1, 3)  # [B, positions, channels]
    out = []
    for channel, count in enumerate(tokenizer.fsq.levels):
        levels = torch.arange(count, device=bounded.device) - count // 2
        near = torch.softmax(-4 * (bounded[..., channel, None] - levels).square(), dim=-1).mean(1)
        out.append(1 + torch.xlogy(near, near).sum(-1) / math.log(count))
    return torch.stack(out).mean(0)


def as_video(frames_BTHWC: Tensor, device: torch.device) -> Tensor:
    """uint8 -> float32 [B, 3, T, H, W] from -1 to 1."""
    return frames_BTHWC.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def computing(settings: TrainTokenizer, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16" and device.type == "cuda")


def noise(seed: int, drawn: list[int], device: torch.device, like: Tensor) -> Tensor:
    """Of each sample by its number among all that training takes."""
    shape = like.shape[1:]
    return torch.stack([torch.randn(shape, generator=generator(device, seed, "posterior", sample), device=device)
                        for sample in drawn])  # fmt: skip


def chosen_frames(settings: TrainTokenizer, drawn: list[int], frames: int, device: torch.device) -> Tensor:
    """int64 [B, frames to look at], each clip's own."""
    count = min(settings.loss.perceptual.frames, frames) if settings.loss.perceptual else frames
    return torch.stack([torch.from_numpy(numbers(settings.seed, "looked at", sample).permutation(frames)[:count])
                        for sample in drawn]).to(device)  # fmt: skip


def at(video_BCTHW: Tensor, frames: Tensor) -> Tensor:
    """These frames of each clip, [B x frames, 3, H, W]."""
    return torch.stack([video[:, places] for video, places in zip(video_BCTHW, frames, strict=True)]).transpose(
        1, 2).flatten(0, 1)  # fmt: skip


# What is measured


class Clip(NamedTuple):
    """A held-out one, of this rank."""

    video: Tensor
    """uint8 [1, T, H, W, 3]."""
    counts: bool
    """False: it is here only so that every rank has as many."""


def validation_clips(settings: TrainTokenizer, held: pa.Table, here: Here) -> list[Clip]:
    """This rank's part of the held-out clips that are looked at: the same ones on any number of ranks. Raises
    ValueError where there are held-out ones, and none fits a shape."""
    out = []
    for one, shape, start, counts in looked_at(settings, held, here.rank, here.count):
        frames, _, _ = taken(one, shape, start, settings.fit)
        out.append(Clip(torch.from_numpy(frames)[None], counts))
    return out


def validate(settings: TrainTokenizer, tokenizer: CausalTokenizer, mean: dict[str, Tensor], clips: list[Clip],
             here: Here, picture: Path) -> dict[str, float]:  # fmt: skip
    """With the weights as they are, and with their mean (ema_...): PSNR and SSIM, mean over frames and clips, and how
    ids are used. Rank 0 writes a picture: originals, reconstructions, and those of the mean, below each other."""
    found, now = look(settings, tokenizer, clips, here)
    with ema.swapped(mean, tokenizer):
        averaged, later = look(settings, tokenizer, clips, here)
    if here.rank == 0:
        originals = [as_video(clip.video, here.device)[0] for clip in clips[:PICTURED]]
        pictures.write([pictures.strip(*three) for three in zip(originals, now, later, strict=True)], picture)
    return found | {f"ema_{name}": value for name, value in averaged.items()}


@torch.no_grad()
def look(settings: TrainTokenizer, tokenizer: CausalTokenizer, clips: list[Clip],
         here: Here) -> tuple[dict[str, float], list[Tensor]]:  # fmt: skip
    """(what is measured of all ranks' clips, this rank's first reconstructions [3, T, H, W])."""
    sums = torch.zeros(3, dtype=torch.float64)
    used = torch.zeros(tokenizer.vocabulary or 0, dtype=torch.int64)
    kept = []
    for clip in clips:
        video = as_video(clip.video, here.device)
        with computing(settings, here.device):
            passed = reconstructed(tokenizer, video, None)
        if len(kept) < PICTURED:
            kept.append(passed.video[0])
        if clip.counts:
            near = psnr(passed.video, video).mean(), ssim(passed.video, video).mean()
            sums += torch.tensor([*(value.item() for value in near), 1.0], dtype=torch.float64)
            if passed.ids is not None:
                used += torch.bincount(passed.ids.flatten().long().cpu(), minlength=len(used))
    dist.all_reduce(sums, group=here.words)
    out = {"psnr": (sums[0] / sums[2]).item(), "ssim": (sums[1] / sums[2]).item()}
    if len(used):
        dist.all_reduce(used, group=here.words)
        share = used[used > 0].double() / used.sum()
        out |= {"usage": len(share) / len(used), "perplexity": torch.exp(-(share * share.log()).sum()).item()}
    return out, kept


# What is left in the end


def exported(settings: TrainTokenizer, tokenizer: CausalTokenizer, mean: dict[str, Tensor], batches: Batches,
             here: Here) -> CausalTokenizer:  # fmt: skip
    """On rank 0: the tokenizer with the mean of the weights, on the CPU. A continuous one gets the means and deviations
    of its latents, so that what it encodes is ready for a diffusion model."""
    config = tokenizer.config  # type: ignore[attr-defined]
    if tokenizer.vocabulary is None:
        with ema.swapped(mean, tokenizer):
            means, stds = statistics(settings, tokenizer, batches, here)
        if isinstance(tokenizer, wan.WanVAE):
            config = dataclasses.replace(config, mean=means, std=stds)
        else:  # for each latent frame the same
            config = dataclasses.replace(config, mean=tuple((m,) for m in means), std=tuple((s,) for s in stds))
    out = type(tokenizer)(config)
    weights = fsdp.whole(mean)
    if here.rank == 0:
        out.load_state_dict(weights, strict=True)
    return out.requires_grad_(False).eval().to(getattr(torch, settings.weights))


@torch.no_grad()
def statistics(settings: TrainTokenizer, tokenizer: CausalTokenizer, batches: Batches,
               here: Here) -> tuple[tuple[float, ...], tuple[float, ...]]:  # fmt: skip
    """(mean, standard deviation) of each latent channel, over the first batches of training."""
    sums = torch.zeros(3, tokenizer.latent_channels, dtype=torch.float64)
    for step in range(min(MEASURED, settings.steps)):
        for frames in batches.at(step, here.rank, here.count).frames.split(settings.micro_batch or 1):
            with computing(settings, here.device):
                z = reconstructed(tokenizer, as_video(frames, here.device), None).z
            z = z.double().movedim(1, 0).flatten(1).cpu()
            sums += torch.stack([z.sum(1), z.square().sum(1), torch.full((len(z),), z.shape[1], dtype=z.dtype)])
    dist.all_reduce(sums, group=here.words)
    means = sums[0] / sums[2]
    stds = (sums[1] / sums[2] - means.square()).clamp_min(1e-12).sqrt()
    return tuple(means.tolist()), tuple(stds.tolist())


def as_page(told: dict[str, Any], said: list[dict[str, Any]], folder: Path) -> str:
    last = told["last"]
    facts = {
        "steps": f"{told['steps']:,}", "clips taken": f"{told['samples']:,}",
        "data set": ", ".join(f"{number} clips {name.replace('_', ' ')}" for name, number in told["clips"].items()),
        "parameters": f"{told['parameters']:,}", "ranks": told["ranks"], "steps left out (not finite)": told["skipped"],
        **{name: f"{float(last[name]):.4g}" for name in ("ema_psnr", "ema_ssim", "ema_perplexity") if name in last},
        **page.costs(told, said),
        "tokenizer": told["tokenizer"],
    }  # fmt: skip
    about = "Held-out clips: first, middle and last frame; original, reconstruction, that of the mean of the weights."
    if not pictures.by_step(folder / "pictures"):
        logging.getLogger(__name__).warning("no clips were held out: nothing says how good this tokenizer is")
    return page.page("A video tokenizer", facts, CHARTS, said, folder / "pictures", about)
