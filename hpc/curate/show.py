"""The windows of a shard's clips, and the frames of each that a model is shown.

Clips are read and decoded by threads, ahead of the model that takes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpc.curate.windows import samples, windows
from hpc.data import layers, upstream, video
from hpc.data.upstream import Clip
from hpc.data.work import BadInput, Work
from hpc.models import vlm
from hpc.models.vlm import Answer, Engine


class Window(NamedTuple):
    clip: Clip
    number: int
    """Of the clip's, from 0."""
    first: int
    last: int
    """Frames, counted from the clip's first, both inclusive."""


Shown = tuple[Window, npt.NDArray[np.uint8], float]
"""A window, its frames [T, H, W, 3] in RGB, and how many a second they are."""


def plan(clips: Sequence[Clip], window: int) -> list[Window]:
    """All windows of clips with the column num_frames."""
    return [Window(clip, number, first, last) for clip in clips
            for number, (first, last) in enumerate(windows(clip.row["num_frames"], window))]  # fmt: skip


def shown(
    engine: Engine, planned: Sequence[Window], rate: float, broken: dict[str, Answer], work: Work
) -> Iterator[Shown]:
    """The windows in order, with `rate` frames a second, in the size in which the engine looks at them. Clips (with the
    columns fps, width, height) that cannot be decoded are left out, and go to `broken`: uuid -> why."""
    of_clip: dict[str, list[Window]] = {}
    for window in planned:
        of_clip.setdefault(window.clip.uuid, []).append(window)
    clips = list({window.clip.uuid: window.clip for window in planned}.values())

    def decode(pair: tuple[Clip, bytes]) -> list[Shown] | Exception:
        work.check()
        clip, data = pair
        mine, fps = of_clip[clip.uuid], clip.row["fps"]
        numbers = [samples(window.first, window.last, fps, rate) for window in mine]
        try:
            most = max(map(len, numbers))
            height, width = engine.size(most, clip.row["height"], clip.row["width"])
            frames = video.sample(data, [number for some in numbers for number in some], width, height)
        except (BadInput, ValueError) as error:
            return error
        found, at = [], 0
        for window, some in zip(mine, numbers, strict=True):
            found.append((window, frames[at : at + len(some)], fps * (len(some) - 1) / (window.last - window.first)))
            at += len(some)
        return found

    threads = max(layers.READERS, len(os.sched_getaffinity(0)))  # each decodes a clip, on one core
    for clip, found in zip(clips, layers.map_ahead(decode, upstream.videos(clips), threads), strict=True):
        if isinstance(found, Exception):
            broken[clip.uuid] = vlm.failed(found)
        else:
            yield from found
