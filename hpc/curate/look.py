"""A decoded frame on its way through the operators, with the smaller pictures of it that they ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.data import video

Sizes = dict[tuple[type, int, int], Any]
"""(video.Resizer, Luma or Points, width, height) -> how frames of one video come to that size: kept between frames."""


class Look:
    """Whoever asks first makes a picture, whoever asks later gets the same one: nobody may write to it."""

    __slots__ = ("digest", "duration", "frame", "number", "pictures", "pts", "sizes")
    planes: Any = None
    """Of a frame in a GPU's memory: its planes there."""

    def __init__(self, number: int, frame: video.Frame, sizes: Sizes, digest: bytes = b"") -> None:
        self.number, self.pts, self.duration, self.frame = number, frame.pts, frame.duration, frame
        self.sizes, self.digest = sizes, digest
        self.pictures: dict[tuple[type, int, int], npt.NDArray[np.uint8]] = {}

    def rgb(self, width: int, height: int) -> npt.NDArray[np.uint8]:
        """uint8 [height, width, 3], RGB."""
        return self._picture(video.Resizer, width, height)

    def points(self, width: int, height: int) -> npt.NDArray[np.uint8]:
        """uint8 [height, width, 3], RGB; single pixels of the frame, not means of areas."""
        return self._picture(video.Points, width, height)

    def luma(self, width: int, height: int) -> npt.NDArray[np.uint8]:
        """uint8 [height, width], from 0, black, to 255, white; each the mean of its area."""
        return self._picture(video.Luma, width, height)

    def _picture(self, make: type, width: int, height: int) -> npt.NDArray[np.uint8]:
        kind = (make, width, height)
        if kind not in self.pictures:
            if kind not in self.sizes:
                self.sizes[kind] = make(width, height)
            self.pictures[kind] = self.sizes[kind](self.frame)
        return self.pictures[kind]
