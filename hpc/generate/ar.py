"""Pictures, videos and prompts -> videos, by an autoregressive model. Each video depends on its prompt, what it goes on
from, its seed and the settings alone: not on the shard, nor on the others that are made with it.

A shard is as hpc.generate.videos has it, with a row of SCHEMA and a member <name>.npy for each video: its ids, int32
[latent frames, rows, columns], those that were given to the last one as the tokenizer made them.

Models for actions make a video frame by frame, each of the one before and an action, and frames are encoded and decoded
each by itself, as such models are trained.

Of a request `size` and `num_output_frames` must be the model's; guidance, steps and negative prompts mean nothing here.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from hpc.data import storage
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.generate import media, videos
from hpc.generate.prompts import Request
from hpc.generate.ranks import Ranks
from hpc.generate.settings.ar import Ar
from hpc.generate.settings.videos import PICTURES
from hpc.models import hub, text_input, tokenizers
from hpc.models.ar import keys
from hpc.models.ar.generate import Decoder, Generator, Prompt
from hpc.models.tokenizer_files import is_stage

LOOK = 16  # steps between two looks of tensor-parallel ranks at whether one of them must leave
FILES = ("model.safetensors", "model.pt")
SCHEMA = videos.schema(
    ("actions", pa.list_(pa.list_(pa.float32()))),  # from each frame to the next; null for models without
    ("temperature", pa.float32()), ("top_p", pa.float32()), ("npy_offset", pa.int64()), ("npy_size", pa.int64()),
)  # fmt: skip
gallery = videos.gallery


def freeze(
    settings: Ar, upstream: dict[str, list[tuple[str, dict[str, str]]]], superseded: set[tuple[str, str]]
) -> Iterator[list[Any]]:
    """As hpc.generate.videos has it. Raises ValueError besides where the model in `needs` is another one."""
    weights = lambda stage, uri: {"weights": trained(settings, stage, uri)}
    named = (settings.prompts, settings.tokenizer)
    tell = [stage for stage, shards in upstream.items() if shards and ".json" in shards[0][1] and stage not in named]
    model = None if settings.weights is not None else next(iter(settings.makers(tell)), None)
    yield from videos.frozen(settings, settings.tokenizer, model, upstream, superseded, settings.wordless, weights)


def trained(settings: Ar, stage: str, uri: str) -> str:
    """Where the weights are that a stage train.ar or convert.ar made. Raises ValueError."""
    folder = json.loads(storage.read(uri))["model"]
    config = json.loads(storage.read(storage.join(folder, "config.json")))
    theirs, ours = (config["preset"], list(config["shape"])), (settings.model, list(settings.preset.shape))
    if theirs != ours:
        raise ValueError(f"model: {stage} has trained {theirs[0]} on latents {theirs[1]}, and this is {ours[0]} on "
                         f"{ours[1]}: write `model: {theirs[0]}` and `shape: {theirs[1]}`")  # fmt: skip
    for name in FILES:
        if storage.stat(storage.join(folder, name)):
            return storage.join(folder, name)
    raise ValueError(f"{stage} left neither {' nor '.join(FILES)} in {folder}: its `forms` must have one of them")


def start(settings: Ar) -> Callable[[Work], Made]:
    """Raises FileNotFoundError and RuntimeError where a model is not to be had or another one, ValueError where they do
    not go together."""
    return functools.partial(process, Maker(settings))


def process(maker: Maker, work: Work) -> Made:
    """Make one shard; of tensor-parallel ranks the first one writes it."""
    settings = maker.settings
    check = maker.ranks.agreed(work.check, LOOK)
    requests = [videos.request(row) for row in work.rows]
    maker.load(videos.places(work.rows[0]))
    begun: list[Prompt | Bad] = []
    for one in requests:
        check()
        begun.append(one.why or maker.begin(one))
    made: dict[int, tuple[Tensor, float]] = {}
    for places in batches(begun, settings.batch):
        since = time.monotonic()
        ids = maker.ids([begun[i] for i in places], check)  # type: ignore[misc]
        each = (time.monotonic() - since) / len(places)
        made |= {i: (row, each) for i, row in zip(places, ids, strict=True)}
        work.progress(len(made) / len(requests), f"video {len(made)} of {len(requests)}")
    if maker.ranks.rank:
        return Made([work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS], {})
    with videos.Shard(settings, work, SCHEMA, settings.fps) as shard:
        for i, one in enumerate(requests):
            work.check()
            row, first = maker.row(one), begun[i]
            if isinstance(first, Bad):
                shard.lost(row, first)
                continue
            ids, seconds = made[i]
            array = io.BytesIO()
            np.save(array, ids.view(-1, *settings.preset.shape[1:]).to(torch.int32).numpy())
            shard.add(row, maker.frames(ids), seconds, {".npy": array.getvalue()})
            shard.counts.update(ids=len(ids) - len(first.ids_N))
    return shard.made()


def batches(begun: list[Prompt | Bad], size: int) -> Iterator[list[int]]:
    """Places of those that are given as many ids, at most `size` together."""
    lengths = [None if isinstance(one, Bad) else len(one.ids_N) for one in begun]
    for length in sorted({n for n in lengths if n is not None}):
        places = [i for i, n in enumerate(lengths) if n == length]
        yield from (places[i : i + size] for i in range(0, len(places), size))


class Maker:
    """The models, loaded once. Of tensor-parallel ranks all have a part of the model, the first has the others."""

    def __init__(self, settings: Ar) -> None:
        self.settings, self.ranks = settings, Ranks(settings.tensor > 1)
        self.device = self.ranks.device
        self.dtype = getattr(torch, settings.precision)
        self.weights = self.named = ""
        if not is_stage(settings.tokenizer):
            self.load_others(settings.tokenizer)
            if settings.weights is not None:
                self.load_model(settings.weights)

    def load(self, places: dict[str, Any]) -> None:
        """What is not there yet, of what other stages have trained. Raises as `start` does."""
        if (tokenizer := places.get("tokenizer", self.named)) != self.named:
            self.load_others(tokenizer)
        if (weights := places.get("weights") or self.settings.weights or "") != self.weights:
            self.load_model(weights)

    def load_model(self, weights: str) -> None:
        s = self.settings
        with tempfile.TemporaryDirectory() as folder:
            if storage.is_s3(weights):
                path = Path(folder, weights.rpartition("/")[2])
                path.write_bytes(storage.read(weights))
            else:
                there = [name for name in FILES if hub.is_path(weights) and Path(weights, name).expanduser().is_file()]
                [path] = hub.located(weights, *(there or ["model.pt"])[:1])
            model = Decoder(s.preset, keys.Published(path), self.device, self.dtype, self.ranks.group)
        self.generator = Generator(model, s.batch, s.temperature, s.top_p, self.classes)
        self.weights = weights

    def load_others(self, tokenizer: str) -> None:
        self.classes, self.named = self.ranks.shared(lambda: self.opened(tokenizer)), tokenizer

    def opened(self, tokenizer: str) -> int:
        """How many ids there are to choose from."""
        s = self.settings
        self.tokenizer = tokenizers.load(tokenizer, self.device, self.dtype)
        if self.tokenizer.vocabulary is None or self.tokenizer.vocabulary > s.preset.classes:
            raise ValueError(f"tokenizer: {tokenizer} has {self.tokenizer.vocabulary or 'no'} ids, and {s.model} "
                             f"chooses among {s.preset.classes}")  # fmt: skip
        t, h, w = s.preset.shape
        self.latents = 1 if s.acts else t  # that are decoded together
        self.shape = (self.tokenizer.pixel_frames(t), h * self.tokenizer.spatial, w * self.tokenizer.spatial)
        self.text_input = text_input.load_text_input("t5", s.text_encoder, str(self.device)) if s.words else None
        if self.text_input and self.text_input.channels != s.preset.context_dim:
            raise ValueError(f"text_encoder: {s.text_encoder} makes texts of {self.text_input.channels} channels; "
                             f"{s.model} takes {s.preset.context_dim}")  # fmt: skip
        return self.tokenizer.vocabulary

    # A video

    def row(self, one: Request) -> dict[str, Any]:
        """What a video is made with."""
        s, (_, height, width) = self.settings, self.shape
        return {
            "name": one.name, "prompt": one.prompt, "media": one.media or None, "given": self.given(one),
            "held_out": one.held_out or None, "seed": s.seed if one.seed is None else one.seed,
            "actions": one.actions, "temperature": s.temperature, "top_p": s.top_p, "frames": self.length(one),
            "height": height, "width": width, "fps": s.fps, "source": one.source,
        }  # fmt: skip

    def length(self, one: Request) -> int:
        """Frames of a video."""
        return len(one.actions or ()) + 1 if self.settings.acts else self.shape[0]

    def given(self, one: Request) -> int:
        """Latent frames that it goes on from. 2 is what a video without further words has, and here means `given`."""
        if self.settings.acts:
            return min(one.given, 1)
        return self.settings.given if one.given == 2 and not one.media.lower().endswith(PICTURES) else one.given

    def begin(self, one: Request) -> Prompt | Bad:
        """What the model is given, on all ranks; or why there will be no video."""

        def find() -> Prompt | Bad:
            try:
                return self.prompt(one)
            except BadInput as error:
                return error.bad

        return self.ranks.shared(find)

    def prompt(self, one: Request) -> Prompt:
        """Raises BadInput for a request that this model cannot do."""
        s, (_, height, width) = self.settings, self.shape
        if s.acts and not one.actions:
            raise BadInput(one.source, "no-actions", f"{one.name}: {s.model} makes a frame for each action: say "
                           "`actions` in a file of prompts that lies in a folder, or that `prompts` names")  # fmt: skip
        if one.actions and not s.acts:
            raise BadInput(one.source, "actions", f"{one.name}: {s.model} does not know what actions are")
        frames = self.length(one)
        if one.frames not in (None, frames):
            raise BadInput(one.source, "bad-frames", f"{one.name}: {one.frames}; {s.model} makes {frames} frames")
        if one.size not in (None, (height, width)):
            words = f"{one.name}: {one.size[0]} x {one.size[1]}; {s.model} makes {height} x {width}"
            raise BadInput(one.source, "bad-size", words)
        if s.words and not one.prompt:
            raise BadInput(one.source, "no-prompt", f"{one.name}: {s.model} needs words: give a prompt")
        if not s.words and not one.given:
            raise BadInput(one.source, "no-media", f"{one.name}: {s.model} goes on from a picture or a video: give one")
        ids = torch.zeros(0, dtype=torch.long)
        if count := self.given(one):
            pictures = torch.from_numpy(media.frames(one, self.tokenizer.pixel_frames(count), width, height, s.fps))
            pixels = pictures.to(self.device).permute(3, 0, 1, 2)[None].to(self.dtype) / 127.5 - 1
            with torch.inference_mode():
                ids = self.tokenizer.encode(pixels).flatten().long().cpu()
        context = self.text_input([one.prompt])[0].cpu() if self.text_input else None
        actions = torch.tensor(one.actions) if s.acts else None
        return Prompt(ids, s.seed if one.seed is None else one.seed, context, actions)

    def ids(self, begun: list[Prompt], check: Callable[[], None]) -> Sequence[Tensor]:
        """int64 of each video, those that were given included. With actions, [frames - 1, 7] each, one frame after the
        other."""
        if not self.settings.acts:
            return self.generator(begun, check)
        frames = [[one.ids_N] for one in begun]
        for step in range(max(len(one.action_A) for one in begun)):
            going = [i for i, one in enumerate(begun) if step < len(one.action_A)]
            asked = [begun[i]._replace(ids_N=frames[i][-1], seed=begun[i].seed + (step << 32),  # draws of its own
                                       action_A=begun[i].action_A[step]) for i in going]  # fmt: skip
            for i, row in zip(going, self.generator(asked, check), strict=True):
                frames[i].append(row[len(begun[i].ids_N) :])
        return [torch.cat(one) for one in frames]

    def frames(self, ids: Tensor) -> npt.NDArray[np.uint8]:
        """uint8 [frames, height, width, 3], RGB, of ids in raster order. Raises ValueError for ids that are none."""
        if ids.min() < 0 or ids.max() >= self.classes:
            words = f"the model gave ids from {ids.min()} to {ids.max()}"
            raise ValueError(f"{words}; 0 to {self.classes - 1} are expected")
        parts = ids.view(-1, 1, self.latents, *self.settings.preset.shape[1:]).to(self.device, torch.int32)
        with torch.inference_mode():
            pixels = torch.cat([self.tokenizer.decode(one)[0] for one in parts], 1)
        if not pixels.isfinite().all():
            raise ValueError(f"{self.settings.tokenizer} gave numbers that are none")
        return ((pixels.float().permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
