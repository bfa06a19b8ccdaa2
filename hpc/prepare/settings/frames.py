"""Which frames of a clip are encoded, at which size, and by which tokenizer: what tokens and latents have in common."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hpc.models.tokenizer_files import files_of, is_stage

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Files of a folder with other names are not looked at."""
Side = Annotated[int, Meta(ge=16, le=8192)]


class Kind(NamedTuple):
    discrete: bool
    temporal: int
    """Frames that a latent frame stands for, but for the first, which stands for one."""
    spatial: int


KNOWN = {
    "DV8x16x16": Kind(True, 8, 16),
    "CV8x8x8|Cosmos-1.0-Diffusion": Kind(False, 8, 8),
    "Wan-AI/Wan2.1|nvidia/Cosmos-Predict2": Kind(False, 4, 8),
}
"""Of published tokenizers what a spec can be checked by, where there is no torch."""


class Frames(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    DISCRETE: ClassVar[bool]
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (*VIDEOS, ".tar")
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 600.0

    tokenizer: str = "nvidia/Cosmos-Tokenize1-DV8x16x16-720p"
    """owner/name@revision of one on the Hugging Face hub, the path of a file or folder, `package.module:make`, a
    function of your own (hpc/models/tokenizers says what it returns), or the name of a stage train.tokenizer in
    `needs`."""
    frames: Annotated[int, Meta(ge=1)] = 33
    """Of a window. Clips with fewer are left out, and named in the table."""
    size: tuple[Side, Side] = (640, 1024)
    """Height and width that frames are brought to."""
    fps: Annotated[float, Meta(gt=0, le=240)] | None = None
    """Frames a second to take, whatever the clip has (of a slower one some are taken twice); null: each one, as they
    come."""
    windows: Literal["first", "all"] = "first"
    """first: each clip gives one window, its first frames. all: as many as fit, side by side; a rest is left out."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """A clip of another aspect ratio: cut at its edges about the middle, with black beside it, or stretched. Where the
    picture lies is in the table."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Who decodes clips. gpu: its video engines, and frames are resized on it; what they cannot take (odd, interlaced,
    4:2:2, AV1 ...) the CPU decodes, counted as decoded_by_cpu. Frames are the same ones, and their pictures differ by
    half a level of 255 in the mean, by who resizes them, so ids and latents do, too: it is part of what decides on the
    output. Hence there is no `auto` here, as trainers have it: a data set of which some tasks found a GPU and others
    none would be a mixture. With either word it is the same whichever machine makes it; gpu without a GPU is an
    error."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """What the tokenizer computes in."""
    batch: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Windows that are encoded at once. In bfloat16 other numbers may round differently, so this is part of what
    decides on the output."""

    def __post_init__(self) -> None:
        if self.tokenizer.startswith("."):
            raise ValueError(f"tokenizer: {self.tokenizer!r}: a path begins with / or ~, since jobs run elsewhere")
        if not files_of(self.tokenizer):
            return  # a file, a function, or a stage
        kind = next((kind for name, kind in KNOWN.items() if re.search(name, self.tokenizer)), None)
        if kind is None:
            return
        if kind.discrete != self.DISCRETE:
            words = "ids, not latents: prepare.tokens" if kind.discrete else "latents, not ids: prepare.latents"
            raise ValueError(f"tokenizer: {self.tokenizer} makes {words} takes it")
        if rest := (self.frames - 1) % kind.temporal:
            near = f"{self.frames - rest} or {self.frames - rest + kind.temporal}"
            raise ValueError(f"frames: {self.frames}: {self.tokenizer} takes one frame and a multiple of "
                             f"{kind.temporal} more: make it {near}")  # fmt: skip
        for side in self.size:
            if rest := side % kind.spatial:
                near = f"{side - rest} or {side - rest + kind.spatial}"
                raise ValueError(f"size: {side}: {self.tokenizer} takes heights and widths that {kind.spatial} "
                                 f"divides: make it {near}")  # fmt: skip

    def wired(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return {"tokenizer": (self.tokenizer, ("train.tokenizer",))} if is_stage(self.tokenizer) else {}

    def models(self) -> dict[str, tuple[str, ...]]:
        return {self.tokenizer: files} if (files := files_of(self.tokenizer)) else {}
