"""How much people would like a clip: the ratings of frames spread over it, the lowest or the mean.

As in Cosmos-Curate (aesthetic_filter_stages.py at 29f1358): one frame a second, CLIP ViT-L/14, a head on its embedding.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hpc.curate.filters import Open
from hpc.curate.look import Look
from hpc.curate.settings.filters import Aesthetic
from hpc.data.video import Video
from hpc.models.aesthetic import load_aesthetic

BATCH = 32  # pictures that go through the model at once: bounds the memory of a clip of any length


def start(settings: Aesthetic) -> Open:
    """Raises as `load_aesthetic` does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_aesthetic(settings.clip, settings.head, device)
    return functools.partial(Ratings, settings, model, processor, device)


class Ratings:
    def __init__(self, settings: Aesthetic, model: Any, processor: Any, device: str, info: Video) -> None:
        self.every = float(settings.every)
        self.reduce = {"min": np.min, "mean": np.mean}[settings.reduce]
        self.model, self.processor, self.device = model, processor, device
        short = processor.size["shortest_edge"]
        # The size to which the processor would bring the frame: it finds nothing left to resize.
        long = int(short * max(info.width, info.height) / min(info.width, info.height))
        self.size = (short, long) if info.width < info.height else (long, short)
        self.pictures: list[npt.NDArray[np.uint8]] = []
        self.ratings: list[float] = []

    def take(self, look: Look, seconds: float) -> None:
        self.pictures.append(look.rgb(*self.size))
        if len(self.pictures) == BATCH:
            self._rate()

    @torch.inference_mode()
    def _rate(self) -> None:
        pixels = self.processor(self.pictures, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        self.ratings += self.model(pixels.to(self.device)).tolist()
        self.pictures.clear()

    def scores(self) -> dict[str, float]:
        if self.pictures:
            self._rate()
        return {"aesthetic_score": float(self.reduce(self.ratings))} if self.ratings else {}
