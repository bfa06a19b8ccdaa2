"""Small pictures beside each clip."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Thumbnail(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    height: Annotated[int, Meta(ge=16, le=2160)] = 180
    """Pixels; the width keeps the aspect ratio."""
    quality: Annotated[int, Meta(ge=0, le=100)] = 75
    """WebP quality, 0 to 100."""


class Preview(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An animated WebP of each caption window of a clip. The defaults are Cosmos-Curate's."""

    window: Annotated[int, Meta(ge=8, le=4096)] = 256
    """Frames. A rest of at least half of it is a window of its own, a shorter one belongs to the window before."""
    fps: Annotated[float, Meta(gt=0, le=60)] = 1.0
    """Pictures per second, taken and shown."""
    height: Annotated[int, Meta(ge=16, le=2160)] = 240
    """Pixels; the width keeps the aspect ratio."""
    quality: Annotated[int, Meta(ge=0, le=100)] = 50
    """WebP quality, 0 to 100."""
