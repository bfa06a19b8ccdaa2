"""The share of a clip's frames that are black, or nearly: fades, gaps between programmes, lens caps.

A frame is black by the rule of ffmpeg's `blackdetect`: at least `area` of its pixels are darker than `level`; here of a
small picture, whose pixels are means of the frame's, which spares noise.
"""

from __future__ import annotations

import functools

import numpy as np

from hpc.curate.filters import Open, displacement
from hpc.curate.look import Look
from hpc.curate.settings.filters import Black
from hpc.data.video import Video


def start(settings: Black) -> Open:
    return functools.partial(Darkness, settings)


class Darkness:
    every = 0.5  # seconds

    def __init__(self, settings: Black, info: Video) -> None:
        self.level, self.area = settings.level * 255, settings.area
        self.size = displacement.size(info)
        self.black: list[bool] = []

    def take(self, look: Look, seconds: float) -> None:
        self.black.append(bool(np.mean(look.luma(*self.size) <= self.level) >= self.area))

    def scores(self) -> dict[str, float]:
        return {"black_share": float(np.mean(self.black))} if self.black else {}
