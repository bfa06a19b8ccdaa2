"""Clips -> data sets for training, in the layouts that their readers expect; hpc/curate/layouts says what they are."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.units import Bytes
from hpc.data.work import Part

LAYOUTS = ("webdataset", "cosmos", "cosmos-frames", "predict2.5-webdataset", "sessions", "cosmos-curate", "predict2",
           "predict2.5", "predict2-multiview")  # fmt: skip
Layout = Literal["webdataset", "cosmos", "cosmos-frames", "predict2.5-webdataset", "sessions", "cosmos-curate",
                 "predict2", "predict2.5", "predict2-multiview"]  # fmt: skip
DURATIONS = ("5_10", "10_30", "30_inf")
"""Seconds, both ends inclusive; the first that fits. cosmos_curate 29f1358: core/utils/dataset/dimensions.py."""


def duration_bin(name: str) -> tuple[float, float]:
    """ "2_5" -> (2.0, 5.0). Raises ValueError."""
    match = re.fullmatch(r"(\d+)_(\d+|inf)", name)
    if not match or not float(match[1]) < float(match[2]):
        raise ValueError(f"{name!r} is no range of seconds: write e.g. 2_5, or 60_inf")
    return float(match[1]), float(match[2])


class ShardMembers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the layout wants to have beside each clip's video, made once and packed: part of curate.shard."""

    KIND: ClassVar[str] = "curate.shard-members"
    CODE: ClassVar[str] = "hpc.curate.shard_members"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar", ".parquet")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 3
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 5.0

    layout: Layout = "cosmos"
    caption_name: str = "qwen"
    field: Literal["best", "caption", "enhanced"] = "best"
    durations: tuple[str, ...] = DURATIONS
    min_frames: int = 94
    fps: tuple[float, float] = (10.0, 60.0)


class ShardTree(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A data set as a tree of tars or files with the names that its reader expects: part of curate.shard."""

    KIND: ClassVar[str] = "curate.shard-tree"
    CODE: ClassVar[str] = "hpc.curate.shard_tree"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 20.0

    layout: Layout = "cosmos"
    version: str = "v0"
    tar: Bytes = Bytes(500 * 1024**2)
    max_clips: int = 10_000
    shuffle: bool = True
    embeddings: str = "iv2_embd"


class ShardIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a reader of a tree looks at first, and what was left out of it: part of curate.shard."""

    KIND: ClassVar[str] = "curate.shard-index"
    CODE: ClassVar[str] = "hpc.curate.shard_index"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 2
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    layout: Layout = "cosmos"
    version: str = "v0"
    embeddings: str = "iv2_embd"


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips, and what layers say of them -> a data set for training, in the layout that its reader expects."""

    KIND: ClassVar[str] = "curate.shard"
    CODE: ClassVar[str] = "hpc.curate.shard"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 2
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 20.0

    layout: Layout = "webdataset"
    """webdataset: plain tars of clips. cosmos: Cosmos-Curate's tree of today, cosmos-frames: that of its documents.
    predict2.5-webdataset: that tree, as Cosmos-Predict2.5 reads it. sessions: a tar for each clip of several cameras.
    As folders of files: cosmos-curate (what its split writes), predict2 and predict2.5 (for post-training),
    predict2-multiview (the same with a folder for each camera of a session)."""
    join: bool = False
    """Of layout webdataset: write the captions and text embeddings that the stage needs into each clip's .json and
    .pickle. All other layouts do so anyway."""
    tar: Bytes = Bytes(500 * 1024**2)
    """A tar is closed when the next clip would make it larger than this; where videos have tars of their own, the
    videos count."""
    max_clips: Annotated[int, Meta(ge=1)] = 10_000
    """...or when it holds this many clips."""
    shuffle: bool = True
    """Order the clips by a hash of their ids, so that each tar is a fair sample; false: in the inputs' order."""
    further_durations: tuple[str, ...] = ()
    """Bins of seconds beside 5_10, 10_30 and 30_inf, which are tried first, e.g. [2_5]. Clips that fit none are left
    out and named."""
    min_frames: Annotated[int, Meta(ge=1)] = 94
    """Of the predict2 layouts and predict2.5: windows with fewer frames are left out. Their loaders need one frame more
    than they train on (93); the one of predict2-multiview needs as many (29 in its recipe)."""
    caption_name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_]*$")] = "qwen"
    """Of the cosmos layouts: captions are called <this>_caption."""
    field: Literal["best", "caption", "enhanced"] = "best"
    """Which caption a window is learned with, as of curate.text_embed: the enhanced one where there is one (best), the
    first one, or only enhanced ones. Windows without are left out."""
    embeddings: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_]*$")] = "iv2_embd"
    """Of cosmos-curate: the folder of clip embeddings, e.g. ce1_embd_224p for Cosmos-Embed1 at 224p. Files are as that
    model's are: float16 for ce1_..., else float32; [1, dim]."""

    def __post_init__(self) -> None:
        for name in self.further_durations:
            duration_bin(name)

    def parts(self) -> dict[str, Part]:
        if self.layout == "webdataset" and not self.join:
            return {"": Part(self, ("",), False)}
        durations = self.further_durations + DURATIONS
        members = ShardMembers(layout=self.layout, caption_name=self.caption_name, field=self.field,
                               durations=durations,
                               min_frames=self.min_frames)  # fmt: skip
        if self.layout == "webdataset":
            return {"members": Part(members, ("",), False), "": Part(self, ("", "members"), False)}
        tree = ShardTree(layout=self.layout, tar=self.tar, max_clips=self.max_clips, shuffle=self.shuffle,
                         embeddings=self.embeddings)  # fmt: skip
        index = ShardIndex(layout=self.layout, embeddings=self.embeddings)
        return {
            "members": Part(members, ("",), False),
            "": Part(tree, ("", "members"), False),
            "index": Part(index, ("", "members", "."), False),
        }
