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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FAMILIES = {"qwen2_vl": False, "qwen2_5_vl": False, "qwen3_vl": True, "qwen3_vl_moe": True, "qwen3_5": True,
            "qwen3_5_moe": True}  # fmt: skip
"""model_type of a config -> are the times of frames written between them? (Qwen2.5-VL has them in positions.)"""
LEAST, MOST, TOTAL = 128, 768, 24576
"""Tokens of a pair of frames, at least and at most, and of all of a request's frames twice."""
MAX_RATIO = 200


TOGETHER = "hpc_flash_chunks"
"""Of `together`, among transformers' kinds of attention. Kinds with "flash" in their names get all chunks at once."""


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


def together(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float,
    cu_seq_lens_q: Tensor, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention within chunks, as Qwen's vision towers have it: pairs of frames, or windows of 8x8 patches in them. All
    chunks of a length at once; transformers' own way without flash-attn is a call for each, hundreds a layer.

    query, key, value: [1, heads, S, size]. cu_seq_lens_q: int [chunks + 1], where chunks begin, and S. Returns
    [1, S, heads, size].
    """
    begins = cu_seq_lens_q.to(torch.int64)
    lengths = begins[1:] - begins[:-1]
    out = torch.empty_like(query[0])
    for length in lengths.unique().tolist():
        where = begins[:-1][lengths == length][:, None] + torch.arange(length, device=begins.device)
        q, k, v = (part[0][:, where.view(-1)].unflatten(1, where.shape).transpose(0, 1) for part in (query, key, value))
        found = F.scaled_dot_product_attention(q, k, v, scale=scaling)  # [chunks, heads, length, size]
        out.index_copy_(1, where.view(-1), found.transpose(0, 1).flatten(1, 2))
    return out.transpose(0, 1)[None], None


def use_together(model: Any, use: bool = True) -> None:
    """Let a model's vision tower attend to all chunks at once, or as transformers does by itself."""
    import transformers

    transformers.AttentionInterface.register(TOGETHER, together)
    # Not by set_attn_implementation, which would look for a package that has this kind.
    model.model.visual.config._attn_implementation = TOGETHER if use else "sdpa"
