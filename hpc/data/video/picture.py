"""Frames as small pictures: arrays and WebP."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image
from av.video.reformatter import Interpolation, VideoReformatter

from hpc.data.video.container import Frame


class Resizer:
    """resize(frame) -> uint8 [height, width, 3], RGB; bicubic over the whole area of each pixel."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Frame) -> npt.NDArray[np.uint8]:
        small = self.reformatter.reformat(
            frame, self.width, self.height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        return small.to_ndarray()


class Points:
    """points(frame) -> uint8 [height, width, 3], RGB: the pixels in the middle of each area, at a fifth of the cost."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Frame) -> npt.NDArray[np.uint8]:
        small = self.reformatter.reformat(
            frame, self.width, self.height, "rgb24", interpolation=Interpolation.POINT, threads=1
        )
        return small.to_ndarray()


class Luma:
    """luma(frame) -> uint8 [height, width], each the mean of its area; 0 is black and 255 white whatever the range of
    the frame's own values."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Frame) -> npt.NDArray[np.uint8]:
        small = self.reformatter.reformat(
            frame, self.width, self.height, "gray", interpolation=Interpolation.AREA, threads=1
        )
        return small.to_ndarray()


def webp(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """image: uint8 [height, width, 3], RGB."""
    out = io.BytesIO()
    PIL.Image.fromarray(image).save(out, "webp", quality=quality)
    return out.getvalue()


def animation(pictures: Sequence[PIL.Image.Image], milliseconds: float, quality: int = 70) -> bytes:
    """An animated WebP that goes round, each picture for so long."""
    out = io.BytesIO()
    pictures[0].save(out, "webp", save_all=True, append_images=pictures[1:], duration=round(milliseconds), loop=0,
                     quality=quality, method=2)  # fmt: skip
    return out.getvalue()
