"""What a diffusion model learns from: clips or their latents, and texts -> latents, a condition, and draws.

    inputs = Inputs(settings, table, device)
    one = inputs.of(batch.frames, batch.inside, batch.fps, batch.more)       # for the whole video
    drawn = draws(settings.seed, batch.samples, one.x0.shape, of, device)
    x0, condition, drawn = shared(one.x0, condition, drawn, group)           # this rank's frames

All draws are made for whole videos, by the number of the sample alone: how ranks share them changes nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from hpc.data import pickles
from hpc.data.work import BadInput
from hpc.models import context_parallel, text_input, tokenizers
from hpc.models.diffusion import Condition, Draws, Objective, first_frames
from hpc.models.dit import FPS
from hpc.train.randomness import generator, numbers
from hpc.train.samples import fetched
from hpc.train.settings import TrainDiffusion

NO_TEXT = 16
"""Tokens of no text at all: with zeros for keys and values any number gives the same; FP8 takes a multiple of 16."""
DECODED = 4
"""Latent frames that are decoded at once."""


def embedding(row: dict[str, Any], channels: int | None = None) -> np.ndarray:
    """[tokens, channels] of a row of hpc.train.samples. Raises BadInput, also for other channels than these."""
    where = row["media"]["uri"]
    if not row["embedding"]:
        words = (f"{row['key']} has no embedding of its text beside it, t5_xxl/*.pickle or .pickle in the tar: put "
                 "curate.text_embed before this stage, or take `text: {source: encoder}` or none")  # fmt: skip
        raise BadInput(where, "no-embedding", words)
    try:
        held = pickles.loads(fetched(row["embedding"]))
    except pickles.Refused as error:
        raise BadInput(row["embedding"]["uri"], "no-embedding", f"{row['key']}: {error}") from error
    found = held[0] if isinstance(held, list) and held else held
    if isinstance(found, dict):  # predict2.5: by the name of the embedding
        found = next(iter(found.values()), None)
    if not isinstance(found, np.ndarray) or found.ndim != 2:
        raise BadInput(where, "no-embedding", f"{row['key']}: a list of one array [tokens, channels] is expected")
    if found.shape[1] != (channels or found.shape[1]):
        words = f"{row['key']}: an embedding of {found.shape[1]} channels; the model takes {channels}"
        raise BadInput(where, "no-embedding", f"{words}: was it made by another encoder?")
    if not np.isfinite(found).all():
        raise BadInput(where, "no-embedding", f"{row['key']}: some numbers of its embedding are NaN or infinite")
    return found


def caption(row: dict[str, Any]) -> str:
    """Of a row of hpc.train.samples; "" where there is none."""
    if row["prompt"]:
        return str(row["prompt"])
    if row["text"]:
        return fetched(row["text"]).decode().strip()
    said = json.loads(fetched(row["json"])) if row["json"] else {}
    return str(said.get("caption") or said.get("prompt") or "")


class Video(NamedTuple):
    """Samples as the model learns them, with all of their frames."""

    x0_BCTHW: Tensor
    """float32, scaled as the objective has it."""
    text_BLE: Tensor
    fps_B: Tensor
    padding_BHW: Tensor


class Inputs:
    """The models that make latents and texts, loaded once. Raises ValueError where they do not fit the network."""

    def __init__(self, settings: TrainDiffusion, of: Objective, table: pa.Table, device: torch.device) -> None:
        self.settings, self.scale, self.device = settings, of.latent_scale, device
        c = self.config = settings.config
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.tokenizer: Any = None
        self.videos = not all(table["latents"].to_pylist())
        """Some samples are videos, of which latents are to be made."""
        if settings.video_tokenizer and (self.videos or settings.pictures.clips):
            self.tokenizer = tokenizers.load(settings.video_tokenizer, device, self.dtype)
            if self.tokenizer.vocabulary is not None or self.tokenizer.latent_channels != c.latent_channels:
                raise ValueError(f"tokenizer: {settings.video_tokenizer} makes no latents of {c.latent_channels} "
                                 f"channels, which {settings.model} takes")  # fmt: skip
        elif self.videos:
            raise ValueError(f"tokenizer: the data set has videos, and {settings.model} no tokenizer of its own: name "
                             "one, or put prepare.latents before this stage")  # fmt: skip
        self.encoder: Any = None
        if settings.text.source == "encoder":
            self.encoder = text_input.load_text_input(settings.preset.text, settings.text_model, str(device))
            if self.encoder.channels != c.text_input:
                raise ValueError(f"text: {settings.text_model} makes texts of {self.encoder.channels} channels; "
                                 f"{settings.model} takes {c.text_input}")  # fmt: skip

    @property
    def read(self) -> Callable[[dict[str, Any]], Any] | None:
        """For hpc.train.loader: what of a row else is needed."""
        of_pickles = functools.partial(embedding, channels=self.config.text_input)
        return {"pickles": of_pickles, "encoder": caption, "none": None}[self.settings.text.source]

    @torch.no_grad()
    def of(self, frames: Tensor, inside: Tensor, fps: Tensor, more: Sequence[Any]) -> Video:
        """Of a hpc.train.loader.Batch, or a part of it."""
        x0 = frames.to(self.device, non_blocking=True)
        if frames.dtype == torch.uint8:
            x0 = tokenizers.encoded(self.tokenizer, x0.permute(0, 4, 1, 2, 3))
        fps = torch.where(fps > 0, fps, FPS).to(self.device)
        padding = (~inside).float().to(self.device, non_blocking=True)
        return Video(x0.float() * self.scale, self.texts(more, len(x0)), fps, padding)

    def texts(self, more: Sequence[Any], count: int) -> Tensor:
        if self.settings.text.source == "none":
            return self.no_text(count)
        if self.encoder:
            return self.encoder(more)
        return text_input.padded(more, self.config.text_input).to(self.device)

    def no_text(self, count: int) -> Tensor:
        tokens = NO_TEXT if self.settings.text.source == "none" else text_input.TOKENS
        return torch.zeros(count, tokens, self.config.text_input, device=self.device)

    @torch.no_grad()
    def pixels(self, latents_BCTHW: Tensor) -> Tensor:
        """[B, 3, T, H, W] from -1 to 1, of latents as the tokenizer makes them, on the CPU."""
        parts = self.tokenizer.decode_stream(latents_BCTHW.to(self.dtype).split(DECODED, dim=2))
        return torch.cat([part.float().cpu() for part in parts], dim=2)


def draws(seed: int, samples: Sequence[int], shape: torch.Size, of: Objective, given: bool,
          device: torch.device) -> tuple[Draws, Tensor | None]:  # fmt: skip
    """(draws of each sample, by its number; given_BT of networks that take given frames)."""

    def normal(what: str, *size: int) -> Tensor:
        return torch.stack([torch.randn(size, generator=generator(device, seed, what, one), device=device)
                            for one in samples])  # fmt: skip

    def uniform(what: str, count: int) -> Tensor:
        return torch.from_numpy(np.stack([numbers(seed, what, one).random(count) for one in samples])).to(device)

    whole = tuple(shape[1:])
    drawn = Draws(normal("noise", *whole), normal("level"), uniform("high", 2).float(), normal("given level"),
                  normal("given noise", *whole) if given else None)  # fmt: skip
    return drawn, first_frames(uniform("given", 1)[:, 0], of.given_frames, shape[2]).to(device) if given else None


def dropped(text_BLE: Tensor, seed: int, samples: Sequence[int], share: float) -> Tensor:
    """Without the texts of some samples, by their numbers."""
    keep = [float(numbers(seed, "text dropout", one).random() >= share) for one in samples]
    return text_BLE * torch.tensor(keep, device=text_BLE.device, dtype=text_BLE.dtype)[:, None, None]


def shared(x0: Tensor, c: Condition, noises: Sequence[Tensor | None],
           group: dist.ProcessGroup | None) -> tuple[Tensor, Condition, list[Tensor | None]]:  # fmt: skip
    """This rank's frames of whole videos, and of their noise."""
    if group is None:
        return x0, c, list(noises)
    first = context_parallel.first_frame(x0.shape[2], group)
    c = c._replace(
        given_BT=None if c.given_BT is None else context_parallel.part(c.given_BT, group, dim=1),
        latents_BCTHW=None if c.latents_BCTHW is None else context_parallel.part(c.latents_BCTHW, group),
        first_frame=first,
    )  # fmt: skip
    return (context_parallel.part(x0, group), c,
            [None if one is None else context_parallel.part(one, group) for one in noises])  # fmt: skip
