"""The settings of captions."""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar

from msgspec import Meta

from hpc.data import vlm
from hpc.data.vlm import Vlm, Words

PROMPTS = ("default", "av", "av-surveillance")
"""By name: a video of anything, from a car, from above a street. Their words are in hpc/curate/prompts.py."""
ENHANCE_PROMPTS = ("default", "av-surveillance")


def named(field: str, words: str, names: tuple[str, ...]) -> None:
    """One word is a prompt's name. Raises ValueError for an unknown one."""
    if words not in names and len(words.split()) < 2:
        close = difflib.get_close_matches(words, names, 1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise ValueError(f"{field}: {words!r} is no prompt{hint} Give one of {', '.join(names)}, or a prompt's words")


class Enhance(Vlm, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A language model that writes each caption out, from its words alone. The defaults are Cosmos-Curate's."""

    model: str = "Qwen/Qwen2.5-14B-Instruct@cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8"
    """As for captions; in the worker any language model that transformers has. It is on the GPU beside the other."""
    prompt: Words = "default"
    """default, av-surveillance, or the words themselves: what is to become of a caption. It is the system message."""
    max_tokens: Annotated[int, Meta(ge=1)] = 2048
    batch: Annotated[int, Meta(ge=1, le=512)] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        named("prompt", self.prompt, ENHANCE_PROMPTS)


class Caption(Vlm, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> a layer of captions, one for each window of a clip."""

    KIND: ClassVar[str] = "curate.caption"
    CODE: ClassVar[str] = "hpc.curate.caption"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = (*vlm.NEUTRAL, *(f"enhance.{key}" for key in vlm.NEUTRAL))
    SECONDS_PER_GIB: ClassVar[float] = 3000.0

    text: Annotated[str, Meta(min_length=1)] | None = None
    """One caption for every window, and no model at all."""
    prompt: Words = "default"
    """default, av, av-surveillance, or the words themselves."""
    system: Words = ""
    """The system message; "": the model's own."""
    second: Words | None = None
    """A second question about the same frames, after which the first caption is quoted: default, or the words
    themselves, in which {caption} may stand. Its answer is the caption."""
    enhance: Enhance | None = None
    """A language model that writes captions out, into a column of their own."""
    window: Annotated[int, Meta(ge=8, le=4096)] = 256
    """Frames. A rest of at least half of it is a window of its own, a shorter one belongs to the window before."""
    fps: Annotated[float, Meta(gt=0, le=60)] = 2.0
    """Frames a second that the model sees; never fewer than 4 of a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named("prompt", self.prompt, PROMPTS)
        if self.second is not None:
            named("second", self.second, ("default",))

    def models(self) -> dict[str, tuple[str, ...]]:
        own = {} if self.text is not None else super().models()
        return own | (self.enhance.models() if self.enhance is not None else {})
