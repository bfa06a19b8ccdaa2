"""The source's size, upright: small, or too wide or tall for any training bin."""

from __future__ import annotations

from hpc.curate.filters import NO_FRAMES, Open
from hpc.curate.look import Look
from hpc.curate.settings.filters import Resolution
from hpc.data.video import Video


def start(settings: Resolution) -> Open:
    return Size


class Size:
    every = NO_FRAMES

    def __init__(self, info: Video) -> None:
        self.width, self.height = info.width, info.height

    def take(self, look: Look, seconds: float) -> None:
        raise AssertionError("it looks at no frame")

    def scores(self) -> dict[str, float]:
        return {
            "resolution_width": self.width,
            "resolution_height": self.height,
            "resolution_aspect": max(self.width, self.height) / min(self.width, self.height),
        }
