"""How sharp a clip is, whatever its size and contrast.

The energy of the Laplacian by that of the gradient, of a picture of a fixed size: the mean square of the spatial
frequency, weighted by the energy at the edges. Both count edges alone, so that contrast, flat areas and black bars
cancel out; 8 is the most there can be, white noise has 5, a soft picture 0.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.curate.filters import Open, displacement
from hpc.curate.look import Look
from hpc.curate.settings.filters import Blur
from hpc.data.video import Video

AREA = 480 * 270  # pixels, about: what is finer than 1/270 of the height is not looked at
ROUNDING = 1 / 12  # squared levels: the noise that whole levels bring
FLAT = 0.5  # squared levels: with a gradient of less there is nothing to be sharp


def start(settings: Blur) -> Open:
    return Sharpness


class Sharpness:
    every = 1.0  # seconds

    def __init__(self, info: Video) -> None:
        self.size = displacement.size(info, AREA)
        self.found: list[float] = []

    def take(self, look: Look, seconds: float) -> None:
        if (found := sharpness(look.luma(*self.size))) is not None:
            self.found.append(found)

    def scores(self) -> dict[str, float]:
        return {"blur_sharpness": float(np.median(self.found))} if self.found else {}


def sharpness(picture: npt.NDArray[np.uint8]) -> float | None:
    """Of a picture [height, width]; None where it shows nothing."""
    luma: npt.NDArray[Any] = picture.astype(np.float32)
    right, down = np.diff(luma, axis=1), np.diff(luma, axis=0)
    gradient = float(np.mean(right**2) + np.mean(down**2)) - 4 * ROUNDING
    laplacian = np.diff(right, axis=1)[1:-1] + np.diff(down, axis=0)[:, 1:-1]
    return max(0.0, float(np.mean(laplacian**2)) - 20 * ROUNDING) / gradient if gradient > FLAT else None
