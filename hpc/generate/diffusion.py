"""Prompts -> videos, by a diffusion model. Each video depends on its prompt, what it goes on from, its seed and the
settings alone: not on the shard, nor on the others.

A shard is a plain webdataset tar with two members for each video, <name>.mp4 and <name>.json (the row below), and
<shard>.parquet with a row of SCHEMA for each, and for each that could not be made.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from hpc.data import layers, video
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.generate import media, prompts
from hpc.generate.prompts import Request
from hpc.generate.settings.diffusion import Diffusion
from hpc.models import diffusion, dit_files, hub, samplers, text_input, tokenizers
from hpc.models.diffusion import Condition
from hpc.models.samplers import Sampling

TOGETHER = 4  # latent frames that are decoded at once: of all 24 of 720p, what one layer gives may be 16 GB
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("media", pa.string()),  # that it goes on from; null for none
        ("given", pa.int32()),  # latent frames of that
        ("seed", pa.int64()),
        ("guidance", pa.float32()),
        ("steps", pa.int32()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float32()),
        ("source", pa.string()),  # the file with the prompt
        ("mp4_offset", pa.int64()),  # in the tar, bytes
        ("mp4_size", pa.int64()),
        ("seconds", pa.float32()),  # that it took
        ("why", pa.string()),  # it was not made; null for videos
    ]
)


def freeze(
    settings: Diffusion, upstream: dict[str, list[tuple[str, dict[str, str]]]], superseded: set[tuple[str, str]]
) -> Iterator[list[Any]]:
    """Rows of shards, `per_shard` requests each, in the order of the files. A name that several have gets a number.
    Raises ValueError where there is not one."""
    (shards,) = upstream.values()
    found = (one for _, objects in shards for one in prompts.of_shard(objects[".jsonl"], superseded))
    yield from prompts.planned(found, settings.per_shard)


def start(settings: Diffusion) -> Callable[[Work], Made]:
    """Raises FileNotFoundError and RuntimeError where a model is not to be had or another one, ValueError where they do
    not go together."""
    return functools.partial(process, Maker(settings))


def process(maker: Maker, work: Work) -> Made:
    """Make one shard."""
    tar_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in maker.settings.OBJECTS)
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    counts: Counter[str] = Counter(videos=0, frames=0)
    with layers.TarWriter(tar_path) as tar:
        for i, values in enumerate(work.rows):
            work.check()
            work.progress(i / len(work.rows), f"video {i} of {len(work.rows)}")
            one = msgspec.convert(values, Request)
            row, began = maker.row(one), time.monotonic()
            try:
                frames = maker.make(one, work.check)
            except BadInput as error:
                bad.append(error.bad)
                rows.append(row | {"why": error.bad.reason})
                continue
            path = work.scratch / "video.mp4"
            video.write(path, frames, maker.fps, video.Coding(crf=maker.settings.crf))
            about = json.dumps(row, ensure_ascii=False).encode()
            offset, size = tar.add(one.name, {".mp4": path.read_bytes(), ".json": about}).members[".mp4"]
            path.unlink()
            rows.append(row | {"mp4_offset": offset, "mp4_size": size, "seconds": time.monotonic() - began})
            counts.update(videos=1, frames=len(frames))
    meta = {"stage": maker.settings.KIND, "fingerprint": work.fingerprint, "model": maker.settings.model}
    layers.write_table(table_path, rows, meta, SCHEMA)
    return Made([tar_path, table_path], {**counts, "bytes_out": tar_path.stat().st_size}, bad)


class Maker:
    """The models, loaded once."""

    def __init__(self, settings: Diffusion) -> None:
        self.settings, known = settings, settings.preset
        self.known = known
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, settings.precision)
        if settings.weights is None:
            [path] = hub.located(known.repository, known.file)
        else:
            path = Path(settings.weights).expanduser()
            if not path.exists():
                raise FileNotFoundError(f"weights: there is no {path} on this machine")
        self.model = dit_files.load(path, known.config, self.device, dtype, "net_ema" if settings.average else "net")
        self.objective = diffusion.objective(known)
        self.tokenizer = tokenizers.load(settings.video_tokenizer, self.device, dtype)
        self.texts = functools.lru_cache(2)(self._texts)  # the negative prompt, and this one: each may be 100 MB
        self._text_input = text_input.load_text_input(known.text, settings.text_model, str(self.device))
        self.fps = settings.fps or known.fps
        self.how = Sampling(settings.solver or known.solver, settings.schedule or known.schedule)
        c = self.model.config
        if self.tokenizer.vocabulary is not None or self.tokenizer.latent_channels != c.latent_channels:
            raise ValueError(f"tokenizer: {settings.video_tokenizer} makes no latents of {c.latent_channels} channels, "
                             f"which {settings.model} takes")  # fmt: skip
        if self._text_input.channels != c.text_input:
            raise ValueError(f"text_encoder: {settings.text_model} makes texts of {self._text_input.channels} "
                             f"channels; {settings.model} takes {c.text_input}")  # fmt: skip

    def _texts(self, words: str | None) -> Tensor:
        """[1, 512, channels]; None is no text."""
        if words is None:
            return torch.zeros(1, text_input.TOKENS, self.model.config.text_input, device=self.device)
        return self._text_input([words])

    def row(self, one: Request) -> dict[str, Any]:
        """What a video is made with."""
        s, known = self.settings, self.known
        height, width = one.size or s.size or (known.height, known.width)
        negative = s.negative_prompt if one.negative_prompt is None else one.negative_prompt
        return {
            "name": one.name, "prompt": one.prompt, "negative_prompt": negative, "media": one.media or None,
            "given": one.given, "seed": s.seed if one.seed is None else one.seed,
            "guidance": next(x for x in (one.guidance, s.guidance, known.guidance) if x is not None),
            "steps": one.steps or s.steps or known.steps, "frames": one.frames or s.frames or known.frames,
            "height": height, "width": width, "fps": self.fps, "source": one.source,
        }  # fmt: skip

    def make(self, one: Request, check: Callable[[], None] = lambda: None) -> npt.NDArray[np.uint8]:
        """uint8 [frames, height, width, 3], RGB. check: is called in each step. Raises BadInput for a request that this
        model cannot do."""
        row, spatial = self.row(one), self.tokenizer.spatial
        height, width = row["height"], row["width"]
        if one.given and not self.model.config.condition_mask:
            words = f"{one.name}: {self.settings.model} makes videos of words alone"
            raise BadInput(one.source, "no-media-taken", words)
        if height % (2 * spatial) or width % (2 * spatial):
            raise BadInput(one.source, "bad-size", f"{one.name}: {height} x {width}: {2 * spatial} must divide both")
        try:
            frames = self.tokenizer.latent_frames(row["frames"])
        except ValueError as error:
            raise BadInput(one.source, "bad-frames", f"{one.name}: {error}") from error
        if one.given >= frames:
            words = f"{one.name}: {row['frames']} frames are no more than what is given"
            raise BadInput(one.source, "bad-frames", words)
        shape = (1, self.tokenizer.latent_channels, frames, height // spatial, width // spatial)
        fps = torch.tensor([self.fps], device=self.device)
        condition = Condition(self.texts(one.prompt), fps_B=fps)
        if self.model.config.condition_mask:
            mask = torch.zeros(1, frames, device=self.device)
            latents = torch.zeros(shape, device=self.device)
            if one.given:
                mask[:, : one.given] = 1
                latents[:, :, : one.given] = self.encoded(one, height, width)
            condition = condition._replace(given_BT=mask, latents_BCTHW=latents)
        how = self.how._replace(steps=row["steps"], guidance=row["guidance"])
        noise = samplers.noise(shape, row["seed"]).to(self.device)
        negative = self.texts(row["negative_prompt"]) if how.guidance else None
        found = samplers.sample(self.model, self.objective, how, condition, negative, noise, check)
        with torch.inference_mode():
            parts = self.tokenizer.decode_stream(found.split(TOGETHER, dim=2))
            pixels = torch.cat([part[0].float().cpu() for part in parts], dim=1)[:, : row["frames"]]
        if not pixels.isfinite().all():
            raise ValueError(f"{one.name}: the model gave numbers that are none: are its weights those of "
                             f"{self.settings.model}, and the precision {self.settings.precision}?")  # fmt: skip
        return ((pixels.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    def encoded(self, one: Request, height: int, width: int) -> Tensor:
        """Latents [1, channels, given, h, w] of a picture, or of the last frames of a video. Raises BadInput."""
        pictures = media.frames(one, self.tokenizer.pixel_frames(one.given), width, height)
        laid = torch.from_numpy(pictures).to(self.device)
        pixels = laid.permute(3, 0, 1, 2)[None].to(getattr(torch, self.settings.precision)) / 127.5 - 1
        with torch.inference_mode():
            return self.tokenizer.encode(pixels).float()
