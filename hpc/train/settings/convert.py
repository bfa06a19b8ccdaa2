"""A training's checkpoint -> files in the published forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta


class ConvertAr(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint of train.ar, of any layout of ranks -> model.pt as published, or NeMo's weights. `hpc convert` does
    the same for files at hand."""

    KIND: ClassVar[str] = "convert.ar"
    CODE: ClassVar[str] = "hpc.train.convert_ar"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".json",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    step: Annotated[int, Meta(ge=1)] | None = None
    """Of the checkpoint; null: the last one."""
    forms: Annotated[tuple[Literal["model.pt", "model.safetensors", "nemo"], ...], Meta(min_length=1)] = ("model.pt",)
    """nemo: weights/, without context/, which classes of NeMo's own describe."""

    def unmet(self, kinds: Sequence[str]) -> str:
        if list(kinds) == ["train.ar"]:
            return ""
        return f"convert.ar converts what one stage train.ar has trained; it needs {', '.join(kinds) or 'nothing'}"
