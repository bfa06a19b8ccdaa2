"""What an autoregressive model makes while it trains: held-out clips, gone on with from the frames that are given, as
pictures and videos; and the page of the training.

    samples = Samples(settings, rows, held, engine, here)
    files = samples.make(folder, step, check)       # every rank calls it; [] on all but the first

The ranks that are tensor-parallel with the first one get the weights of all layers, a part of each as in generation, in
the memory that activations leave between steps, and go on with all clips in one batch (hpc.models.ar.generate); the
others wait. All draws follow from the number of a clip: training's own are untouched. What finds no memory is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpc.data import storage
from hpc.data.upstream import meta_of
from hpc.data.work import Stopped
from hpc.models import lora, tokenizers
from hpc.models.ar.generate import Decoder, Generator, Prompt
from hpc.train import page, pictures, token_data
from hpc.train.ar_engine import Engine
from hpc.train.ranks import Here
from hpc.train.settings import TrainAr

log = logging.getLogger(__name__)
LOOK = 512
"""Tokens between two looks at whether the job must leave."""
CHARTS = (("cross_entropy", "validation_nll"), ("z_loss",), ("grad_norm",), ("tokens_per_second_per_gpu",), ("mfu",),
          ("tflops_per_gpu",), ("waited", "checkpoint_seconds"), ("rate",))  # fmt: skip
ABOUT = ("Held-out clips, from the first to the last frame: above as the tokenizer has them, below gone on with by the "
         "model from the frames that it is given.")  # fmt: skip


class Samples:
    def __init__(self, settings: TrainAr, rows: list[Any], held: token_data.Data, engine: Engine, here: Here) -> None:
        """rows: what the training was planned with, of which the tables name the tokenizer. Raises ValueError where the
        one that the settings name cannot be used; where none is known, or that of the data set is not to be had, the
        first rank says so, and there are no samples."""
        p, preset = settings.pictures, settings.preset
        self.settings, self.engine, self.here = settings, engine, here
        count = min(p.clips, len(held))
        self.tokenizer: Any = None
        self.fps = 24.0
        told: list[Any] = [0, "", False]
        if count and here.rank == 0:
            told = self._load(rows)
        dist.broadcast_object_list(told, src=0, group=here.words)
        self.classes, wrong, fatal = told
        if fatal:
            raise ValueError(f"pictures: tokenizer: {wrong}")
        if wrong and here.rank == 0:
            log.warning("pictures: there will be no sample videos: %s", wrong)
        self.wanted = bool(self.classes)
        self.clips = []
        self.mine = 0 in dist.get_process_group_ranks(engine.tp)
        if self.wanted and self.mine:
            places = token_data.Batches(held, count, seed=0).order.batch(0).places
            self.clips = [held[place] for place in places]
        self.given = (settings.condition or int(preset.context_dim is None)) * preset.shape[1] * preset.shape[2]
        self.truth: list[Tensor] = []

    def _load(self, rows: list[Any]) -> list[Any]:
        """[ids to choose from, what is wrong, is that an error?]"""
        named = self.settings.pictures.tokenizer
        table = storage.join(rows[0], "000000.parquet") if isinstance(rows[0], str) else rows[0][".parquet"]
        meta = meta_of(table) if storage.stat(table) else {}
        self.fps = float(meta.get("fps") or self.fps)
        name = named or meta.get("tokenizer")
        if not name:
            return [0, "the data set does not name its tokenizer: do so, in `pictures: {tokenizer: ...}`", False]
        dtype = torch.bfloat16 if self.here.device.type == "cuda" else torch.float32
        try:
            self.tokenizer = tokenizers.load(name, self.here.device, dtype)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            return [0, f"{name}: {error}", bool(named)]
        ids, classes = self.tokenizer.vocabulary, self.settings.preset.classes
        if ids is None or ids > classes:
            return [0, f"{name} has {ids or 'no'} ids, and {self.settings.model} chooses among {classes}", bool(named)]
        return [ids, "", False]

    def due(self, step: int) -> bool:
        return self.wanted and (step % self.settings.pictures.every == 0 or step == self.settings.steps)

    def make(self, folder: Path, step: int, check: Callable[[], None] = lambda: None) -> list[Path]:
        """Writes pictures/<step>.webp and <step>_<clip>.mp4, and returns them. Ends early, with nothing, when `check`
        raises Stopped: whoever trains will hear of it, too."""
        made, files = self._ids(check), []
        if made is not None and self.here.rank == 0:
            preset = self.settings.preset
            whole = [one.tokens[preset.first : preset.first + preset.video_tokens] for one in self.clips]
            self.truth = self.truth or [self._pixels(ids) for ids in whole]
            found = [self._pixels(ids) for ids in made]
            files = [folder / f"pictures/{step:09}.webp"]
            for number, video in enumerate(found):
                files.append(folder / f"pictures/{step:09}_{number}.mp4")
                pictures.play(video, self.fps, files[-1])
            strips = [pictures.strip(*both, frames=5) for both in zip(self.truth, found, strict=True)]
            pictures.write(strips, files[0])
        dist.barrier(group=self.here.words)
        return files

    def _ids(self, check: Callable[[], None]) -> Tensor | None:
        """[clips, ids], what is given included, on the ranks that have clips."""
        s, weights = self.settings, {}
        for name, tensor in self.engine.published():
            if self.clips:
                weights[name] = tensor.to("cpu", copy=True)
        generator, prompts = None, []
        if self.clips:
            if s.lora:
                weights = lora.merged(weights, s.lora.alpha / s.lora.rank)
            dtype = torch.float32 if s.precision == "fp32" else torch.bfloat16
            group = self.engine.tp if self.engine.tp.size() > 1 else None
            first = s.preset.first
            prompts = [Prompt(one.tokens[first : first + self.given], number, one.context, one.action)
                       for number, one in enumerate(self.clips)]  # fmt: skip
            try:
                model = Decoder(s.preset, weights, self.here.device, dtype, group)
                generator = Generator(model, len(prompts), s.pictures.temperature, s.pictures.top_p, self.classes)
            except torch.OutOfMemoryError as error:
                log.warning("pictures: no sample videos any more: %s", str(error).splitlines()[0])
        lacking = torch.tensor(int(bool(self.clips) and generator is None))
        dist.all_reduce(lacking, dist.ReduceOp.MAX, group=self.here.words)
        self.wanted = not lacking
        if generator is None or lacking:
            return None
        try:
            return generator(prompts, self._agreed(check))
        except Stopped:
            return None
        finally:
            del generator, model
            if self.here.device.type == "cuda":
                torch.cuda.empty_cache()

    def _agreed(self, check: Callable[[], None]) -> Callable[[], None]:
        """A check that tensor-parallel ranks, who call it as often, leave at together."""
        calls = 0

        def together() -> None:
            nonlocal calls
            calls += 1
            if calls % LOOK:
                return
            leave = torch.zeros(1, dtype=torch.int32)
            try:
                check()
            except Stopped:
                leave += 1
            if self.engine.tp.size() > 1:
                leave = leave.to(self.here.device)
                dist.all_reduce(leave, dist.ReduceOp.MAX, group=self.engine.tp)
            if leave:
                raise Stopped

        return together

    def _pixels(self, ids: Tensor) -> Tensor:
        """[3, T, H, W] on the CPU. Frames before and after an action are pictures of their own."""
        t, h, w = self.settings.preset.shape
        alone = self.settings.preset.action_dim is not None
        ids = ids.clamp(max=self.classes - 1).to(self.here.device, torch.int32)
        with torch.inference_mode():
            video = self.tokenizer.decode(ids.view((t, 1, h, w) if alone else (1, t, h, w))).float().cpu()
        return video.transpose(0, 2).squeeze(0) if alone else video[0]


def as_page(told: dict[str, Any], said: list[dict[str, Any]], folder: Path) -> str:
    last = told["last"]
    facts = {
        "steps": f"{told['steps']:,}", "tokens taken": f"{told['tokens']:,}", "clips": f"{told['clips']:,}",
        "parameters": f"{told['parameters']:,}", "trained": f"{told['trained']:,}",
        "steps left out (not finite)": told["skipped"],
        **{name: f"{float(value):.4g}" for name, value in (
            ("NLL of held-out clips", last.get("validation_nll")),
            ("that of the frame before", told.get("previous_frame_nll"))) if value is not None},
        **page.costs(told, said), "model": told["model"],
    }  # fmt: skip
    return page.page("An autoregressive model", facts, CHARTS, said, folder / "pictures", ABOUT)
