"""Settings of curate.caption_import."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta


class CaptionImport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Captions that Cosmos-Curate wrote beside clips -> a layer of captions, as if they had been made here."""

    KIND: ClassVar[str] = "curate.caption_import"
    CODE: ClassVar[str] = "hpc.curate.caption_import"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 20.0

    folder: Annotated[str, Meta(pattern=r"^(/|s3://).+")]
    """With a JSON file for each clip, <the clip's file name without .mp4>.json: OUTPUT/metas/v0. A path from /, or
    s3://bucket/prefix. The clips stage has to take each file as one clip (stride, encoder: copy)."""
    name: Annotated[str, Meta(min_length=1)] = "qwen"
    """Of the model: captions are called <name>_caption there."""
