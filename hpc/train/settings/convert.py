"""A training's checkpoint -> files in the published forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

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
    forms: Annotated[
        tuple[Literal["model.pt", "model.safetensors", "nemo", "adapters.safetensors"], ...], Meta(min_length=1)
    ] = ("model.pt",)
    """nemo: weights/, and context/ where training began with such a folder: hpc/models/ar/nemo.py says what else to do.
    adapters.safetensors: of a training with `lora`, the adapters alone; in the other forms they are added to the
    weights."""

    def unmet(self, kinds: Sequence[str]) -> str:
        if list(kinds) == ["train.ar"]:
            return ""
        return f"convert.ar converts what one stage train.ar has trained; it needs {', '.join(kinds) or 'nothing'}"

    def clash(self, needed: Mapping[str, Any]) -> str:
        """What in the settings of stages in `needs` does not go with these; "" for nothing."""
        for name, other in needed.items():
            if "adapters.safetensors" in self.forms and other.KIND == "train.ar" and other.lora is None:
                return f"forms: {name} trains all weights, and no adapters: give it `lora`, or leave that form out"
        return ""


class ConvertDiffusion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint of train.diffusion, by any number of ranks -> all files that it leaves in the end: of Predict2
    model.pt, model_ema_fp32.pt and model_ema_bf16.pt, of Predict1 iter_..._{reg,ema}_model.pt, and safetensors. `hpc
    convert` does the same for files at hand, and while training goes on."""

    KIND: ClassVar[str] = "convert.diffusion"
    CODE: ClassVar[str] = "hpc.train.convert_diffusion"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".json",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 2
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    step: Annotated[int, Meta(ge=1)] | None = None
    """Of the checkpoint, one that `checkpoints: {keep_every: ...}` has kept, say; null: the last one."""

    def unmet(self, kinds: Sequence[str]) -> str:
        if list(kinds) == ["train.diffusion"]:
            return ""
        needs = ", ".join(kinds) or "nothing"
        return f"convert.diffusion converts what one stage train.diffusion has trained; it needs {needs}"
