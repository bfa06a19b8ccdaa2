"""Settings of prepare.latents."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from hpc.prepare.settings.frames import Frames, Side


class Latents(Frames, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> latents of a continuous video tokenizer, as tars that trainers of diffusion models read."""

    DISCRETE: ClassVar[bool] = False
    KIND: ClassVar[str] = "prepare.latents"
    CODE: ClassVar[str] = "hpc.prepare.latents"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar", ".parquet")
    VERSION: ClassVar[int] = 1

    tokenizer: str = "nvidia/Cosmos-Predict2.5-2B"
    """owner/name@revision of one on the Hugging Face hub (the default has the VAE of Wan2.1), the path of a file or
    folder, or `package.module:make`, a function of your own; hpc/models/tokenizers says what it returns."""
    frames: Annotated[int, Meta(ge=1)] = 93
    """Of a window. Clips with fewer are left out, and named in the table."""
    size: tuple[Side, Side] = (704, 1280)
    """Height and width that frames are brought to."""
    windows: Literal["first", "all"] = "all"
    """first: each clip gives one window, its first frames. all: as many as fit, side by side; a rest is left out."""
