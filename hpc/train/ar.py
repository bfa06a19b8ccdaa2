"""train.ar: a data set of tokens -> an autoregressive model, by all ranks of a gang together. Read from top to bottom.

freeze      which token data set it is (on the login side of the barrier)
process     the whole stage: train, then publish
train       the loop: a batch, a step of hpc.train.ar_engine, a line of metrics, a checkpoint
...         then what these call, in that order

<output>/<stage>@v1/training/      while it trains: checkpoints/, metrics.jsonl, held_out.json
<output>/<stage>@v1/model/         in the end: model.safetensors, under the published names, and config.json;
                                   of adapters adapters.safetensors too, which are in model.safetensors already
<output>/<stage>@v1/held_out.json  the clips that it was not trained on (hpc.train.unseen)
<output>/<stage>@v1/000000.json    what came of it; .jsonl its metrics
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from hpc.data import storage
from hpc.data.tokens import CALLED
from hpc.data.tokens.action import FRAMES
from hpc.data.upstream import meta_of, table
from hpc.data.work import Made, Stopped, Work
from hpc.models import lora
from hpc.models.ar import cpu, keys, nemo
from hpc.models.ar.model import Backend
from hpc.models.ar.presets import Preset
from hpc.train import pictures, ranks, token_data, unseen
from hpc.train.agree import agreed
from hpc.train.ar_engine import Compute, Engine, Microbatch, Writing
from hpc.train.ar_measure import Samples, as_page
from hpc.train.checkpoint import Keeper, writing
from hpc.train.clips import deciding, place, plain
from hpc.train.metrics import lines, opened
from hpc.train.previous_frame import PreviousFrame
from hpc.train.randomness import generator
from hpc.train.ranks import Here
from hpc.train.schedule import rate
from hpc.train.settings import TrainAr
from hpc.train.settings.ar import unlike
from hpc.train.trackers import missing

Upstream = Mapping[str, list[tuple[str, dict[str, str]]]]
COUNTED = 4000
"""Clips that the previous-frame model is fitted to, at most: 41 million pairs of the large ones."""


def freeze(settings: TrainAr, upstream: Upstream, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """One shard: the files of the needed stage of tokens, or its folder and the tables in it. Raises ValueError for a
    form that the model does not take."""
    world, action = settings.preset.context_dim is not None, settings.preset.action_dim is not None
    mark = f"train/{FRAMES}" if action else token_data.video2world.METADATA
    for shards in upstream.values():
        made = shards[0][1]
        if {".bin", ".idx", ".parquet"} <= made.keys() and not world:
            yield [files for _, files in shards]
            return
        folder = next(iter(made.values())).rpartition("/")[0]
        if world and storage.stat(storage.join(folder, mark)):
            yield [folder, *(files[".parquet"] for _, files in shards if ".parquet" in files)]
            return
    form = settings.forms[0] + (f" (or {settings.forms[1]})" if settings.forms[1:] else "")
    raise ValueError(f"{settings.model} is trained on tokens of the form {form}: `needs` must name a stage "
                     f"prepare.tokens with `form: {form.split()[0]}`; it has {', '.join(upstream)}")  # fmt: skip


def start(settings: TrainAr) -> Callable[[Work], Made]:
    if settings.deterministic:
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"  # before transformer-engine is imported
    missing(settings.metrics)
    return functools.partial(process, settings, ranks.start(settings.deterministic))


def process(settings: TrainAr, here: Here, work: Work) -> Made:
    folder = place(settings, work)
    out = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
    weights = work.scratch / "model"
    weights.mkdir()
    told = train(settings, work.rows, folder, here, work.check, work.progress, weights)
    tree = {}
    if here.rank == 0:
        for path in sorted(weights.iterdir()):
            tree[storage.join(work.folder, f"model/{path.name}")] = path
        told |= {"stage": settings.KIND, "fingerprint": work.fingerprint, "model": storage.join(work.folder, "model"),
                 "held_out": storage.join(work.folder, unseen.FILE)}  # fmt: skip
        tree |= pictures.published(folder, work.folder) | unseen.published(folder, work.folder)
        said = list(lines(folder / "metrics.jsonl"))
        out[0].write_text("".join(json.dumps(line) + "\n" for line in said))
        out[1].write_text(as_page(told, said, folder))
        out[2].write_text(json.dumps(told, indent=1) + "\n")
    return Made(out, {name: float(told.get(name, 0)) for name in ("steps", "tokens", "skipped")}, tree=tree)


def train(
    settings: TrainAr,
    rows: list[Any],
    folder: Path,
    here: Here,
    check: Callable[[], None],
    progress: Callable[[float, str], None] = lambda share, words: None,
    weights: Path | None = None,
) -> dict[str, Any]:
    """Every rank calls it. Returns, on rank 0, what came of it; weights: a folder where rank 0 puts the model in the
    end. Goes on from the newest checkpoint in the folder. Raises Stopped, with one written, when `check` does;
    RuntimeError where nothing is learned any more."""
    with cpu.stand_in():
        preset, steps, o = settings.preset, settings.steps, settings.optimizer
        data, held = dataset(settings, rows, "train"), dataset(settings, rows, "valid")
        if not len(data):
            raise ValueError(f"needs: of these tokens no clip is for training and {len(held)} for validation: take "
                             "more or longer videos, or another `split` of prepare.tokens, which shares clips out "
                             "among training, validation and test; the tables of its ids say what was left out"
                             )  # fmt: skip
        compute = Compute(precision=settings.precision, recompute=settings.recompute, kernels=settings.kernels,
                          backend=backend(settings), deterministic=settings.deterministic,
                          z_loss=settings.z_loss)  # fmt: skip
        engine = Engine(preset, settings.layout, compute, o, first(settings, here.device), settings.lora)
        batches = token_data.Batches(data, settings.batch, settings.seed)
        shown = held_out(settings, held, engine.data_rank, engine.data_ranks)
        samples = Samples(settings, rows, held, engine, here)
        keeper = Keeper(folder / "checkpoints", settings.checkpoints, identity(settings, data), here.writers())
        saver = Saver(keeper, engine, here)
        step = skipped = bad = 0
        if newest := keeper.newest():
            step, where = newest
            said = json.loads((where / "training.json").read_text())
            continued(said, settings, where)
            engine.load(where, said["reshard"])
            skipped = said["skipped"]
        if here.rank == 0:
            unseen.write(folder, "split", unseen.of_tokens(rows))

        told = opened(settings, folder, step, here)
        stall = 0.0
        with told or contextlib.nullcontext():
            arriving = batches.of_rank(engine.data_rank, engine.data_ranks, step, settings.readers)
            for batch in arriving if step < steps else ():
                since = time.monotonic()
                step += 1
                speed = rate(o, step, steps)
                done = engine.step(microbatches(batch, settings.micro_batch), speed)
                skipped, bad = (skipped, 0) if done.moved else (skipped + 1, bad + 1)
                line = {
                    "loss": done.loss, "cross_entropy": done.cross_entropy, "z_loss": done.z_loss,
                    "grad_norm": done.grad_norm, "rate": speed, "skipped": skipped,
                    **ranks.took(here, time.monotonic() - since, batch.waited, stall, settings.batch,
                                 settings.batch * preset.length, settings.batch * settings.flops),
                }  # fmt: skip
                if shown and (step % settings.validation.every == 0 or step == steps):
                    begun = time.monotonic()
                    line["validation_nll"], _ = engine.run(shown, backward=False)
                    line["validation_seconds"] = time.monotonic() - begun
                if samples.due(step):
                    begun = time.monotonic()
                    files = samples.make(folder, step, check)
                    line["pictures_seconds"] = time.monotonic() - begun
                    if told:
                        told.show(step, files)
                if told:
                    told.step(step, **line)
                leave, due = agreed(check, keeper.due(step, steps), here.words)
                begun = time.monotonic()
                saver.look()
                if leave or due:
                    reshard = settings.reshard or step == steps
                    more = {"reshard": reshard, "layout": plain(settings.layout), "skipped": skipped, "loss": done.loss}
                    saver.save(step, reshard, more)
                if leave or step == steps or bad == o.bad_steps:
                    saver.wait()
                stall = time.monotonic() - begun
                progress(step / steps, f"step {step} of {steps}, loss {done.loss:.4f}, "
                                       f"{line['tokens_per_second']:,.0f} tokens a second")  # fmt: skip
                if bad == o.bad_steps:
                    raise RuntimeError(f"the gradients of {bad} steps in a row, up to step {step}, are not finite: "
                                       "lower `optimizer.rate`, or look at the data; earlier checkpoints are in "
                                       f"{keeper.folder}")  # fmt: skip
                if step == steps:
                    break
                if leave:
                    raise Stopped
        if weights is not None:
            export(engine.published(), settings, weights, here)
        if here.rank:
            return {}
        said = list(lines(folder / "metrics.jsonl"))
        measured = len(shown) * settings.micro_batch * engine.data_ranks
        rival = {"previous_frame_nll": previous_frame_nll(settings, data, held, measured)} if measured else {}
        return rival | {
            "steps": step, "tokens": int(sum(line["tokens"] for line in said)), "skipped": skipped,
            "ranks": here.count, "device": str(here.device), "parameters": preset.parameters,
            "trained": settings.moving, "clips": len(data), "gpu_hours": said[-1]["gpu_hours"],
            "last": said[-1], "settings": plain(settings),
            "flops": "causal attention counted once; MFU is a share of the GPU's dense bfloat16",
        }  # fmt: skip


class Saver:
    """Writes checkpoints while training goes on; every rank calls it at the same steps."""

    def __init__(self, keeper: Keeper, engine: Engine, here: Here) -> None:
        self.keeper, self.engine, self.here = keeper, engine, here
        self.writing: tuple[int, Path, dict[str, Any], Writing] | None = None

    def save(self, step: int, reshard: bool, more: dict[str, Any]) -> None:
        """Returns when the state is copied; waits for the checkpoint before."""
        self.wait()
        if (part := self.keeper.begin(step)) is not None:
            with writing(part):
                self.writing = step, part, more, self.engine.save(part, reshard)

    def look(self) -> None:
        """After each step: the checkpoint that is being written counts as soon as all ranks have written their part."""
        if self.writing:
            busy = torch.tensor(int(not self.writing[3].done()))
            dist.all_reduce(busy, dist.ReduceOp.MAX, group=self.here.words)
            if not busy:
                self.wait()

    def wait(self) -> None:
        """Until the newest one counts. Raises what went wrong."""
        if self.writing:
            step, part, more, written = self.writing
            self.writing = None
            with writing(part):
                written.finish()
            self.keeper.finish(step, part, more)


# What it is made of


def dataset(settings: TrainAr, rows: list[Any], split: str) -> token_data.Data:
    """A split (train, valid or test) of what `freeze` found. Raises ValueError where its clips have another shape."""
    preset = settings.preset
    if isinstance(rows[0], str) and preset.action_dim is None:
        return token_data.Video2World(rows[0], CALLED[split], preset.shape, settings.condition)
    if isinstance(rows[0], str):
        folder = storage.join(rows[0], CALLED[split])
        if split != "train" and storage.stat(storage.join(folder, FRAMES)) is None:
            return ()  # Bridge data sets have the splits that they have
        pairs = token_data.Action(folder)
        shaped(preset, pairs.latent)
        return pairs
    meta = meta_of(rows[0][".parquet"])
    shaped(preset, tuple(meta["shape"]))
    if (ids := meta.get("vocabulary", 0)) > preset.classes:
        raise ValueError(f"model: the tokenizer of these tokens, {meta.get('tokenizer')}, has {ids:,} ids, and "
                         f"{settings.model} chooses among {preset.classes:,}: make tokens with one that has no more "
                         "(of cosmos-dv the product of `levels`)")  # fmt: skip
    splits = [table(files[".parquet"], ["split"])["split"].to_pylist() for files in rows]
    ends = accumulate(map(len, splits), initial=0)
    documents = [begin + n for begin, some in zip(ends, splits, strict=False) for n, one in enumerate(some)
                 if one == split]  # fmt: skip
    prefixes = [files[".bin"].removesuffix(".bin") for files in rows]
    return token_data.Clips(prefixes, preset.shape, documents, settings.condition)


def shaped(model: Preset, found: tuple[int, ...]) -> None:
    """Raises ValueError where clips are not as the model's are."""
    if found != model.shape:
        raise ValueError(unlike(model, found))


def microbatches(batch: Any, size: int) -> list[Microbatch]:
    """Of a batch or of anything else with its tensors."""
    ids, labels, masks = (t.split(size) for t in (batch.tokens, batch.labels, batch.loss_mask))
    context = batch.context.transpose(0, 1).split(size, 1) if batch.context is not None else [None] * len(ids)
    action = batch.action.split(size) if batch.action is not None else [None] * len(ids)
    return list(map(Microbatch, ids, labels, masks, context, action))


def held_out(settings: TrainAr, held: token_data.Data, rank: int, ranks: int) -> list[Microbatch]:
    """A rank's share of the clips that are measured, the same ones each time: as many as can be shared equally."""
    each = ranks * settings.micro_batch
    count = min(settings.validation.clips, len(held)) // each * each
    if settings.validation.clips and not count:
        logging.getLogger(__name__).warning("validation: %d clips are held out, and %d ranks x %d at a time need %d: "
                                            "nothing is measured", len(held), ranks, settings.micro_batch,
                                            each)  # fmt: skip
    if not count:
        return []
    return microbatches(token_data.Batches(held, count, seed=0).at(0, rank, ranks), settings.micro_batch)


def previous_frame_nll(settings: TrainAr, data: token_data.Data, held: token_data.Data, count: int) -> float:
    """What `validation_nll` must beat, where a frame is given: of the `count` clips that were measured, by a model that
    knows the frame before alone, fitted to as many training clips as `COUNTED`."""
    preset = settings.preset
    ids = lambda one: one.tokens[preset.first : preset.first + preset.video_tokens].view(preset.shape[0], -1).numpy()
    shown = token_data.Batches(held, count, seed=0).order.batch(0).places
    known = PreviousFrame((ids(data[place]) for place in range(min(len(data), COUNTED))), preset.classes)
    return known.nll((ids(held[place]) for place in shown), settings.condition)


def backend(settings: TrainAr) -> Backend:
    """transformer-engine's layers where they can run. Raises ValueError for FP8 where they cannot."""
    there = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None
    if settings.precision.startswith("fp8") and not there:
        raise ValueError(f"precision: {settings.precision} needs a GPU and transformer-engine, and one is not here: "
                         "install transformer-engine, or say `precision: bf16`")  # fmt: skip
    return "transformer_engine" if there and settings.precision != "fp32" else "local"


def first(settings: TrainAr, device: torch.device) -> Mapping[str, Tensor]:
    """The weights that training begins with, under the published names, and adapters. Of a model for actions `start`
    may be a video2world model, without an MLP. Raises ValueError naming what is missing, left over or of another
    shape."""
    preset, there = settings.preset, None
    if settings.start is not None:
        there = nemo.published(settings.start, preset)
        given = preset if any(name.startswith(keys.ACTION) for name in there) else preset.without_actions
        keys.account(keys.rules(given), there, f"the weights that {settings.model} begins with, {settings.start}")
    rank = settings.lora.rank if settings.lora else 0
    return keys.Initial(preset, lambda name: generator(device, settings.seed, "weights", name), rank, there)


def continued(said: dict[str, Any], settings: TrainAr, where: Path) -> None:
    """Raises ValueError for a checkpoint that another layout saved for itself."""
    if said["reshard"]:
        return
    names = ("tensor", "pipeline", "context")
    there, here = ([layout[name] for name in names] for layout in (said["layout"], plain(settings.layout)))
    if there != here:
        words = " x ".join(f"{name} {count}" for name, count in zip(names, there, strict=True))
        raise ValueError(f"layout: {where} was saved for {words} alone, with any number of data-parallel ranks. Go on "
                         "with that layout and `reshard: true` to its next checkpoint: any layout can take "
                         "that one")  # fmt: skip


def identity(settings: TrainAr, data: token_data.Data) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    sample = data[0].tokens.numpy().tobytes()
    return deciding(settings) | {"clips": len(data), "data": hashlib.sha256(sample).hexdigest()[:16]}


def export(published: Iterator[tuple[str, Tensor]], settings: TrainAr, to: Path, here: Here) -> None:
    """Rank 0 writes; all ranks go through the tensors together."""
    from safetensors.torch import save_file

    kept = {}
    for name, tensor in published:
        if here.rank == 0:
            kept[name] = tensor.to("cpu", copy=True).contiguous()
    if here.rank == 0:
        config = {"preset": settings.model, "shape": settings.preset.shape, **plain(settings.preset)}
        if one := settings.lora:
            apart = {source for rule in keys.trained(settings.preset, one.rank).values() for source in rule.sources}
            save_file({name: kept[name] for name in apart}, to / "adapters.safetensors")
            kept = lora.merged(kept, one.alpha / one.rank)
            config["lora"] = msgspec.to_builtins(one)
        save_file(kept, to / "model.safetensors")
        (to / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    dist.barrier(group=here.words)
