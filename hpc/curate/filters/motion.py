"""How much moves: by the motion vectors of the source's codec, or by the pictures where it has none.

Both are ways in pixels from one frame to another, by width + height, so that they don't depend on the size; `global` is
the mean over the picture, `patch` that of the part of it that moves least. Both look at two moments a second.

The vectors' score is that of Cosmos-Curate (filtering/motion/motion_vector_backend.py at 29f1358): vectors as the codec
has them, whether they lead one frame back or several; nothing moves in blocks without one; of the moments, the first
half counts, and not fewer than 10; `patch` looks at the middles of patches of 256 pixels. Otherwise than there, the
vectors are those of the source and not of the encoded clip; a frame without vectors gives way to the next one that has
some; and where a side of the picture is shorter than 256 pixels, so is the patch's, instead of an error.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.curate.filters import EVERY_FRAME, Open, displacement
from hpc.curate.look import Look
from hpc.curate.settings.filters import Motion
from hpc.data import video

EVERY = 0.5  # seconds
LEAST = 10  # moments that count, if there are as many
CELL = 8  # pixels a side: blocks are one or two cells wide and high
SIZES = ((8, 8), (16, 16), (16, 8), (8, 16))  # width, height; a later one stands over an earlier one
PATCH = 256  # pixels a side

Array = npt.NDArray[Any]


def start(settings: Motion) -> Open:
    return functools.partial(Moving, settings.by)


class Moving:
    def __init__(self, by: str, info: video.Video) -> None:
        self.by_vectors, self.by_pictures = by != "pixels", by != "vectors"
        self.every = EVERY
        self.info, self.size = info, displacement.size(info)
        self.vectors: list[tuple[float, float | Array]] = []
        self.pictures: list[tuple[float, float | Array]] = []
        self.first: Array | None = None

    def take(self, look: Look, seconds: float) -> None:
        found = video.motion_vectors(look.frame) if self.by_vectors and seconds > 0 else None  # 0: they lead out of it
        if found is not None:
            self.vectors.append(by_vectors(found, self.info))
            self.first, self.every = None, EVERY
        elif self.first is not None:
            self.pictures.append(by_pictures(self.first, look.luma(*self.size), self.info))
            self.first, self.every = None, EVERY
        elif self.by_pictures and not self.vectors:
            self.first, self.every = look.luma(*self.size), EVERY_FRAME
        else:
            self.every = EVERY_FRAME

    def scores(self) -> dict[str, float]:
        if self.vectors:
            return named("vectors", self.vectors[: max(LEAST, len(self.vectors) // 2)])
        return named("pixels", self.pictures) if self.pictures else {}


def named(kind: str, moments: list[tuple[float, float | Array]]) -> dict[str, float]:
    """moments: (mean, of each patch or the middle of it) at each."""
    everywhere, patches = zip(*moments, strict=True)
    return {
        f"motion_{kind}_global": float(np.mean(everywhere)),
        f"motion_{kind}_patch": float(np.mean(patches, 0).min()),
    }


def by_vectors(vectors: Array, info: video.Video) -> tuple[float, Array]:
    """(mean, at the middle of each patch) of the motion that a frame's vectors tell, by width + height."""
    width, height = (info.height, info.width) if info.rotation in (90, 270) else (info.width, info.height)  # as coded
    cells = np.zeros((height // CELL + 2, width // CELL + 2))  # up to 16 pixels more than there are to see
    left = (vectors["dst_x"] - vectors["w"] // 2) // CELL
    top = (vectors["dst_y"] - vectors["h"] // 2) // CELL
    inside = (left >= 0) & (top >= 0) & (left < cells.shape[1] - 1) & (top < cells.shape[0] - 1)
    way = np.hypot(vectors["motion_x"], vectors["motion_y"]) / (vectors["motion_scale"] * (width + height))
    for w, h in SIZES:
        these = inside & (vectors["w"] == w) & (vectors["h"] == h)
        for x in range(w // CELL):
            for y in range(h // CELL):
                cells[top[these] + y, left[these] + x] = way[these]
    rows, columns = (
        np.clip(a - CELL * np.arange(n), 0, CELL) for a, n in ((height, len(cells)), (width, len(cells.T)))
    )
    side = min(PATCH, width, height)
    middles = [(np.arange(max(1, round(a / side))) + 0.5) * side for a in (height, width)]
    # The four pixels around each middle: a bilinear picture of one pixel a patch shows their mean.
    y, x = ([((at - 1) // CELL).astype(int), (at // CELL).astype(int)] for at in middles)
    return float(rows @ cells @ columns) / (width * height), sum(cells[np.ix_(j, i)] for j in y for i in x) / 4


def by_pictures(first: Array, second: Array, info: video.Video) -> tuple[float, Array]:
    """(mean, mean of each patch) of the motion between two frames, by width + height.

    first, second: uint8 [height, width], of the displacement.size of the video.
    """
    height, width = first.shape
    scale = np.array([info.width / width, info.height / height]) / (info.width + info.height)
    ways = np.hypot(*np.moveaxis(displacement.displacements(first, second) * scale, 2, 0))
    patch = displacement.PATCH // displacement.BLOCK
    patches = ways.reshape(height // displacement.PATCH, patch, width // displacement.PATCH, patch).mean((1, 3))
    return float(ways.mean()), patches
