"""Batches for training, decoded in worker processes, or by a GPU's video engines for which threads of the trainer care;
each is a function of its step, so that any step can be the first.

    batches = Batches(table, shapes, seed=1)
    for batch in batches.of_rank(rank, ranks, first_step=step, workers=8):
        batch.frames, batch.fps, batch.samples          # and batch.waited, seconds

    Batches(table, shapes, seed=1, gpu=device_for("gpu", device))    # hpc.data.video.nvdec: frames are on that device

A sample that cannot be decoded is replaced by the one beside it, the same one whoever draws it, and told.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import torch
from torch import Tensor

from hpc.data import latents, video
from hpc.data.video import fit as fitting
from hpc.data.video.sample_gpu import LANES, Sampler, together
from hpc.data.work import BadInput
from hpc.train import randomness
from hpc.train.order import Bucket, Order
from hpc.train.samples import Shape, assigned, fetched
from hpc.train.settings.data import Fit
from hpc.train.stream import by_thread, stream

NEIGHBOURS = 8  # samples that are tried in place of one that cannot be read


class Batch(msgspec.Struct):
    """A rank's share of a step."""

    step: int
    shape: Shape
    frames: Tensor
    """uint8 [batch, frames, height, width, 3], RGB; of latents float32 [batch, channels, t, h, w]. Videos that a GPU
    decodes are on it, all else is on the CPU."""
    fps: Tensor
    """float32 [batch]; 0 for pictures."""
    inside: Tensor
    """bool [batch, height, width]: where the picture is; false for the black beside it."""
    samples: list[int]
    """The number of each among all that training has taken: draw its noise by it."""
    rows: list[int]
    """Of the table."""
    starts: list[int]
    """Each clip's first frame that was taken."""
    keys: list[str]
    more: list[Any]
    """What `read` made of each row, e.g. its caption's embedding."""
    replaced: list[str]
    """What could not be decoded, and why."""
    decoded_by_cpu: int = 0
    """Videos that were to be decoded by a GPU, and that it cannot take."""
    waited: float = 0.0
    """Seconds that training waited for this batch."""


class One(msgspec.Struct):
    """A sample of a batch."""

    frames: Any
    """An array, or a tensor on a GPU."""
    inside: npt.NDArray[np.bool_]
    fps: float
    row: int
    start: int
    key: str
    more: Any
    replaced: list[str]
    by_cpu: int


class Batches:
    """All steps of a training. Raises ValueError where no sample fits any shape."""

    def __init__(
        self,
        table: pa.Table,
        shapes: Sequence[Shape],
        seed: int,
        fit: Fit = "crop",
        read: Callable[[dict[str, Any]], Any] | None = None,
        gpu: torch.device | None = None,
        channels: int | None = None,
    ) -> None:
        """read(row of the table) -> what else of a sample training needs; a function of a module, since the worker
        processes call it. gpu: decodes videos, and has their frames; without one CPUs do. What is drawn is the same
        with it, and pictures are as hpc.data.video.sample_gpu says. channels: of latents; null: any."""
        chosen = assigned(table, shapes)
        self.left_out = chosen.left_out
        used = [number for number, rows in enumerate(chosen.rows) if len(rows)]
        if not used:
            why = "; ".join(f"{len(keys)}, such as {keys[0]}: {words}" for words, keys in self.left_out.items())
            raise ValueError(f"no sample fits the shapes that training takes: of {len(table)} are {why or 'none'}")
        self.table, self.seed, self.fit, self.read, self.gpu = table, seed, fit, read, gpu
        self.channels = channels
        self.shapes = [shapes[number] for number in used]
        self.rows = [chosen.rows[number] for number in used]
        buckets = [Bucket(len(r), s.batch, s.weight) for r, s in zip(self.rows, self.shapes, strict=True)]
        self.order = Order(buckets, seed)
        self.kept: dict[tuple[int, int], tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]] = {}
        """(shape, row) -> all frames of a clip, where `keep` was called."""

    def keep(self, threads: int) -> int:
        """Decodes every clip once, on CPUs, and keeps all of its frames: for data sets of minutes. Returns how many
        bytes these are. Clips that cannot be decoded are told of when they are drawn."""

        def whole(number: int, row: int) -> None:
            one, shape = self.table.slice(row, 1).to_pylist()[0], self.shapes[number]
            every = msgspec.structs.replace(shape, frames=one["frames"], fps=None)
            with contextlib.suppress(BadInput, OSError, ValueError):
                self.kept[number, row] = taken(one, every, 0, self.fit)[:2]

        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(whole, number, int(row)) for number, rows in enumerate(self.rows) for row in rows]
            for job in jobs:
                job.result()
        return sum(frames.nbytes for frames, _ in self.kept.values())

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """A rank's batch of a step, decoded here and now."""
        batch = self.order.batch(step).of_rank(rank, ranks)
        ones = [self._one(batch.bucket, place, batch.first + i) for i, place in enumerate(batch.places)]
        return self._batch(step, batch.bucket, batch.first, ones)

    def _one(self, bucket: int, place: int, sample: int) -> One:
        """A sample of a shape, or where it cannot be decoded the one beside it."""
        shape, rows = self.shapes[bucket], self.rows[bucket]
        replaced: list[str] = []
        sampler = Sampler(self.gpu) if self.gpu else None
        for beside in range(NEIGHBOURS):
            row = int(rows[(place + beside) % len(rows)])
            one = self.table.slice(row, 1).to_pylist()[0]
            try:
                start = self._start(one, shape, sample)
                if held := self.kept.get((bucket, row)):
                    frames, inside = held[0][shape.numbers(one["fps"], start)], held[1]
                    fps = float(shape.fps or one["fps"])
                else:
                    frames, inside, fps = taken(one, shape, start, self.fit, sampler, self.channels)
                more = self.read(one) if self.read else None
            except (BadInput, OSError, ValueError) as error:
                replaced.append(f"{one['key']} ({one['media']['uri']}): {error}")
                continue
            by_cpu = sampler.by_cpu if sampler else 0
            return One(frames, inside, fps, row, start, one["key"], more, replaced, by_cpu)
        raise ValueError(f"{NEIGHBOURS} samples side by side cannot be read, the first being {replaced[0]}")

    def _batch(self, step: int, bucket: int, first: int, ones: list[One]) -> Batch:
        frames, insides = [one.frames for one in ones], torch.from_numpy(np.stack([one.inside for one in ones]))
        on_gpu = isinstance(frames[0], Tensor)
        return Batch(
            step, self.shapes[bucket], together(frames) if on_gpu else torch.from_numpy(np.stack(frames)),
            torch.tensor([one.fps for one in ones]), insides,
            list(range(first, first + len(ones))), [one.row for one in ones], [one.start for one in ones],
            [one.key for one in ones], [one.more for one in ones],
            [words for one in ones for words in one.replaced], sum(one.by_cpu for one in ones),
        )  # fmt: skip

    def _start(self, row: dict[str, Any], shape: Shape, sample: int) -> int:
        """A clip of exactly as many frames as are taken has one place to start: its first."""
        last = row["frames"] - shape.span(row["fps"])
        return int(randomness.numbers(self.seed, "start", sample).integers(0, last, endpoint=True))

    def of_rank(self, rank: int, ranks: int, first_step: int = 0, workers: int = 0, ahead: int = 2) -> Iterator[Batch]:
        """A rank's batches from a step on, without end. workers: processes that decode (where all frames are kept, a
        thread is ahead instead, and where a GPU decodes, LANES threads); ahead: batches of each that wait. What is
        yielded does not depend on either."""
        self.order.batch(first_step).of_rank(rank, ranks)  # a share that is none shows here, not in a worker
        at = functools.partial(self.at, rank=rank, ranks=ranks)
        if self.kept:
            arriving = by_thread(at, first_step, ahead)
        elif self.gpu:
            arriving = self._by_lanes(rank, ranks, first_step, ahead)
        else:
            arriving = stream(at, first_step, workers, ahead)
        with contextlib.closing(arriving):  # or its threads would stay until it is collected
            for batch, waited in arriving:
                batch.waited = waited
                for words in batch.replaced:
                    said = "step %d: the sample beside it is taken for %s"
                    logging.getLogger(__name__).warning(said, batch.step, words)
                yield batch

    def _by_lanes(
        self, rank: int, ranks: int, first_step: int, ahead: int
    ) -> Generator[tuple[Batch, float], None, None]:  # fmt: skip
        """Batches and the seconds that were waited for each: threads take samples, so many that all video engines
        work also where a rank has few in a batch, but no more than `ahead` batches else."""
        waiting: deque[tuple[int, int, int, list[Future[One]]]] = deque()
        steps = itertools.count(first_step)
        with ThreadPoolExecutor(LANES, "decoder") as pool:
            try:
                while True:
                    while len(waiting) <= ahead or sum(len(parts) for *_, parts in waiting) < LANES:
                        b = self.order.batch(step := next(steps)).of_rank(rank, ranks)
                        parts = [pool.submit(self._one, b.bucket, p, b.first + i) for i, p in enumerate(b.places)]
                        waiting.append((step, b.bucket, b.first, parts))
                    *which, parts = waiting.popleft()
                    begun = time.monotonic()
                    ones = [part.result() for part in parts]
                    waited = time.monotonic() - begun
                    yield self._batch(*which, ones), waited
            finally:
                pool.shutdown(cancel_futures=True)


def taken(
    row: dict[str, Any], shape: Shape, start: int, fit: Fit, sampler: Sampler | None = None,
    channels: int | None = None,
) -> tuple[Any, npt.NDArray[np.bool_], float]:  # fmt: skip
    """A sample's frames from `start` on, brought to a shape: uint8 [frames, height, width, 3], bool [height, width] of
    where the picture is, and its frames a second. sampler: takes those of videos, as a tensor of its device; else all
    are arrays. channels: those that latents must have. Raises BadInput or OSError where it cannot be decoded."""
    if row["latents"]:
        return taken_latents(row, shape, channels)
    data = fetched(row["media"])
    size, to = (row["width"], row["height"]), (shape.width, shape.height)
    width, height, left, top = fitting.placed(*size, *to, fit)
    numbers = shape.numbers(row["fps"], start)
    if row["still"]:
        pictures = fitting.laid(_resized(video.still(data), width, height)[None], *to, left, top)
    elif sampler:
        pictures = sampler.fitted(data, numbers, size, to, fit)
    else:
        pictures = fitting.laid(video.sample(data, numbers, width, height), *to, left, top)
    if len(pictures) < shape.frames:
        raise BadInput(row["media"]["uri"], "too-short", f"{row['key']} has no frame {start} to decode")
    inside = np.zeros((shape.height, shape.width), bool)
    x, y, right, bottom = fitting.inside(*size, *to, fit)
    inside[y:bottom, x:right] = True
    return pictures, inside, float(shape.fps or row["fps"])


def taken_latents(
    row: dict[str, Any], shape: Shape, channels: int | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], float]:
    """As `taken`, of what hpc.prepare encoded: float32 [channels, t, h, w], bool [height, width] in pixels. Raises
    BadInput for what is no file of latents, or of others than its .json says."""
    where, key = row["media"]["uri"], row["key"]
    try:
        found = latents.loads(fetched(row["media"]))
        left, top, right, bottom = json.loads(fetched(row["json"]))["inside"]
    except (ValueError, LookupError, TypeError) as error:
        what = f"its .json has no {error}" if isinstance(error, KeyError) else error
        raise BadInput(where, "no-latents", f"{key}: {what}") from error
    own, t, h, w = found.shape
    sizes = f"{t} x {h} x {w}", f"{shape.frames} x {shape.height} x {shape.width}"
    if 0 in found.shape or (shape.frames - 1) % max(t - 1, 1) or (t == 1) != (shape.frames == 1) or (
        shape.height % h or shape.height * w != shape.width * h
    ):  # fmt: skip
        words = f"latents of {sizes[0]} cannot be those of {sizes[1]} frames and pixels, which its .json speaks of"
        raise BadInput(where, "no-latents", f"{key}: {words}")
    if own != (channels or own):
        words = f"latents of {own} channels; the model takes {channels}: were they made by another tokenizer?"
        raise BadInput(where, "no-latents", f"{key}: {words}")
    if not np.isfinite(found).all():
        raise BadInput(where, "no-latents", f"{key}: some of its latents are NaN or infinite")
    inside = np.zeros((shape.height, shape.width), bool)
    inside[top:bottom, left:right] = True
    return found, inside, float(row["fps"])


def _resized(picture: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    return np.asarray(PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.BICUBIC))
