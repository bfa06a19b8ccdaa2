"""Windows of clips through a video tokenizer, in batches: what tokens and latents have in common.

Clips are read and decoded by threads, a few windows ahead of the tokenizer, on CPUs or by the GPU's video engines, as
`decode` says: hpc.data.video.sample_gpu tells how their frames differ. hpc.models.tokenizers.encoded says which windows
are encoded whole.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpc.data import layers, video
from hpc.data.upstream import trained
from hpc.data.video import fit as fitting
from hpc.data.video import nvdec
from hpc.data.video.sample_gpu import LANES, Sampler, together
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.models import tokenizers
from hpc.models.tokenizer_files import is_stage
from hpc.models.tokenizers import Tokenizer, load
from hpc.prepare import inputs
from hpc.prepare.inputs import Clip
from hpc.prepare.settings.frames import Frames

MOST_THREADS = 8  # windows that are being read or wait: each is 65 MB at 33 x 640 x 1024, 250 MB at 93 x 704 x 1280
TOGETHER = 32  # frames of neighbouring windows that are decoded at once, where windows are shorter


class Encoder(msgspec.Struct):
    """A tokenizer, and what it makes of windows of the settings."""

    tokenizer: Tokenizer
    device: torch.device
    shape: tuple[int, int, int]
    """[t, h, w] of what a window becomes."""
    gpu: torch.device | None = None
    """What decodes; None: CPUs."""


def opened(settings: Frames, discrete: bool) -> Encoder:
    """Raises ValueError where the tokenizer is of the other kind, or has no such windows, or a GPU is to decode and
    cannot; and as `load` does."""
    if settings.decode == "gpu" and torch.cuda.is_available():
        nvdec.prepare()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        logging.getLogger(__name__).warning("no GPU: %s runs on CPUs; `resources: {gpus: 1}`", settings.tokenizer)
    gpu = nvdec.device_for(settings.decode, device)
    tokenizer = load(settings.tokenizer, device, getattr(torch, settings.precision))
    if discrete != (tokenizer.vocabulary is not None):
        words = ("makes latents, not ids: prepare.latents takes it" if discrete else
                 "makes ids, not latents: prepare.tokens takes it")  # fmt: skip
        raise ValueError(f"tokenizer: {settings.tokenizer} {words}")
    height, width = settings.size
    if height % tokenizer.spatial or width % tokenizer.spatial:
        raise ValueError(f"size: [{height}, {width}]: {settings.tokenizer} takes heights and widths that "
                         f"{tokenizer.spatial} divides")  # fmt: skip
    try:
        frames = tokenizer.latent_frames(settings.frames)
    except ValueError as error:
        raise ValueError(f"frames: {settings.frames}: {error}") from error
    return Encoder(tokenizer, device, (frames, height // tokenizer.spatial, width // tokenizer.spatial), gpu)


def freeze(
    settings: Frames, upstream: Mapping[str, list[tuple[str, dict[str, str]]]], superseded: set[tuple[str, str]]
) -> Iterator[list[Any]]:
    """Where another stage trains the tokenizer: a shard for each of the clips', [the tokenizer's folder, what is made
    of the clips]. Raises ValueError where the stages of clips have different shards."""
    folder = trained(upstream[settings.tokenizer], "tokenizer")["tokenizer"]
    needed = {name: dict(shards) for name, shards in upstream.items() if name != settings.tokenizer}
    if len({tuple(shards) for shards in needed.values()}) != 1:
        words = f"{', '.join(needed)} have different shards" if needed else "it names no stage with clips"
        raise ValueError(f"needs: {words}: beside {settings.tokenizer} name one stage with clips, and layers over it")
    for shard in next(iter(needed.values())):
        yield [folder, {name: shards[shard] for name, shards in needed.items()}]


def started(
    settings: Frames, discrete: bool, process: Callable[[Any, Encoder, Work], Made]
) -> Callable[[Work], Made]:
    """process(settings, encoder, work) for each shard: the tokenizer is opened at the start, or, where another stage
    trains it, with the first shard. Raises as `opened` does."""
    if not is_stage(settings.tokenizer):
        return functools.partial(process, settings, opened(settings, discrete))
    opened_once = functools.lru_cache(1)(opened)

    def made(work: Work) -> Made:
        folder, needed = work.rows
        named = msgspec.structs.replace(settings, tokenizer=folder)
        return process(named, opened_once(named, discrete), msgspec.structs.replace(work, rows=[], upstream=needed))

    return made


class Window(NamedTuple):
    row: dict[str, Any]
    """What is known of it: columns of hpc.prepare.documents.SCHEMA, with `why` where it is left out."""
    frames: Tensor | None
    """uint8 [frames, height, width, 3], RGB, on the GPU where that decodes; None of what is left out."""
    vector: npt.NDArray[np.float16] | None = None
    """[tokens, width], of its caption, for latents."""
    by_cpu: bool = False
    """A GPU was to decode it, and cannot take its file."""


class Encoded(NamedTuple):
    row: dict[str, Any]
    made: Tensor | None
    """What its window became, on the CPU; None of what is left out."""
    vector: npt.NDArray[np.float16] | None


class Some(NamedTuple):
    """Neighbouring windows of a clip, decoded together; none of a clip that is left out."""

    clip: Clip
    first: int = 0
    end: int = 0


def windows(
    settings: Frames, work: Work, clips: list[Clip], bad: list[Bad], gpu: torch.device | None
) -> Iterator[Window]:
    """All windows of a shard, in order, and the clips that are left out. bad: takes what cannot be read. gpu: decodes;
    None: CPUs do."""
    threads = LANES if gpu else min(MOST_THREADS, len(os.sched_getaffinity(0)))  # decoding is what they do
    found = layers.map_ahead(functools.partial(_measured, work), clips, threads)
    parts = itertools.chain.from_iterable(map(functools.partial(cut, settings), found))
    for some in layers.map_ahead(functools.partial(_decoded, settings, work, gpu), parts, threads):
        work.check()
        if some.clip.refused:
            bad.append(some.clip.refused)
        yield from some.windows


def _measured(work: Work, clip: Clip) -> Clip:
    if clip.refused is None:
        try:
            inputs.measured(clip, work.on)
        except BadInput as error:
            clip.refused = error.bad
    return clip


def stride(settings: Frames, clip: Clip) -> float:
    """Frames of a clip from one that is taken to the next."""
    return clip.fps / settings.fps if settings.fps and clip.fps else 1.0


def cut(settings: Frames, clip: Clip) -> Iterator[Some]:
    """The windows of a clip that are taken, some at a time."""
    count = 0 if clip.refused else inputs.windows(settings.frames, stride(settings, clip), clip.frames)
    if not count:
        if clip.part == 0:
            yield Some(clip)
        return
    if settings.windows == "first":
        count = 1
    first, end = clip.part * count // clip.parts, (clip.part + 1) * count // clip.parts
    together = max(1, TOGETHER // settings.frames)
    for begin in range(first, end, together):
        yield Some(clip, begin, min(begin + together, end))


class Decoded(NamedTuple):
    clip: Clip
    windows: list[Window]


def _decoded(settings: Frames, work: Work, gpu: torch.device | None, some: Some) -> Decoded:
    clip, first, end = some
    if clip.refused is None and first == end:
        return Decoded(clip, [Window(row(settings, clip) | {"why": "too-short"}, None)])
    if clip.refused is None:
        numbers = inputs.numbers(settings.frames, stride(settings, clip), first, end)
        try:
            with work.on(clip.item) if clip.item else nullcontext(), inputs.opened(clip) as file:
                pictures, by_cpu = _pictures(settings, gpu, clip, file, numbers)
            if len(pictures):
                each = pictures.chunk(end - first)
                starts = numbers[:: settings.frames]
                vectors = [None if settings.DISCRETE else clip.vector(at) for at in starts]
                return Decoded(clip, [Window(row(settings, clip, at), frames, vector, by_cpu)
                                      for at, frames, vector in zip(starts, each, vectors, strict=True)])  # fmt: skip
            raise BadInput(clip.media, "no-frames", f"none can be decoded from frame {numbers[0]} on")
        except BadInput as error:
            clip = msgspec.structs.replace(clip, refused=error.bad)
    assert clip.refused
    return Decoded(clip, [Window(row(settings, clip) | {"why": clip.refused.reason}, None)])


def _pictures(
    settings: Frames, gpu: torch.device | None, clip: Clip, file: BinaryIO, numbers: list[int]
) -> tuple[Tensor, bool]:
    """(uint8 [frames, height, width, 3], was a GPU to decode, and cannot?)."""
    height, width = settings.size
    if gpu:
        sampler = Sampler(gpu)
        found = sampler.fitted(file, numbers, (clip.width, clip.height), (width, height), settings.fit)
        return found, sampler.by_cpu > 0
    wide, high, left, top = fitting.placed(clip.width, clip.height, width, height, settings.fit)
    return torch.from_numpy(fitting.laid(video.sample(file, numbers, wide, high), width, height, left, top)), False


def row(settings: Frames, clip: Clip, start: int | None = None) -> dict[str, Any]:
    """What is known of a clip, and of a window that begins at frame `start`."""
    known = {"uuid": clip.uuid, "media": clip.media, "source": clip.source, "etag": clip.etag, "cameras": clip.cameras,
             "frames": clip.frames, "source_fps": clip.fps, "width": clip.width, "height": clip.height}  # fmt: skip
    if start is None:
        return known
    height, width = settings.size
    places = fitting.inside(clip.width, clip.height, width, height, settings.fit)
    known |= dict(zip(("left", "top", "right", "bottom"), places, strict=True))
    said = clip.said(start)
    return known | {"start": start, "fps": settings.fps or clip.fps, "caption": said.words if said else None}


def encoded(
    settings: Frames, encoder: Encoder, work: Work, bad: list[Bad], counts: Counter[str]
) -> Iterator[Encoded]:
    """All windows, and what is left out, in order. counts: takes clips, windows, frames, what was dropped, seconds, and
    where a GPU decodes the clips that it cannot."""
    clips = list(inputs.clips(work))
    found = windows(settings, work, clips, bad, encoder.gpu)
    seen: set[str] = set()
    begun: set[str] = set()
    by_cpu: set[str] = set()
    while True:
        began = time.monotonic()
        held: list[Window] = []
        batch: list[Tensor] = []
        for one in found:
            held.append(one)
            if one.frames is not None:
                batch.append(one.frames)
            if len(batch) == settings.batch:
                break
        if not held:
            break
        waited, began = time.monotonic() - began, time.monotonic()
        work.check()
        made = iter(_run(encoder, together(batch)) if batch else ())
        spent = time.monotonic() - began
        seen.update(one.row["uuid"] for one in held if one.frames is not None)
        begun.update(one.row["media"] for one in held)
        by_cpu.update(one.row["media"] for one in held if one.by_cpu)
        counts.update(clips=0, windows=len(batch), frames=len(batch) * settings.frames)
        counts.update(data_wait_seconds=waited, model_seconds=spent)  # type: ignore[arg-type]
        work.progress(len(begun) / len(clips), f"{len(begun)} of {len(clips)} clips, {counts['windows']} windows")
        for one in held:
            if one.frames is None:
                counts.update(["dropped", f"dropped_{one.row['why'].replace('-', '_')}"])
            yield Encoded(one.row, next(made) if one.frames is not None else None, one.vector)
    counts["clips"] = len(seen)
    if encoder.gpu:
        counts["decoded_by_cpu"] = len(by_cpu)


def _run(encoder: Encoder, frames_BTHWC: Tensor) -> Tensor:
    """Ids, or latents, on the CPU."""
    with torch.inference_mode():
        pictures = frames_BTHWC.to(encoder.device).permute(0, 4, 1, 2, 3)
        return tokenizers.encoded(encoder.tokenizer, pictures).cpu()
