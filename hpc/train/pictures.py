"""Pictures of what a training makes, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

GAP = 8  # pixels


def strip(*videos_CTHW: Tensor, frames: int = 3) -> Tensor:
    """Frames of videos of one clip, from -1 to 1, from the first to the last, side by side: those of the first video
    above, those of the next below, and so on. Returns uint8 [height, width, 3]."""
    rows = []
    for video in videos_CTHW:
        places = torch.linspace(0, video.shape[1] - 1, frames).round().long()
        pictures = ((video[:, places].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        rows.append(pictures.permute(2, 1, 3, 0).flatten(1, 2))  # [height, frames x width, 3]
    return torch.cat(rows).cpu()


def write(strips: Sequence[Tensor], path: Path) -> None:
    """Below each other, as a .webp or .png, put in place at once."""
    width = max(one.shape[1] for one in strips)
    height = sum(one.shape[0] + GAP for one in strips) - GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for one in strips:
        sheet[top : top + one.shape[0], : one.shape[1]] = one.numpy()
        top += one.shape[0] + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    PIL.Image.fromarray(sheet).save(beside, format=path.suffix[1:].upper(), quality=92)
    beside.replace(path)
