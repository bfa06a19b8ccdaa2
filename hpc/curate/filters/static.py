"""The share of a clip's time in which the picture stands: slideshows, title cards, frozen streams.

Every half second the picture is held against the one half a second before, tile by tile (8x8 pixels of a small picture,
some 1/20 of the width a side): it stands where no tile changed by more than `noise` in the mean. Tiles, because
something small that moves, a mouth or a bird, would drown in the mean over the whole picture that ffmpeg's
`freezedetect` takes.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.curate.filters import Open, displacement
from hpc.curate.look import Look
from hpc.curate.settings.filters import Static
from hpc.data.video import Video

TILE = 8  # pixels a side


def start(settings: Static) -> Open:
    return functools.partial(Standing, settings)


class Standing:
    every = 0.5  # seconds

    def __init__(self, settings: Static, info: Video) -> None:
        self.noise = settings.noise * 255
        self.size = displacement.size(info)
        self.before: npt.NDArray[Any] | None = None
        self.stands: list[bool] = []

    def take(self, look: Look, seconds: float) -> None:
        picture = look.luma(*self.size).astype(np.int16)
        if self.before is not None:
            self.stands.append(largest_change(self.before, picture) <= self.noise)
        self.before = picture

    def scores(self) -> dict[str, float]:
        return {"static_share": float(np.mean(self.stands))} if self.stands else {}


def largest_change(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Of the mean absolute differences of each tile, in levels. one, other: int16 [height, width]."""
    height, width = one.shape
    changes = np.abs(one - other).reshape(height // TILE, TILE, width // TILE, TILE).mean((1, 3))
    return float(changes.max())
