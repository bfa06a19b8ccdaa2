"""Prompts -> videos, by a diffusion model. Each video depends on its prompt, what it goes on from, its seed and the
settings alone: not on the shard, nor on the others.

A shard is as hpc.generate.videos has it, with a row of SCHEMA for each video. Where ranks have a video together
(`context`) each has some of its latent frames and all of the weights (hpc.models.context_parallel); the first one reads
texts and frames, and writes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from hpc.data import storage
from hpc.data.upstream import trained
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.generate import media, videos
from hpc.generate.prompts import Request
from hpc.generate.ranks import Ranks
from hpc.generate.settings.diffusion import Diffusion
from hpc.generate.settings.videos import PICTURES
from hpc.models import context_parallel, diffusion, dit_files, hub, samplers, text_input, tokenizers
from hpc.models.diffusion import Condition
from hpc.models.dit_presets import preset
from hpc.models.samplers import Sampling
from hpc.models.tokenizer_files import is_stage

TOGETHER = 4  # latent frames that are decoded at once: of all 24 of 720p, what one layer gives may be 16 GB
SCHEMA = videos.schema(("negative_prompt", pa.string()), ("guidance", pa.float32()), ("steps", pa.int32()))
gallery = videos.gallery


def freeze(
    settings: Diffusion, upstream: dict[str, list[tuple[str, dict[str, str]]]], superseded: set[tuple[str, str]]
) -> Iterator[list[Any]]:
    """As hpc.generate.videos has it. Raises ValueError besides where the model in `needs` is another one."""
    weights = lambda stage, uri: of_training(settings, stage, uri)
    yield from videos.frozen(settings, settings.tokenizer, settings.weights, upstream, superseded,
                             settings.wordless, weights)  # fmt: skip


def of_training(settings: Diffusion, stage: str, uri: str) -> dict[str, Any]:
    """The folder with the average's weights and sizes that a stage train.diffusion or convert.diffusion left, and what
    of the objective was otherwise than published. Raises ValueError."""
    told = trained([("", {".json": uri})], "model")
    theirs = told["settings"]
    if preset(theirs["model"]) != settings.preset:
        raise ValueError(f"model: {stage} has trained {theirs['model']}, and this is {settings.model}: write `model: "
                         f"{theirs['model']}`")  # fmt: skip
    if (theirs["text"]["source"] == "none") != (settings.text_model == "none"):
        told_of = "no texts" if theirs["text"]["source"] == "none" else "texts"
        words = "none" if theirs["text"]["source"] == "none" else "the encoder of its texts"
        raise ValueError(f"text_encoder: {stage} was trained with {told_of}: write {words} here")
    changed = {name: value for name, value in theirs["objective"].items() if value is not None}
    return {"weights": storage.join(told["model"], "ours"), "objective": changed}


def start(settings: Diffusion) -> Callable[[Work], Made]:
    """Raises FileNotFoundError and RuntimeError where a model is not to be had or another one, ValueError where they do
    not go together."""
    return functools.partial(process, Maker(settings))


def process(maker: Maker, work: Work) -> Made:
    """Make one shard; of ranks that have videos together the first one writes it."""
    s = maker.settings
    check = maker.ranks.agreed(work.check)
    maker.load(videos.places(work.rows[0]))
    with videos.Shard(s, work, SCHEMA, maker.fps) as shard:
        for i, planned in enumerate(work.rows):
            check()
            work.progress(i / len(work.rows), f"video {i} of {len(work.rows)}")
            one = videos.request(planned)
            row, began = maker.row(one), time.monotonic()
            if one.why is not None:
                shard.lost(row, one.why)
                continue
            try:
                frames = maker.make(one, check)
            except BadInput as error:
                shard.lost(row, error.bad)
                continue
            if maker.ranks.rank == 0:
                shard.add(row, frames, time.monotonic() - began)
    return Made(shard.paths, {}) if maker.ranks.rank else shard.made()


class Maker:
    """The models, loaded once."""

    def __init__(self, settings: Diffusion) -> None:
        self.settings, self.known = settings, settings.preset
        self.ranks = Ranks(settings.context > 1)
        self.device = self.ranks.device
        self.fps = settings.fps or self.known.fps
        self.how = Sampling(settings.solver or self.known.solver, settings.schedule or self.known.schedule)
        self.texts = functools.lru_cache(2)(self._texts)  # the negative prompt, and this one: each may be 100 MB
        self.loaded: dict[str, Any] | None = None
        if not settings.wired().keys() & {"weights", "tokenizer"}:
            self.load({})

    def load(self, places: dict[str, Any]) -> None:
        """What is not there yet; places: of what other stages have trained. Raises as `start` does."""
        if places == self.loaded:
            return
        s, known, dtype = self.settings, self.known, getattr(torch, self.settings.precision)
        if s.weights is None:
            [path] = hub.located(known.repository, known.file)
        else:
            path = Path(places["weights"] if is_stage(s.weights) else s.weights).expanduser()
            if not path.exists():
                raise FileNotFoundError(f"weights: there is no {path} on this machine")
        which: Any = "net_ema" if s.average and not is_stage(s.weights) else "net"
        self.model = dit_files.load(path, known.config, self.device, dtype, which)
        self.objective = diffusion.OBJECTIVES[known.objective](**(known.settings | places.get("objective", {})))
        tokenizer = places.get("tokenizer", s.video_tokenizer)
        self.tokenizer = tokenizers.load(tokenizer, self.device, dtype)
        c = self.model.config
        if self.tokenizer.vocabulary is not None or self.tokenizer.latent_channels != c.latent_channels:
            raise ValueError(f"tokenizer: {tokenizer} makes no latents of {c.latent_channels} channels, "
                             f"which {s.model} takes")  # fmt: skip
        self._text_input = None
        if s.text_model != "none" and self.ranks.rank == 0:
            self._text_input = text_input.load_text_input(known.text, s.text_model, str(self.device))
            if self._text_input.channels != c.text_input:
                raise ValueError(f"text_encoder: {s.text_model} makes texts of {self._text_input.channels} channels; "
                                 f"{s.model} takes {c.text_input}")  # fmt: skip
        self.texts.cache_clear()
        if self.ranks.group is not None:
            context_parallel.share_frames(self.model, self.ranks.group)
        self.loaded = places

    def _texts(self, words: str | None) -> Tensor:
        """[1, 512, channels]; None is no text."""
        if words is None or self.settings.text_model == "none":
            return torch.zeros(1, text_input.TOKENS, self.model.config.text_input, device=self.device)
        return self.ranks.shared(lambda: self._text_input([words]).cpu()).to(self.device)

    def row(self, one: Request) -> dict[str, Any]:
        """What a video is made with."""
        s, known = self.settings, self.known
        height, width = one.size or s.size or (known.height, known.width)
        negative = s.negative_prompt if one.negative_prompt is None else one.negative_prompt
        return {
            "name": one.name, "prompt": one.prompt, "negative_prompt": negative, "media": one.media or None,
            "given": self.given(one), "held_out": one.held_out or None,
            "seed": s.seed if one.seed is None else one.seed,
            "guidance": 0.0 if s.text_model == "none" else
            next(x for x in (one.guidance, s.guidance, known.guidance) if x is not None),
            "steps": one.steps or s.steps or known.steps, "frames": one.frames or s.frames or known.frames,
            "height": height, "width": width, "fps": self.fps, "source": one.source,
        }  # fmt: skip

    def given(self, one: Request) -> int:
        """Latent frames that it goes on from. 2 is what a video without further words has, and here means `given`."""
        return self.settings.given if one.given == 2 and not one.media.lower().endswith(PICTURES) else one.given

    def make(self, one: Request, check: Callable[[], None] = lambda: None) -> npt.NDArray[np.uint8]:
        """uint8 [frames, height, width, 3], RGB; of ranks that have it together the first one's is whole. check: is
        called in each step. Raises BadInput for a request that this model cannot do."""
        row, spatial, group = self.row(one), self.tokenizer.spatial, self.ranks.group
        height, width, given = row["height"], row["width"], row["given"]
        if given and not self.model.config.condition_mask:
            words = f"{one.name}: {self.settings.model} makes videos of words alone"
            raise BadInput(one.source, "no-media-taken", words)
        if height % (2 * spatial) or width % (2 * spatial):
            raise BadInput(one.source, "bad-size", f"{one.name}: {height} x {width}: {2 * spatial} must divide both")
        try:
            frames = self.tokenizer.latent_frames(row["frames"])
        except ValueError as error:
            raise BadInput(one.source, "bad-frames", f"{one.name}: {error}") from error
        c = self.model.config
        if frames > c.max_frames or height > spatial * c.max_height or width > spatial * c.max_width:
            most = f"{self.tokenizer.pixel_frames(c.max_frames)} of {spatial * c.max_height} x {spatial * c.max_width}"
            words = f"{row['frames']} frames of {height} x {width}: {self.settings.model} makes {most} at most"
            raise BadInput(one.source, "too-large", f"{one.name}: {words}")
        if frames % self.settings.context:
            words = f"{one.name}: {frames} latent frames cannot be shared by {self.settings.context} ranks"
            raise BadInput(one.source, "bad-frames", words)
        if given >= frames:
            words = f"{one.name}: {row['frames']} frames are no more than what is given"
            raise BadInput(one.source, "bad-frames", words)
        shape = (1, self.tokenizer.latent_channels, frames, height // spatial, width // spatial)
        fps = torch.tensor([self.fps], device=self.device)
        mine = lambda x, dim=2: x if group is None else context_parallel.part(x, group, dim)
        first = context_parallel.first_frame(frames, group) if group else 0
        condition = Condition(self.texts(one.prompt), fps_B=fps, first_frame=first)
        if self.model.config.condition_mask:
            mask = torch.zeros(1, frames, device=self.device)
            latents = torch.zeros(shape, device=self.device)
            if given:
                mask[:, :given] = 1
                latents[:, :, :given] = self.encoded(one, given, height, width)
            condition = condition._replace(given_BT=mine(mask, 1), latents_BCTHW=mine(latents))
        how = self.how._replace(steps=row["steps"], guidance=row["guidance"])
        noise = mine(samplers.noise(shape, row["seed"]).to(self.device))
        negative = self.texts(row["negative_prompt"]) if how.guidance else None
        found = samplers.sample(self.model, self.objective, how, condition, negative, noise, check)
        if group is not None:
            found = context_parallel.whole(found, group)
            if self.ranks.rank:
                return np.empty((0, height, width, 3), np.uint8)
        with torch.inference_mode():
            parts = self.tokenizer.decode_stream(found.split(TOGETHER, dim=2))
            pixels = torch.cat([part[0].float().cpu() for part in parts], dim=1)[:, : row["frames"]]
        if not pixels.isfinite().all():
            raise ValueError(f"{one.name}: the model gave numbers that are none: are its weights those of "
                             f"{self.settings.model}, and the precision {self.settings.precision}?")  # fmt: skip
        return ((pixels.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    def encoded(self, one: Request, given: int, height: int, width: int) -> Tensor:
        """Latents [1, channels, given, h, w] of a picture, or of the last or first frames of a video, on all ranks.
        Raises BadInput on all of them."""

        def find() -> Tensor | Bad:
            try:
                pictures = media.frames(one, self.tokenizer.pixel_frames(given), width, height, self.fps)
            except BadInput as error:
                return error.bad
            laid = torch.from_numpy(pictures).to(self.device)
            pixels = laid.permute(3, 0, 1, 2)[None].to(getattr(torch, self.settings.precision)) / 127.5 - 1
            with torch.inference_mode():
                return self.tokenizer.encode(pixels).float().cpu()

        found = self.ranks.shared(find)
        if isinstance(found, Bad):
            raise BadInput(found.uri, found.reason, found.detail)
        return found.to(self.device)
