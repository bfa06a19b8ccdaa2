"""Which vector each clip gets."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from hpc.data.vlm import MODEL

PERCEPTUAL = "perceptual"
NAMES = {
    "cosmos-embed1-224p": "nvidia/Cosmos-Embed1-224p@85f56274be7ce439175b4587fa6e3525556d4832",
    "cosmos-embed1-336p": "nvidia/Cosmos-Embed1-336p@5d8309dd5c9ec8f856b16d589693004c907c9a57",
    "cosmos-embed1-448p": "nvidia/Cosmos-Embed1-448p@9f4ff4d8d3df0968276b2191806344000d6752a9",
    "clip-vit-large": "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41",
}
"""Of Cosmos-Embed1 the revisions that cosmos_curate 29f1358 pins (all_models.json)."""


class Embed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> one vector each: what near copies, and clips of the same kind, are found by."""

    KIND: ClassVar[str] = "curate.embed"
    CODE: ClassVar[str] = "hpc.curate.embed"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 600.0

    model: str = "cosmos-embed1-224p"
    """perceptual: what the pictures look like; no weights, no GPU, and copies are told from shots of the same scene
    (hpc/models/perceptual.py). cosmos-embed1-224p (256 numbers), -336p and -448p (768): what the clip is about.
    clip-vit-large: OpenAI's CLIP. Or a folder (/models/x, ~/models/x), or owner/name@revision on the Hugging Face hub,
    of a CLIP or SigLIP, or with code of its own in the manner of Cosmos-Embed1 or InternVideo2."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model: whoever wrote it can do whatever the job can. Without it, only
    the named ones are run, at the revisions that are known."""

    def __post_init__(self) -> None:
        if self.model != PERCEPTUAL and self.model not in NAMES and not MODEL.fullmatch(self.model):
            raise ValueError(
                f"model: {self.model!r} is none of {', '.join((PERCEPTUAL, *NAMES))}, nor a path that begins with / or "
                "~, nor a model of the Hugging Face hub as owner/name@revision"
            )

    def models(self) -> dict[str, tuple[str, ...]]:
        return {} if self.model == PERCEPTUAL else {NAMES.get(self.model, self.model): ()}
