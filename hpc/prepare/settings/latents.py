"""Settings of prepare.latents, and of its two parts: tars of latents, and the list of all samples."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.work import Part
from hpc.prepare.settings.frames import Frames, Side


class _Continuous(Frames, frozen=True, forbid_unknown_fields=True, kw_only=True):
    DISCRETE: ClassVar[bool] = False

    tokenizer: str = "nvidia/Cosmos-Predict2.5-2B"
    """owner/name@revision of one on the Hugging Face hub (the default has the VAE of Wan2.1), the path of a file or
    folder, `package.module:make`, a function of your own (hpc/models/tokenizers says what it returns), or the name of a
    stage train.tokenizer in `needs`."""
    frames: Annotated[int, Meta(ge=1)] = 93
    """Of a window. Clips with fewer are left out, and named in the table."""
    size: tuple[Side, Side] = (704, 1280)
    """Height and width that frames are brought to."""
    windows: Literal["first", "all"] = "all"
    """first: each clip gives one window, its first frames. all: as many as fit, side by side; a rest is left out."""


class LatentsEncode(_Continuous, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Windows of clips as tars of latents: part of prepare.latents."""

    KIND: ClassVar[str] = "prepare.latents-encode"
    CODE: ClassVar[str] = "hpc.prepare.latents"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar", ".parquet")
    VERSION: ClassVar[int] = 2


class LatentsTrained(LatentsEncode, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same by a tokenizer that another stage trains: behind a barrier that waits for it."""

    KIND: ClassVar[str] = "prepare.latents-trained"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")


class LatentsList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All samples of a data set, and where they lie: part of prepare.latents."""

    KIND: ClassVar[str] = "prepare.latents-list"
    CODE: ClassVar[str] = "hpc.prepare.latents_list"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0


class Latents(_Continuous, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> latents of a continuous video tokenizer, which trainers of diffusion models read in place of videos."""

    KIND: ClassVar[str] = "prepare.latents"

    def parts(self) -> dict[str, Part]:
        kind = LatentsTrained if self.wired() else LatentsEncode
        encode = kind(**{name: getattr(self, name) for name in Frames.__struct_fields__})
        return {"encode": Part(encode, ("",)), "": Part(LatentsList(), ("", "encode"), gpus=False)}
