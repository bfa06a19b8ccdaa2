"""A decoded frame on its way through the operators, with the smaller pictures of it that they ask for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hpc.data import video

Sizes = dict[tuple[int, int], video.Resizer]
"""(width, height) -> how frames of one video come to that size: kept from frame to frame."""


class Look:
    """Whoever asks first makes a picture, whoever asks later gets the same one: nobody may write to it."""

    __slots__ = ("duration", "frame", "number", "pictures", "pts", "sizes")

    def __init__(self, number: int, frame: video.Frame, sizes: Sizes) -> None:
        self.number, self.pts, self.duration, self.frame = number, frame.pts, frame.duration, frame
        self.sizes = sizes
        self.pictures: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}

    def rgb(self, width: int, height: int) -> npt.NDArray[np.uint8]:
        """uint8 [height, width, 3], RGB."""
        size = (width, height)
        if size not in self.pictures:
            if size not in self.sizes:
                self.sizes[size] = video.Resizer(width, height)
            self.pictures[size] = self.sizes[size](self.frame)
        return self.pictures[size]
