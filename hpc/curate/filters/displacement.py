"""How far the parts of a picture move from one frame to the next, from the pixels alone.

Lucas and Kanade's least squares (IJCAI 1981) for each block of 8x8 pixels, from coarse to fine: the whole picture
first, at 1/8 of the size, then blocks at 1/4, 1/2 and all of it, each from where the coarser one ended. A block without
structure keeps what the coarser one says. Ways of a tenth of a pixel up to a sixth of the picture are found, at 1.5 ms
of CPU a pair of frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.data.video import Video

BLOCK = 8  # pixels a side
PATCH = 32  # pixels a side: sides of the pictures are multiples of it
AREA = 160 * 96  # pixels, about
NOISE = 1.0  # levels a pixel: structure that is weaker than this tells little
FURTHEST = 1.5  # pixels by which one step may correct a block

Array = npt.NDArray[Any]


def size(video: Video, area: int = AREA) -> tuple[int, int]:
    """(width, height) of the pictures that a video is measured on: of about its shape, whatever its own size."""
    shape = video.width / video.height
    width, height = (PATCH * max(1, round((area * ratio) ** 0.5 / PATCH)) for ratio in (shape, 1 / shape))
    return width, height


def displacements(first: Array, second: Array) -> Array:
    """float32 [height / 8, width / 8, 2]: how far off each block of `first` is in `second`, right and down, in pixels.

    first, second: uint8 [height, width], of a `size`.
    """
    pictures = [(smoothed(first), smoothed(second))]
    for _ in range(3):
        pictures.append((halved(pictures[-1][0]), halved(pictures[-1][1])))
    coarse, fine = pictures[-1], pictures[-2::-1]
    ways = Blocks(coarse[0], *coarse[0].shape).follow(coarse[1], np.zeros((1, 1, 2), np.float32), 3)
    for one, other in fine:
        blocks = Blocks(one, BLOCK, BLOCK)
        factors = (blocks.rows // ways.shape[0], blocks.columns // ways.shape[1])
        ways = 2 * ways.repeat(factors[0], 0).repeat(factors[1], 1)
        ways = blocks.follow(other, blocks.or_none(other, ways), 2)
    return ways


def smoothed(picture: Array) -> Array:
    """float32: without the finest structure, whose gradients are told too small, and ways by them too long."""
    padded = np.pad(picture.astype(np.float32), 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def halved(picture: Array) -> Array:
    rows = picture[0::2] + picture[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) / 4


class Blocks:
    """A picture in blocks, to be found again in another one."""

    def __init__(self, picture: Array, height: int, width: int) -> None:
        self.height, self.width = picture.shape
        self.block = height, width
        self.rows, self.columns = self.height // height, self.width // width
        padded = np.pad(picture, 1, mode="edge")
        self.pixels = self._in_blocks(picture)
        self.right = self._in_blocks((padded[1:-1, 2:] - padded[1:-1, :-2]) / 2)
        self.down = self._in_blocks((padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2)
        y, x = np.indices(picture.shape, np.int32)
        self.y, self.x = self._in_blocks(y), self._in_blocks(x)
        self.xx, self.xy, self.yy = (
            (a * b).sum(2) for a, b in ((self.right, self.right), (self.right, self.down), (self.down, self.down))
        )
        self.noise = height * width * NOISE**2

    def _in_blocks(self, picture: Array) -> Array:
        """[rows, columns, pixels of a block]"""
        height, width = self.block
        blocks = picture.reshape(self.rows, height, self.columns, width).swapaxes(1, 2)
        return blocks.reshape(self.rows, self.columns, -1)

    def _difference(self, other: Array, ways: Array) -> Array:
        """[rows, columns, pixels of a block]: the blocks of `other` that lie `ways` off, in whole pixels, less ours."""
        x = np.clip(self.x + ways[..., :1], 0, self.width - 1)
        y = np.clip(self.y + ways[..., 1:], 0, self.height - 1)
        return other[y, x] - self.pixels

    def or_none(self, other: Array, ways: Array) -> Array:
        """`ways`, but none for a block that fits better where it was: it stands before what moves, or behind it."""
        still = np.zeros(ways.shape, np.int32)
        found, stayed = (np.abs(self._difference(other, w)).sum(2) for w in (np.rint(ways).astype(np.int32), still))
        return np.where((stayed < found)[..., None], np.float32(0), ways)

    def follow(self, other: Array, ways: Array, steps: int) -> Array:
        """Better `ways`: each step solves for the rest that whole pixels leave, and trusts `ways` where there is
        nothing to solve by."""
        xx, xy, yy = self.xx + self.noise, self.xy, self.yy + self.noise
        for _ in range(steps):
            whole = np.rint(ways)
            rest = ways - whole
            change = self._difference(other, whole.astype(np.int32))
            x = -(self.right * change).sum(2) - self.xx * rest[..., 0] - xy * rest[..., 1]
            y = -(self.down * change).sum(2) - xy * rest[..., 0] - self.yy * rest[..., 1]
            better = np.stack([yy * x - xy * y, xx * y - xy * x], 2) / (xx * yy - xy * xy)[..., None]
            ways = ways + np.clip(better, -FURTHEST, FURTHEST)
        return ways
