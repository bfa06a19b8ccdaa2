"""How captions become embeddings of their words."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.vlm import MODEL


class TextEmbed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Captions -> a layer of text embeddings, one for each window, as models that make video from text take them."""

    KIND: ClassVar[str] = "curate.text_embed"
    CODE: ClassVar[str] = "hpc.curate.text_embed"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 60.0

    model: str = "google-t5/t5-11b@90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3"
    """T5-XXL, as Cosmos-Curate pins it; its encoder alone is kept, of 4.8 billion weights. A folder (/models/t5), or
    owner/name@revision on the Hugging Face hub, of a T5, mT5 or UMT5."""
    field: Literal["best", "caption", "enhanced"] = "best"
    """Which caption: the enhanced one where there is one (best), the first one, or only enhanced ones."""
    max_length: Annotated[int, Meta(ge=1)] = 512
    """Tokens; longer captions are cut, and counted."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; 19 GiB for T5-XXL in float32, as Cosmos-Curate has it. Embeddings are float16."""

    def __post_init__(self) -> None:
        if not MODEL.fullmatch(self.model):
            raise ValueError(
                f"model: {self.model!r} is neither a path that begins with / or ~ nor a model of the Hugging Face hub "
                "as owner/name@revision"
            )

    def models(self) -> dict[str, tuple[str, ...]]:
        return {self.model: ()}
