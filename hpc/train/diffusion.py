"""train.diffusion: videos or their latents, and texts -> a diffusion model, by all ranks of a gang together. Read from
top to bottom.

    freeze      which data set it is (on the login side of the barrier): hpc.train.clips
    process     the whole stage: train, then publish
    train       the loop: a batch, gradients, a step, the means of weights, validation, a checkpoint
    ...         then what these call

The model is hpc.train.diffusion_model's, what it learns from hpc.train.diffusion_input's, what is measured
hpc.train.diffusion_measure's; objectives and their formulas are hpc.models.diffusion's.

    <output>/<stage>@v1/training/      while it trains: checkpoints/, metrics.jsonl, samples.parquet, held_out.json,
                                       pictures/
    <output>/<stage>@v1/model/         in the end: model.pt, model_ema_fp32.pt, model_ema_bf16.pt (of Predict1
                                       iter_..._{reg,ema}_model.pt), and ours/ with config.json, for `weights` of
                                       generate.diffusion
    <output>/<stage>@v1/held_out.json  the clips that it was not trained on (hpc.train.unseen)
    <output>/<stage>@v1/000000.json    what came of it; .html the same as a page, .jsonl its metrics
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from hpc.data import storage
from hpc.data.video import nvdec
from hpc.data.work import Made, Stopped, Work
from hpc.kernels import choose
from hpc.models import context_parallel, dit_files, dit_publish
from hpc.models.diffusion import EDM, Condition, Objective
from hpc.models.dit import DiT
from hpc.models.dit_presets import flops, parameters
from hpc.train import diffusion_measure as measure
from hpc.train import diffusion_optimizer, ema, page, pictures, ranks, samples, unseen
from hpc.train.agree import agreed
from hpc.train.checkpoint import Keeper
from hpc.train.clips import dataset, identity, place, plain
from hpc.train.clips import freeze as freeze
from hpc.train.diffusion_input import Inputs, draws, dropped, shared
from hpc.train.diffusion_model import begin, build, computing, objective, publish
from hpc.train.loader import Batch, Batches
from hpc.train.metrics import lines, opened
from hpc.train.ranks import Here
from hpc.train.saver import Saver, load, state_of
from hpc.train.schedule import cycled, rate, set_rate
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.diffusion import Latent, fits
from hpc.train.trackers import missing

TOLD = ("steps", "samples", "skipped", "replaced", "decoded_by_cpu")
BINS = 5
"""Of noise levels t from 0 to 1, in which the error of training is told."""
CHARTS = (("loss",), ("held_out", "ema_held_out"), *((f"held_out_{level:g}", f"ema_held_out_{level:g}")
          for level in measure.LEVELS), ("grad_norm",), ("samples_per_second",), ("rate",))  # fmt: skip


def start(settings: TrainDiffusion) -> Callable[[Work], Made]:
    missing(settings.metrics)
    return functools.partial(process, settings, ranks.start(settings.deterministic))


def process(settings: TrainDiffusion, here: Here, work: Work) -> Made:
    rows = work.rows
    if settings.wired():  # a path from here on
        settings, rows = msgspec.structs.replace(settings, tokenizer=rows[0]), rows[1:]
    folder = place(settings, work)
    table = dataset(rows, folder, here)
    out = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
    weights = work.scratch / "model"
    told = train(settings, table, folder, here, work.check, work.progress, weights)
    tree = {}
    if here.rank == 0:
        for path in sorted(weights.rglob("*")):
            if path.is_file():
                tree[storage.join(work.folder, f"model/{path.relative_to(weights)}")] = path
        tree |= pictures.published(folder, work.folder) | unseen.published(folder, work.folder)
        said = list(lines(folder / "metrics.jsonl"))
        told |= {"stage": settings.KIND, "fingerprint": work.fingerprint, "model": storage.join(work.folder, "model"),
                 "held_out": storage.join(work.folder, unseen.FILE)}  # fmt: skip
        out[0].write_text("".join(json.dumps(line) + "\n" for line in said))
        out[1].write_text(as_page(told, said, folder))
        out[2].write_text(json.dumps(told, indent=1) + "\n")
    return Made(out, {name: float(told.get(name, 0)) for name in TOLD}, tree=tree)


def train(
    settings: TrainDiffusion,
    table: pa.Table,
    folder: Path,
    here: Here,
    check: Callable[[], None],
    progress: Callable[[float, str], None] = lambda share, words: None,
    weights: Path | None = None,
) -> dict[str, Any]:
    """Every rank calls it. Returns, on rank 0, what came of it; weights: a folder where rank 0 puts the model in the
    end. Goes on from the newest checkpoint in the folder. Raises Stopped, with one written, when `check` does;
    RuntimeError where nothing is learned any more."""
    begun = time.time()
    settings.shared_by(here.count)
    of, o, cp = objective(settings), settings.optimizer, settings.mesh.cp
    data_rank, data_ranks = here.rank // cp, here.count // cp
    inputs = Inputs(settings, of, table, here.device)
    known, held = samples.held_out(table, v.share, v.by) if (v := settings.validation).share else (table, table[:0])
    gpu = nvdec.device_for(settings.decode, here.device) if inputs.videos else None
    batches = Batches(known, settings.shapes, settings.seed, settings.fit, inputs.read, gpu,
                      settings.config.latent_channels)  # fmt: skip
    clips = measure.clips(settings, held, inputs, data_rank, data_ranks)
    keeper = Keeper(folder / "checkpoints", settings.checkpoints, identity(settings, table), here.writers())
    newest = keeper.newest()
    if here.rank == 0:
        unseen.write(folder, settings.validation.by, unseen.of_samples(known, held))

    model = build(settings, here)
    group = None
    if cp > 1:
        over = init_device_mesh(here.device.type, (data_ranks, cp), mesh_dim_names=("dp", "cp"))
        context_parallel.share_frames(model, group := over["cp"].get_group())
    if newest is None:
        begin(model, settings, here)
    optimizer = diffusion_optimizer.make(model, o)
    at_once = choose(settings.kernels, torch.empty(0, device=here.device)) == "fused"
    means = [ema.begin(model) for _ in settings.ema]
    saver = Saver(keeper, here.files)
    step = skipped = bad = 0
    state = functools.partial(state_of, model, optimizer, means, called=functools.partial(
        dit_files.published, names=settings.preset.form))  # fmt: skip
    if newest:
        step, where = newest
        load(found := state(step, skipped), where, here.files)
        skipped = found["trainer"]["skipped"]
    look = functools.partial(measure.look, settings, model, of, inputs, clips, group, here)

    told = opened(settings, folder, step, here)
    stall = 0.0
    with told or contextlib.nullcontext():
        arriving = batches.of_rank(data_rank, data_ranks, step, settings.readers) if step < settings.steps else iter(())
        for batch in arriving:
            since = time.monotonic()
            step += 1
            speed = cycled(o.cycle, o.rate, step) if o.cycle else rate(o, step, settings.steps)
            set_rate(optimizer, speed)
            parts, sums_2N, latent = gradients(settings, model, of, inputs, batch, group)
            kept = [ema.share_kept(one, step) for one in settings.ema]
            norm = diffusion_optimizer.step(model, optimizer, o, means, kept, at_once)
            if math.isfinite(norm):  # the same on every rank
                bad = 0
            else:
                skipped, bad = skipped + 1, bad + 1
            optimizer.zero_grad()
            parts |= {"waited": torch.tensor(batch.waited, device=here.device),
                      "replaced": torch.tensor(data_ranks * len(batch.replaced), device=here.device)}  # fmt: skip
            parts["decoded_by_cpu"] = torch.tensor(data_ranks * batch.decoded_by_cpu, device=here.device)
            line = ranks.mean_of_all(parts) | levels(sums_2N)
            count = batch.shape.batch
            line |= {"grad_norm": norm, "rate": speed, "skipped": skipped,
                     **ranks.took(here, time.monotonic() - since, line["waited"], stall, count, count * latent.tokens,
                                  3 * count * flops(settings.config, *latent))}  # fmt: skip
            leave, due = agreed(check, keeper.due(step, settings.steps), here.words)
            if clips and (step % settings.validation.every == 0 or step == settings.steps):
                since = time.monotonic()
                line |= look()
                with ema.swapped(means[0], model):
                    line |= {f"ema_{name}": value for name, value in look().items()}
                line["validation_seconds"] = time.monotonic() - since
            if clips and settings.pictures.clips and inputs.tokenizer and (
                step % settings.pictures.every == 0 or step == settings.steps
            ):  # fmt: skip
                since = time.monotonic()
                shown = measure.pictures_of(settings, model, means[0], of, inputs, clips, group, here, folder, step)
                line["pictures_seconds"] = time.monotonic() - since
                if told:
                    told.show(step, shown)
            if told:
                told.step(step, **line)
            since = time.monotonic()
            if leave or due:
                beside = dit_publish.beside(settings.config, settings.preset.form, step)
                saver.save(step, state(step, skipped, speed, beside=beside), {"loss": line["loss"]})
            if bad == o.bad_steps or leave:
                saver.wait()
            stall = time.monotonic() - since
            progress(step / settings.steps, f"step {step} of {settings.steps}, loss {line['loss']:.4f}, "
                                            f"{line['samples_per_second']:.1f} videos a second")  # fmt: skip
            if bad == o.bad_steps:
                raise RuntimeError(f"the gradients of {bad} steps in a row, up to step {step}, are not finite: lower "
                                   "`optimizer.rate`, or look at the data; checkpoints of earlier steps are in "
                                   f"{keeper.folder}")  # fmt: skip
            if step == settings.steps:
                break
            if leave:
                raise Stopped
    saver.wait()
    if weights is not None:
        publish(model, means, settings, step, weights, here)
    if here.rank:
        return {}
    said = list(lines(folder / "metrics.jsonl"))
    return {
        "steps": step, "samples": int(sum(line["samples"] for line in said)), "skipped": skipped,
        "replaced": int(sum(line["replaced"] for line in said)),
        "decoded_by_cpu": int(sum(line["decoded_by_cpu"] for line in said)),
        "ranks": here.count, "device": str(here.device), "seconds": round(time.time() - begun, 1),
        "parameters": parameters(settings.config),
        "clips": {"trained_on": sum(map(len, batches.rows)), "held_out": len(held),
                  **{why: len(keys) for why, keys in batches.left_out.items()}},
        "gpu_hours": said[-1]["gpu_hours"],
        "flops": "attention of all to all; MFU is a share of the GPU's dense bfloat16",
        "last": said[-1], "settings": plain(settings),
    }  # fmt: skip


def gradients(settings: TrainDiffusion, model: DiT, of: Objective, inputs: Inputs, batch: Batch,
              group: dist.ProcessGroup | None) -> tuple[dict[str, Tensor], Tensor, Latent]:  # fmt: skip
    """Adds up the gradients of a rank's share of a batch. Returns its losses, means over the share; (sums of errors,
    samples) in each bin of noise levels; and the sizes of whole latents."""
    share = len(batch.samples)
    each = settings.micro_batch or share
    sums: dict[str, Tensor] = {}
    bins_2N = torch.zeros(2, BINS, device=inputs.device)
    for first in range(0, share, each):
        part = slice(first, first + each)
        video = inputs.of(batch.frames[part], batch.inside[part], batch.fps[part], batch.more[part])
        latent = Latent(*video.x0_BCTHW.shape[2:])
        fits(settings.config, latent, 0)
        settings.divided(0, latent)
        drawn = batch.samples[part]
        noises, given_BT = draws(settings.seed, drawn, video.x0_BCTHW.shape, of, settings.config.condition_mask,
                                 inputs.device)  # fmt: skip
        text = dropped(video.text_BLE, settings.seed, drawn, settings.text.dropout)
        condition = Condition(text, given_BT, None, video.fps_B, video.padding_BHW)
        x0, condition, (noise, own) = shared(video.x0_BCTHW, condition, [noises.noise_BCTHW, noises.given_noise_BCTHW],
                                             group)  # fmt: skip
        with computing(settings, inputs.device):
            loss = of.loss(model, x0, condition, noises._replace(noise_BCTHW=noise, given_noise_BCTHW=own))
        weight = len(drawn) / share
        (loss.loss * weight).backward()
        for name, value in {"loss": loss.loss, "error": loss.per_sample_B.mean()}.items():
            sums[name] = sums.get(name, 0) + value.detach() * weight
        t_B = loss.level_B / (1 + loss.level_B) if isinstance(of, EDM) else loss.level_B
        which_B = (t_B * BINS).long().clamp(0, BINS - 1)
        bins_2N[0].scatter_add_(0, which_B, loss.per_sample_B)
        bins_2N[1].scatter_add_(0, which_B, torch.ones_like(loss.per_sample_B))
    return sums, bins_2N, latent


def levels(sums_2N: Tensor) -> dict[str, float]:
    """Errors in the bins of noise levels that some rank's samples were in; every rank calls it."""
    dist.all_reduce(sums_2N)
    errors, counts = sums_2N.tolist()
    return {f"error_{(i + 0.5) / BINS:g}": error / count
            for i, (error, count) in enumerate(zip(errors, counts, strict=True)) if count}  # fmt: skip


def as_page(told: dict[str, Any], said: list[dict[str, Any]], folder: Path) -> str:
    last = told["last"]
    facts = {
        "steps": f"{told['steps']:,}", "videos taken": f"{told['samples']:,}", "data set": told["clips"],
        "parameters": f"{told['parameters']:,}", "ranks": told["ranks"], "steps left out (not finite)": told["skipped"],
        **{name: f"{float(last[name]):.4g}" for name in ("held_out", "ema_held_out") if name in last},
        **page.costs(told, said),
        "model": told["model"],
    }  # fmt: skip
    about = ("Held-out clips: first, middle and last frame; the clip, a video made by the weights, and by their mean, "
             "with the same text and the same frames given.")  # fmt: skip
    return page.page("A diffusion model", facts, CHARTS, said, folder / "pictures", about)
