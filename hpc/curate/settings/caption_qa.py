"""Settings of curate.caption_qa, and of the parts that it is made of."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.curate.settings.embed import MODEL, NAMES, PERCEPTUAL
from hpc.data.work import Part

Flag = Literal[
    "empty", "truncated", "refused", "error", "loop", "language", "repeated", "short", "long", "mismatched", "shifted"
]
Language = Literal[
    "ar", "de", "el", "en", "es", "fr", "he", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "sv", "th", "tr",
    "uk", "vi", "zh",
]  # fmt: skip


class CaptionCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be told of a caption by itself, and of those of a shard: part of curate.caption_qa."""

    KIND: ClassVar[str] = "curate.caption_qa-check"
    CODE: ClassVar[str] = "hpc.curate.caption_check"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 10.0

    field: Literal["caption", "enhanced"] = "caption"
    language: Language | None = "en"
    match: str | None = None
    trust_remote_code: bool = False
    worse_than: float = 0.5

    def models(self) -> dict[str, tuple[str, ...]]:
        return {} if self.match is None else {NAMES.get(self.match, self.match): ()}


class CaptionFind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be told of all captions of a data set: part of curate.caption_qa."""

    KIND: ClassVar[str] = "curate.caption_qa-find"
    CODE: ClassVar[str] = "hpc.curate.caption_qa"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet", ".json")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 10.0

    field: Literal["caption", "enhanced"] = "caption"
    repeated: int = 3
    length: float = 6.0
    drop: tuple[Flag, ...] = ()
    examples: int = 5


class CaptionQa(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Captions -> which of them are no good, and why: needs the stage that makes them. Drops nothing unless told."""

    KIND: ClassVar[str] = "curate.caption_qa"

    field: Literal["caption", "enhanced"] = "caption"
    """Which of the two is looked at."""
    language: Language | None = "en"
    """Captions in another one, or with a part in another script, are flagged `language`; null: not looked at."""
    repeated: Annotated[int, Meta(ge=2)] = 3
    """The same words, but for case and punctuation, for so many windows or more are flagged `repeated`."""
    length: Annotated[float, Meta(gt=0)] = 6.0
    """Captions whose length, as a logarithm, is so many deviations off the median are flagged `short` or `long`. The
    deviation is 1.48 times the median distance from the median, and 0.1 at least."""
    match: str | None = None
    """A model that embeds texts and clips alike: the one of the stage of embeddings that this one needs as well.
    clip-vit-large, cosmos-embed1-224p, -336p, -448p, a folder, or owner/name@revision. A caption that fits its clip
    worse than `worse_than` of other clips of its shard is flagged `mismatched`; one that fits the clip some places
    before or after better, as most of its shard do, `shifted`. null: not looked at."""
    worse_than: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """Share of other clips. A caption of some other clip is uniform: 0.5 finds half of those, 0.2 finds 80 % of them
    and takes more captions that would do for many clips."""
    trust_remote_code: bool = False
    """Run the Python code that comes with `match`; the named models are run without."""
    drop: tuple[Flag, ...] = ()
    """Flags that drop a clip if one of its windows has one; the others are told only."""
    examples: Annotated[int, Meta(ge=0, le=100)] = 5
    """Of each flag, in the summary and the report."""

    def __post_init__(self) -> None:
        if self.match is None:
            return
        if self.match == PERCEPTUAL or (self.match not in NAMES and not MODEL.fullmatch(self.match)):
            raise ValueError(
                f"match: {self.match!r} embeds no texts: give one of {', '.join(NAMES)}, a path that begins with / or "
                "~, or a model of the Hugging Face hub as owner/name@revision"
            )

    def parts(self) -> dict[str, Part]:
        check = CaptionCheck(field=self.field, language=self.language, match=self.match, worse_than=self.worse_than,
                             trust_remote_code=self.trust_remote_code)  # fmt: skip
        find = CaptionFind(field=self.field, repeated=self.repeated, length=self.length, drop=self.drop,
                           examples=self.examples)  # fmt: skip
        return {"check": Part(check, ("",)), "": Part(find, ("", "check"), gpus=False)}
