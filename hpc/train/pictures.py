"""Pictures and videos of what a training makes, to be looked at: pictures/<step>.webp and <step>_<which>.mp4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from hpc.data import storage, video

GAP = 8  # pixels


def strip(*videos_CTHW: Tensor, frames: int = 3) -> Tensor:
    """Frames of videos of one clip, from -1 to 1, from the first to the last, side by side: those of the first video
    above, those of the next below, and so on. Returns uint8 [height, width, 3]."""
    rows = []
    for one in videos_CTHW:
        places = torch.linspace(0, one.shape[1] - 1, frames).round().long()
        pictures = ((one[:, places].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
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


def play(video_CTHW: Tensor, fps: float, path: Path) -> None:
    """From -1 to 1, as an .mp4 that browsers play, put in place at once."""
    frames = ((video_CTHW.permute(1, 2, 3, 0).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    video.write(beside, np.ascontiguousarray(frames.cpu().numpy()), fps, video.Coding(crf=17))
    beside.replace(path)


def by_step(folder: Path) -> dict[int, list[Path]]:
    """The pictures and videos in a folder, in order."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("[0-9]*")):
        if path.suffix in (".webp", ".mp4"):
            found.setdefault(int(path.stem.partition("_")[0]), []).append(path)
    return found


def published(folder: Path, to: str) -> dict[str, Path]:
    """What lies in a training's folder, for a Work's tree: beside the page, which shows it."""
    found = by_step(folder / "pictures").values()
    return {storage.join(to, f"pictures/{path.name}"): path for files in found for path in files}
