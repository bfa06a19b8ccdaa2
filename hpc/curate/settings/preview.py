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
