"""Batches for training, decoded in worker processes; each is a function of its step, so that any step can be the first.

    batches = Batches(table, shapes, seed=1)
    for batch in batches.of_rank(rank, ranks, first_step=step, workers=8):
        batch.frames, batch.fps, batch.samples          # and batch.waited, seconds

A sample that cannot be decoded is replaced by the one beside it, the same one whoever draws it, and told.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from hpc.data.work import BadInput
from hpc.train.order import Bucket, Order
from hpc.train.randomness import numbers
from hpc.train.samples import Shape, assigned, fetched
from hpc.train.settings.data import Fit
from hpc.train.stream import by_thread, stream

NEIGHBOURS = 8  # samples that are tried in place of one that cannot be read


class Batch(msgspec.Struct):
    """A rank's share of a step."""

    step: int
    shape: Shape
    frames: Tensor
    """uint8 [batch, frames, height, width, 3], RGB; of latents float32 [batch, channels, t, h, w]."""
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
    waited: float = 0.0
    """Seconds that training waited for this batch."""


class Batches:
    """All steps of a training. Raises ValueError where no sample fits any shape."""

    def __init__(
        self,
        table: pa.Table,
        shapes: Sequence[Shape],
        seed: int,
        fit: Fit = "crop",
        read: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        """read(row of the table) -> what else of a sample training needs; a function of a module, since the worker
        processes call it."""
        chosen = assigned(table, shapes)
        self.left_out = chosen.left_out
        used = [number for number, rows in enumerate(chosen.rows) if len(rows)]
        self.table, self.seed, self.fit, self.read = table, seed, fit, read
        self.shapes = [shapes[number] for number in used]
        self.rows = [chosen.rows[number] for number in used]
        buckets = [Bucket(len(r), s.batch, s.weight) for r, s in zip(self.rows, self.shapes, strict=True)]
        self.order = Order(buckets, seed)
        self.kept: dict[tuple[int, int], tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]] = {}
        """(shape, row) -> all frames of a clip, where `keep` was called."""

    def keep(self, threads: int) -> int:
        """Decodes every clip once and keeps all of its frames: for data sets of minutes. Returns how many bytes these
        are. Clips that cannot be decoded are told of when they are drawn."""

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
        shape, rows = self.shapes[batch.bucket], self.rows[batch.bucket]
        out = Batch(step, shape, *(torch.empty(0),) * 3, [], [], [], [], [], [])
        pictures, insides, speeds = [], [], []
        for offset, place in enumerate(batch.places):
            sample = batch.first + offset
            for beside in range(NEIGHBOURS):
                row = int(rows[(place + beside) % len(rows)])
                one = self.table.slice(row, 1).to_pylist()[0]
                try:
                    start = self._start(one, shape, sample)
                    if held := self.kept.get((batch.bucket, row)):
                        frames, inside = held[0][shape.numbers(one["fps"], start)], held[1]
                        fps = float(shape.fps or one["fps"])
                    else:
                        frames, inside, fps = taken(one, shape, start, self.fit)
                    more = self.read(one) if self.read else None
                    break
                except (BadInput, OSError, ValueError) as error:
                    out.replaced.append(f"{one['key']} ({one['media']['uri']}): {error}")
            else:
                raise ValueError(f"{NEIGHBOURS} samples side by side cannot be read, the first being {out.replaced[0]}")
            pictures.append(frames)
            insides.append(inside)
            speeds.append(fps)
            out.samples.append(sample)
            out.rows.append(row)
            out.starts.append(start)
            out.keys.append(one["key"])
            out.more.append(more)
        out.frames, out.inside = torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(insides))
        out.fps = torch.tensor(speeds)
        return out

    def _start(self, row: dict[str, Any], shape: Shape, sample: int) -> int:
        """A clip of exactly as many frames as are taken has one place to start: its first."""
        last = row["frames"] - shape.span(row["fps"])
        return int(numbers(self.seed, "start", sample).integers(0, last, endpoint=True))

    def of_rank(self, rank: int, ranks: int, first_step: int = 0, workers: int = 0, ahead: int = 2) -> Iterator[Batch]:
        """A rank's batches from a step on, without end. workers: processes that decode (where all frames are kept, a
        thread is ahead instead); ahead: batches of each that wait. What is yielded does not depend on either."""
        self.order.batch(first_step).of_rank(rank, ranks)  # a share that is none shows here, not in a worker
        at = functools.partial(self.at, rank=rank, ranks=ranks)
        arriving = by_thread(at, first_step, ahead) if self.kept else stream(at, first_step, workers, ahead)
        for batch, waited in arriving:
            batch.waited = waited
            for words in batch.replaced:
                logging.getLogger(__name__).warning("step %d: the sample beside it is taken for %s", batch.step, words)
            yield batch


def taken(
    row: dict[str, Any], shape: Shape, start: int, fit: Fit
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], float]:
    """A sample's frames from `start` on, brought to a shape: uint8 [frames, height, width, 3], bool [height, width] of
    where the picture is, and its frames a second. Raises BadInput or OSError where it cannot be decoded."""
    if row["latents"]:
        return taken_latents(row, shape)
    data = fetched(row["media"])
    width, height, left, top = fitting.placed(row["width"], row["height"], shape.width, shape.height, fit)
    if row["still"]:
        pictures = _resized(video.still(data), width, height)[None]
    else:
        pictures = video.sample(data, shape.numbers(row["fps"], start), width, height)
        if len(pictures) < shape.frames:
            raise BadInput(row["media"]["uri"], "too-short", f"{row['key']} has no frame {start} to decode")
    inside = np.zeros((shape.height, shape.width), bool)
    x, y, right, bottom = fitting.inside(row["width"], row["height"], shape.width, shape.height, fit)
    inside[y:bottom, x:right] = True
    return fitting.laid(pictures, shape.width, shape.height, left, top), inside, float(shape.fps or row["fps"])


def taken_latents(
    row: dict[str, Any], shape: Shape
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], float]:
    """As `taken`, of what hpc.prepare encoded: float32 [channels, t, h, w], bool [height, width] in pixels. Raises
    ValueError for what is no file of latents."""
    about = json.loads(fetched(row["json"]))
    left, top, right, bottom = about["inside"]
    inside = np.zeros((shape.height, shape.width), bool)
    inside[top:bottom, left:right] = True
    return latents.loads(fetched(row["media"])), inside, float(row["fps"])


def _resized(picture: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    return np.asarray(PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.BICUBIC))
