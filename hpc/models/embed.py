"""What turns some frames of each clip into one vector.

    embedder = open_embedder(settings)                         # hpc.curate.settings.embed.Embed
    ready = [embedder.prepare(frames) for frames in clips]     # by as many threads as you like
    vectors = embedder.embed(ready)                            # float32 [clips, embedder.dim]

`Perceptual` needs no weights; hpc.models.embed_models has the ones that do.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.models import perceptual

Vectors = npt.NDArray[np.float32]


class Embedder(abc.ABC):
    model: str
    """As it was named."""
    revision: str = ""
    """The hub's commit, where it is known."""
    dim: int
    frames: int
    """Of a clip."""
    normalised: bool = True
    """Have the vectors length 1?"""

    @abc.abstractmethod
    def times(self, frames: int) -> list[int]:
        """Which frames of a clip of so many it looks at, rising."""

    @abc.abstractmethod
    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which the frames of a clip of this size are to be brought."""

    @abc.abstractmethod
    def prepare(self, pictures: npt.NDArray[np.uint8]) -> Any:
        """Frames of one clip, uint8 [frames, height, width, 3], RGB -> what `embed` takes of it."""

    @abc.abstractmethod
    def embed(self, clips: Sequence[Any]) -> Vectors:
        """float32 [clips, dim]"""


class Perceptual(Embedder):
    model = "perceptual"
    dim = perceptual.DIMENSIONS
    frames = perceptual.FRAMES

    def times(self, frames: int) -> list[int]:
        return perceptual.times(frames)

    def size(self, width: int, height: int) -> tuple[int, int]:
        return perceptual.SIDE, perceptual.SIDE

    def prepare(self, pictures: npt.NDArray[np.uint8]) -> Vectors:
        return perceptual.describe(pictures)

    def embed(self, clips: Sequence[Vectors]) -> Vectors:
        return np.stack(clips)


def open_embedder(settings: Any) -> Embedder:
    """What the settings (hpc.curate.settings.embed.Embed) name. Raises ModuleNotFoundError without transformers,
    FileNotFoundError where a model is not to be had, RuntimeError for one that does not load."""
    if not settings.models():
        return Perceptual()
    from hpc.models import embed_models

    return embed_models.open_model(settings)
