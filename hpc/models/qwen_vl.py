"""Frames and prompts as Qwen's vision-language models take them: sizes, patches, placeholders.

transformers' own video processors need torchvision; these few lines do without, and without a copy on the way: frames
go to the GPU as bytes and become patches there. What comes out is what transformers 5.23 makes, to the bit, where it is
given frames of the right size (in models/: qwen2_vl/video_processing_qwen2_vl.py, qwen2_5_vl/processing_qwen2_5_vl.py,
qwen3_vl/processing_qwen3_vl.py). The sizes are those of cosmos_curate 29f1358: pipelines/video/utils/vision_process.py,
which has them from qwen-vl-utils.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FAMILIES = {"qwen2_vl": False, "qwen2_5_vl": False, "qwen3_vl": True, "qwen3_vl_moe": True, "qwen3_5": True,
            "qwen3_5_moe": True}  # fmt: skip
"""model_type of a config -> are the times of frames written between them? (Qwen2.5-VL has them in positions.)"""
LEAST, MOST, TOTAL = 128, 768, 24576
"""Tokens of a pair of frames, at least and at most, and of all of a request's frames twice."""
MAX_RATIO = 200


class Layout(NamedTuple):
    """How a model cuts frames, of its config and its preprocessor."""

    patch: int
    """Pixels."""
    merge: int
    """So many patches in each direction are a token."""
    temporal: int
    """So many frames are a patch."""
    mean: Sequence[float]
    """Of RGB values from 0 to 1."""
    std: Sequence[float]
    timestamps: bool


def frame_size(frames: int, height: int, width: int, factor: int, most: int = MOST) -> tuple[int, int]:
    """(height, width) in which the model looks at so many frames of this size: multiples of `factor`, a token's pixels,
    within the limits above. Raises ValueError for a picture that is too narrow."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(f"a picture of {width}x{height} is too narrow: the model takes sides of 1 to {MAX_RATIO}")
    area = factor * factor
    limit = max(min(most * area, int(TOTAL * area / frames * 2)), int(LEAST * area * 1.05))
    tall, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if tall * wide > limit:
        shrink = math.sqrt(height * width / limit)
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif tall * wide < LEAST * area:
        grow = math.sqrt(LEAST * area / (height * width))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return tall, wide


def grid_of(frames: int, height: int, width: int, layout: Layout) -> tuple[int, int, int]:
    """Patches in time, height and width. The size is one that `frame_size` gave."""
    return -(-frames // layout.temporal), height // layout.patch, width // layout.patch


def patches(frames: Tensor, layout: Layout) -> Tensor:
    """uint8 [T, H, W, 3] -> float32 [t * h * w, 3 * temporal * patch * patch]: pixel_values_videos of one video, on the
    frames' device. The last frame is repeated where T is not a multiple of `temporal`."""
    if missing := -len(frames) % layout.temporal:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    t, h, w = grid_of(*frames.shape[:3], layout)
    merge, patch = layout.merge, layout.patch
    mean, std = (torch.tensor(values, device=frames.device) * 255 for values in (layout.mean, layout.std))
    values = (frames.float() - mean) / std
    cut = values.view(t, layout.temporal, h // merge, merge, patch, w // merge, merge, patch, 3)
    # time, rows and columns of tokens, rows and columns of patches in a token; then colour, time, pixels
    return cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, -1)


def placeholder(
    frames: int, height: int, width: int, fps: float, layout: Layout, video: str, start: str, end: str
) -> str:
    """What stands in the prompt for the frames: the token `video` as often as there are tokens of their grid; with
    timestamps, for each step in time "<1.2 seconds>" and its tokens between `start` and `end`."""
    t, h, w = grid_of(frames, height, width, layout)
    tokens = video * (h * w // layout.merge**2)
    if not layout.timestamps:
        return tokens * t
    steps = [(i * layout.temporal, min((i + 1) * layout.temporal, frames) - 1) for i in range(t)]
    return "".join(f"<{(first + last) / 2 / fps:.1f} seconds>{start}{tokens}{end}" for first, last in steps)
