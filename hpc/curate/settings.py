"""The settings of every curation stage: light, so that the login node can check a spec without torch, av or numpy.

Each stage is one frozen struct. Its class variables tell the control plane what the stage is:
KIND     its name in a spec                   CODE    the module that does the work, imported on compute nodes only
PHASES   "map" (one array task row per plan row) and "barrier" (freezes its inputs and plans what follows), in order
OBJECTS  suffixes of what one shard publishes, in order; the last one being there means the shard is there
INPUT_SUFFIXES    of the files it takes from a folder, for stages that read the spec's inputs
VERSION  raise it when the code's output changes for the same settings: it is part of the fingerprint
NEUTRAL  settings that never change the output; not part of the fingerprint
SECONDS_PER_GIB   first guess of one worker's time per GiB of input, until records of earlier shards say better
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.units import Bytes, Seconds

VIDEO = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv",
         ".3gp", ".ogv", ".gif", ".mxf")  # fmt: skip
"""Files with other names are not looked at; a spec's `inputs.match` takes what it names, whatever the suffix."""


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to cut."""

    detector: Literal["transnetv2", "stride"] = "transnetv2"
    """transnetv2: at shot boundaries. stride: every `stride` seconds."""
    threshold: float = 0.4
    """TransNetV2: a frame whose cut probability is above this is a transition."""
    min_clip: Seconds = Seconds(2.0)
    """Shorter clips are dropped (and counted)."""
    min_frames: Annotated[int, Meta(ge=1)] = 48
    """TransNetV2: clips of fewer frames are dropped too."""
    max_clip: Seconds = Seconds(60.0)
    """Longer shots are cut into pieces of this length."""
    long_shots: Literal["stride", "truncate"] = "stride"
    """stride: keep every piece of a long shot. truncate: keep its first piece only."""
    crop: Seconds = Seconds(0.5)
    """TransNetV2: cut away at both ends of each shot, where transitions leave traces."""
    stride: Seconds = Seconds(10.0)
    """stride: the length of each clip."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: {self.threshold:g} is not a probability between 0 and 1; 0.4 is usual")
        longest = "stride" if self.detector == "stride" else "max_clip"
        if getattr(self, longest) <= 0:
            raise ValueError(f"{longest}: clips of no length; give a length, e.g. 10s")
        if self.min_clip > getattr(self, longest):
            raise ValueError(
                f"min_clip: every clip would be dropped: {self.min_clip:g} s at least, and {longest} says "
                f"{getattr(self, longest):g} s at most"
            )


class Encode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How clips are written."""

    encoder: Literal["libx264"] = "libx264"
    crf: Annotated[float, Meta(ge=1, le=51)] = 18.0  # 0 is lossless: a profile that few can play
    """Constant quality: lower is better and larger; 18 is visually lossless for most film."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "veryfast"
    )
    """x264's speed: a slower one makes smaller files."""
    threads: Annotated[int, Meta(ge=1, le=64)] = 2
    """Encoder threads. Part of the fingerprint: x264's bytes depend on it."""


class Thumbnail(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    height: Annotated[int, Meta(ge=16, le=2160)] = 180
    """Pixels; the width keeps the aspect ratio."""
    quality: Annotated[int, Meta(ge=0, le=100)] = 75
    """WebP quality, 0 to 100."""


class Clips(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Videos -> clips: probe, find the cuts, encode each clip, thumbnails; one decode of each input."""

    KIND: ClassVar[str] = "curate.clips"
    CODE: ClassVar[str] = "hpc.curate.clips"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar", ".parquet")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (*VIDEO, ".tar")
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 3000.0

    split: Split = Split()
    encode: Encode = Encode()
    thumbnail: Thumbnail = Thumbnail()


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> a data set for training: tars of equal size, in a fixed order, that webdataset reads."""

    KIND: ClassVar[str] = "curate.shard"
    CODE: ClassVar[str] = "hpc.curate.shard"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 20.0

    layout: Literal["webdataset"] = "webdataset"
    tar: Bytes = Bytes(512 * 1024**2)
    """A tar is closed when the next clip would make it larger than this."""
    max_clips: int = 10_000
    """...or when it holds this many clips."""
    shuffle: bool = True
    """Order the clips by a hash of their ids, so that each tar is a fair sample; false: in the inputs' order."""
