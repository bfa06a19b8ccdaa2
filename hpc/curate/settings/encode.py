"""How clips are written."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Encode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How clips are written."""

    encoder: Literal["libx264"] = "libx264"
    crf: Annotated[float, Meta(ge=1, le=51)] = 18.0  # 0 is lossless: a profile that few can play
    """Constant quality: lower is better and larger; 18 is visually lossless for most film."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "veryfast"
    )
    """x264's speed: a slower one makes smaller files."""
    threads: Annotated[int, Meta(ge=1, le=64)] = 2
    """Encoder threads. Part of the fingerprint: x264's bytes depend on it."""
