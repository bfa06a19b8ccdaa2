"""Video tokenizers: a video becomes ids (discrete) or latents (continuous), and back.

    tokenizer = load("nvidia/Cosmos-Tokenize1-DV8x16x16-720p", device="cuda", dtype=torch.bfloat16)
    ids = tokenizer.encode(video)        # [B, 3, 33, 640, 1024] from -1 to 1 -> int32 [B, 5, 40, 64]
    for ids in tokenizer.encode_stream(chunks): ...              # of any length, in bounded memory
    latents = encoded(tokenizer, pictures)                       # of pixels, in pieces where they are many

Whatever has the methods of `Tokenizer` is one. `load` knows Cosmos-Tokenize1's DV8x16x16 and CV8x8x8 and the VAE of
Wan2.1 (which Cosmos-Predict2 and 2.5 use), as published or as diffusers saves them, and takes another by an import
path, `package.module:make`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from hpc.models import tokenizer_files
from hpc.models.tokenizer_files import IMPORT_PATH, found, piece
from hpc.models.tokenizers import causal, cosmos, files, wan


@runtime_checkable
class Tokenizer(Protocol):
    """What data preparation, training and generation ask of a tokenizer.

    Video is [B, 3, T, H, W], floats from -1 to 1.
    """

    temporal: int
    """Frames a latent frame stands for. The first may stand for fewer: ask `latent_frames`."""
    spatial: int
    """Pixels along an edge of what a latent pixel stands for; it divides the width and height of a video."""
    latent_channels: int
    vocabulary: int | None
    """How many ids there are: 0 to vocabulary - 1. None of a continuous tokenizer."""

    def latent_frames(self, frames: int) -> int:
        """Of a video of so many frames. Raises ValueError where there is no such video."""
        ...

    def pixel_frames(self, latent_frames: int) -> int: ...

    def encode(self, video: Tensor) -> Tensor:
        """Ids int32 [B, t, h, w], or latents float32 [B, latent_channels, t, h, w], ready for a diffusion model."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse; not clamped."""
        ...

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """What `encode` returns for all chunks together, in parts (dimension -3 is time), in bounded memory."""
        ...

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The inverse."""
        ...


def load(
    where: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: cosmos.Config | wan.Config | None = None,
) -> Tokenizer:
    """A tokenizer with its weights, ready for inference.

    where: owner/name@revision of a published one on the Hugging Face hub; the path of a file (.jit, .pth, .safetensors)
    or of a folder (as published, diffusers' or of our own `files.save`); or `package.module:make`, a function that is
    called with (device, dtype) and returns a Tokenizer.
    config: the sizes (cosmos.Config, wan.Config) of published files that have others than the published ones.
    Raises FileNotFoundError where a file is neither here nor to be had, RuntimeError naming what is missing, left over
    or of another size in it, ValueError for a name that is not known.
    """
    if re.fullmatch(IMPORT_PATH, where):
        return imported(where, device, dtype)
    first, *others = found(where)
    if first.name == "config.json":
        tokenizer = files.from_folder(first.parent)
    else:
        tokenizer = files.from_published([first, *others], config)
    tokenizer.eval().requires_grad_(False).to(device, dtype)
    causal.channels_last(tokenizer)
    return tokenizer


def imported(where: str, device: str | torch.device, dtype: torch.dtype) -> Tokenizer:
    """Of `package.module:make`. Raises ValueError where there is no such function, TypeError for what it returns."""
    module, _, name = where.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"tokenizer {where}: {error}; it is package.module:function, importable here") from error
    tokenizer = make(device, dtype)
    if not isinstance(tokenizer, Tokenizer):
        promised = [one for one in (*Tokenizer.__annotations__, *vars(Tokenizer)) if not one.startswith("_")]
        lacks = [one for one in promised if not hasattr(tokenizer, one)]
        raise TypeError(f"{where} returned a {type(tokenizer).__name__}, which lacks {', '.join(lacks)} of a Tokenizer")
    return tokenizer


@torch.no_grad()
def encoded(tokenizer: Tokenizer, pictures_BCTHW: Tensor) -> Tensor:
    """What `encode` returns for pixels from 0 to 255. Latents of more than PIECE pixels are made in pieces, so that
    memory does not grow with the batch, nor with a video's length: of several videos each, of one larger than that its
    frames as a stream. They are the same but for rounding; ids, of which those near the border of two would differ, are
    made of whole videos."""
    B, _, T, H, W = pictures_BCTHW.shape
    if tokenizer.vocabulary is not None or B * T * H * W <= tokenizer_files.PIECE:
        return tokenizer.encode(pictures_BCTHW.float() / 127.5 - 1)
    made = []
    for some in pictures_BCTHW.split(max(1, tokenizer_files.PIECE // (T * H * W))):
        frames = (part.float() / 127.5 - 1 for part in some.split(piece(H, W, tokenizer.temporal), dim=2))
        made.append(torch.cat(list(tokenizer.encode_stream(frames)), dim=-3))
    return torch.cat(made)
