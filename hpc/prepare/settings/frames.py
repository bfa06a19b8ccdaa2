"""Which frames of a clip are encoded, at which size, and by which tokenizer: what tokens and latents have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.models.tokenizer_files import files_of

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Files of a folder with other names are not looked at."""
Side = Annotated[int, Meta(ge=16, le=8192)]


class Frames(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (*VIDEOS, ".tar")
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 600.0

    tokenizer: str = "nvidia/Cosmos-Tokenize1-DV8x16x16-720p"
    """owner/name@revision of one on the Hugging Face hub, the path of a file or folder, or `package.module:make`, a
    function of your own; hpc/models/tokenizers says what it returns."""
    frames: Annotated[int, Meta(ge=1)] = 33
    """Of a window. Clips with fewer are left out, and named in the table."""
    size: tuple[Side, Side] = (640, 1024)
    """Height and width that frames are brought to."""
    fps: Annotated[float, Meta(gt=0, le=240)] | None = None
    """Frames a second to take, whatever the clip has; null: each one, as they come."""
    windows: Literal["first", "all"] = "first"
    """first: each clip gives one window, its first frames. all: as many as fit, side by side; a rest is left out."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """A clip of another aspect ratio: cut at its edges about the middle, with black beside it, or stretched. Where the
    picture lies is in the table."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """What the tokenizer computes in."""
    batch: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Windows that are encoded at once. In bfloat16 other numbers may round differently, so this is part of what
    decides on the output."""

    def __post_init__(self) -> None:
        files_of(self.tokenizer)  # raises ValueError for a name that is not known

    def models(self) -> dict[str, tuple[str, ...]]:
        return {self.tokenizer: files} if (files := files_of(self.tokenizer)) else {}
