"""How a picture of one size, and maybe another aspect ratio, is brought to another."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Fit = Literal["crop", "pad", "stretch"]
"""Cut at its edges about the middle, with black beside it, or stretched."""


def placed(width: int, height: int, to_width: int, to_height: int, fit: Fit) -> tuple[int, int, int, int]:
    """(width, height) that a picture is resized to, and (left, top) of where it then lies: negative where it is cut."""
    if fit == "stretch":
        return to_width, to_height, 0, 0
    scales = to_width / width, to_height / height
    scale = max(scales) if fit == "crop" else min(scales)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    return wide, high, (to_width - wide) // 2, (to_height - high) // 2


def inside(width: int, height: int, to_width: int, to_height: int, fit: Fit) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of where the picture is; all of it but for `pad`."""
    wide, high, left, top = placed(width, height, to_width, to_height, fit)
    return max(left, 0), max(top, 0), max(left, 0) + min(wide, to_width), max(top, 0) + min(high, to_height)


def laid(pictures: Any, to_width: int, to_height: int, left: int, top: int) -> Any:
    """uint8 [frames, to_height, to_width, 3]: pictures [frames, height, width, 3], an array or a tensor, that were
    resized as `placed` says, with their corner at (left, top), cut where they stick out, and black around them."""
    height, width = pictures.shape[1:3]
    if (height, width, left, top) == (to_height, to_width, 0, 0):
        return pictures
    shape = (len(pictures), to_height, to_width, 3)
    out = np.zeros(shape, np.uint8) if isinstance(pictures, np.ndarray) else pictures.new_zeros(shape)
    to = (slice(max(top, 0), max(top, 0) + min(height, to_height)),
          slice(max(left, 0), max(left, 0) + min(width, to_width)))  # fmt: skip
    of = (slice(max(-top, 0), max(-top, 0) + min(height, to_height)),
          slice(max(-left, 0), max(-left, 0) + min(width, to_width)))  # fmt: skip
    out[:, *to] = pictures[:, *of]
    return out
