"""What all trainers are told of their data: the shapes that samples are brought to, and which are held out."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Fit = Literal["crop", "pad", "stretch"]
"""How a picture of another aspect ratio is brought to a shape: cut at its edges, with black beside it, or stretched."""

Decode = Literal["auto", "cpu", "gpu"]
"""Who decodes videos. cpu: processes (`readers`), by libav. gpu: the video engines of the rank's GPU (NVDEC), several
videos at a time; frames are resized on the GPU and stay there. What they cannot take (odd, interlaced, 4:2:2, AV1 ...)
the CPU decodes, counted as `decoded_by_cpu`. auto: gpu where there is one with the driver's library for it, else cpu.
Frames are the same ones; their pictures differ by half a level of 255 in the mean, by who resizes them."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sample is brought to, and how many make a step's batch."""

    frames: Annotated[int, Meta(ge=1)]
    """1: pictures."""
    height: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    batch: Annotated[int, Meta(ge=1)]
    """Samples a step takes, over all ranks together."""
    fps: float | None = None
    """Frames a second to take; null: each one, as they come."""
    weight: float = 1.0
    """How often it has its turn, over its share of the samples: 2 takes each sample twice as often as others'."""

    def stride(self, fps: float) -> float:
        """Frames of a source with `fps` from one that is taken to the next."""
        return 1.0 if self.fps is None or not fps else fps / self.fps

    def span(self, fps: float) -> int:
        """Frames of a source that the first and the last taken one and all between them are."""
        return math.floor((self.frames - 1) * self.stride(fps) + 1e-6) + 1

    def numbers(self, fps: float, start: int) -> list[int]:
        """Which frames of a source are taken, from `start` on."""
        return [start + math.floor(i * self.stride(fps) + 1e-6) for i in range(self.frames)]


class Validation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Samples that training never sees, and how often it is measured on them."""

    share: Annotated[float, Meta(ge=0, lt=1)] = 0.02
    """Of the sources (or clips) that are held out, chosen by a hash of their names; 0: none, and nothing is
    measured."""
    by: Literal["source", "clip"] = "source"
    """source: a video is held out whole, with all of its clips. clip: each clip by itself, where there are few videos;
    clips of one shot then should not be in different ones."""
    every: Annotated[int, Meta(ge=1)] = 1000
    """Steps."""
    clips: Annotated[int, Meta(ge=1)] = 32
    """Of the held-out ones so many are looked at each time, the same ones, each from its middle."""


def undivided(shapes: tuple[Shape, ...], ranks: int) -> str:
    """Why so many ranks cannot share the batches equally; "" where they can."""
    for number, shape in enumerate(shapes):
        if shape.batch % ranks:
            near = [n for n in (shape.batch // ranks * ranks, -(-shape.batch // ranks) * ranks) if n]
            share = f"{shape.batch} / {ranks} = {shape.batch / ranks:.4g}"
            return (f"shapes: {number}.batch: {shape.batch} samples cannot be shared by {ranks} ranks (nodes x workers)"
                    f" equally: {share} each; make it {' or '.join(map(str, near))}")  # fmt: skip
    return ""
