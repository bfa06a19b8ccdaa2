"""Which clips are kept: one block for each filter. A filter scores every clip; `mode` says what becomes of its verdict.

    filter:
      resolution: {min_width: 640, min_height: 360}     # named: enabled, with the defaults of what is not given
      black: {mode: score-only}                         # scores in the tables and the report; drops nothing

A filter's class variables tell the stage and the report what it is:
CODE    the module that measures: `start(settings)`, once per worker, returns `open(info) -> Meter`, once per clip
SCORES  the columns that it writes, for the tables, the report's histograms and `hpc calibrate`
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hpc.data.units import Seconds

INFINITY = float("inf")


class Score(NamedTuple):
    """A number that a filter gives each clip; null where it could not be measured, which drops nothing."""

    words: str
    low: float
    """The histogram's axis; what lies outside is counted at its ends."""
    high: float
    log: bool = False


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    CODE: ClassVar[str]
    SCORES: ClassVar[dict[str, Score]]

    mode: Literal["enable", "score-only", "disable"] = "enable"
    """enable: drop what is outside the limits. score-only: measure, drop nothing. disable: as if it were not named."""

    def limits(self) -> dict[str, tuple[float, float]]:
        """Column -> (least, most) of what is kept, both inclusive."""
        raise NotImplementedError


class Resolution(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The source's size, upright. Known before the first frame is encoded."""

    CODE: ClassVar[str] = "hpc.curate.filters.resolution"
    SCORES: ClassVar[dict[str, Score]] = {
        "resolution_width": Score("width, pixels", 0, 4096),
        "resolution_height": Score("height, pixels", 0, 4096),
        "resolution_aspect": Score("longer side by shorter side", 1, 4),
    }

    min_width: Annotated[int, Meta(ge=0)] = 256
    min_height: Annotated[int, Meta(ge=0)] = 256
    max_aspect: Annotated[float, Meta(ge=1)] = 4.0
    """Longer side by shorter side."""

    def limits(self) -> dict[str, tuple[float, float]]:
        return {
            "resolution_width": (self.min_width, INFINITY),
            "resolution_height": (self.min_height, INFINITY),
            "resolution_aspect": (1.0, self.max_aspect),
        }


class Duration(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The clip's length. Shots and strides have limits of their own in `split`; these drop and say so."""

    CODE: ClassVar[str] = "hpc.curate.filters.duration"
    SCORES: ClassVar[dict[str, Score]] = {"duration_seconds": Score("seconds", 0, 60)}

    min: Seconds = Seconds(2.0)
    max: Seconds = Seconds(60.0)

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError(f"min: every clip would be dropped: {self.min:g} s at least, {self.max:g} s at most")

    def limits(self) -> dict[str, tuple[float, float]]:
        return {"duration_seconds": (self.min, self.max)}


class Black(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of the clip is black."""

    CODE: ClassVar[str] = "hpc.curate.filters.black"
    SCORES: ClassVar[dict[str, Score]] = {"black_share": Score("share of the frames that are black", 0, 1)}

    max_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Of the clip's frames, two a second."""
    level: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Pixels are black up to this brightness, from 0 (black) to 1 (white). ffmpeg's blackdetect has 0.1."""
    area: Annotated[float, Meta(ge=0, le=1)] = 0.98
    """A frame is black if at least this share of its pixels is. ffmpeg's blackdetect has 0.98."""

    def limits(self) -> dict[str, tuple[float, float]]:
        return {"black_share": (0.0, self.max_share)}


class Static(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of the clip is a standing picture."""

    CODE: ClassVar[str] = "hpc.curate.filters.static"
    SCORES: ClassVar[dict[str, Score]] = {"static_share": Score("share of the time in which the picture stands", 0, 1)}

    max_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    noise: Annotated[float, Meta(ge=0, le=1)] = 0.006
    """The picture stands while no part of it (some 1/20 of the width) changes by more within half a second, in the
    mean, from 0 (not at all) to 1 (black to white)."""

    def limits(self) -> dict[str, tuple[float, float]]:
        return {"static_share": (0.0, self.max_share)}


class Blur(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How sharp the clip is, whatever its size and contrast."""

    CODE: ClassVar[str] = "hpc.curate.filters.blur"
    SCORES: ClassVar[dict[str, Score]] = {"blur_sharpness": Score("energy of the finest by that of all edges", 0, 3)}

    min_sharpness: Annotated[float, Meta(ge=0)] = 0.1

    def limits(self) -> dict[str, tuple[float, float]]:
        return {"blur_sharpness": (self.min_sharpness, INFINITY)}


class Motion(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much moves. Two measures, each with columns and limits of its own."""

    CODE: ClassVar[str] = "hpc.curate.filters.motion"
    SCORES: ClassVar[dict[str, Score]] = {
        "motion_vectors_global": Score("mean motion vector by width + height", 1e-5, 0.1, log=True),
        "motion_vectors_patch": Score("motion vector by width + height where least moves", 1e-7, 0.1, log=True),
        "motion_pixels_global": Score("mean way per frame by width + height", 1e-5, 0.1, log=True),
        "motion_pixels_patch": Score("way per frame by width + height where least moves", 1e-7, 0.1, log=True),
    }

    by: Literal["auto", "vectors", "pixels"] = "auto"
    min_vectors_global: Annotated[float, Meta(ge=0)] = 0.00098
    min_vectors_patch: Annotated[float, Meta(ge=0)] = 1e-6
    min_pixels_global: Annotated[float, Meta(ge=0)] = 0.0
    min_pixels_patch: Annotated[float, Meta(ge=0)] = 0.0

    def limits(self) -> dict[str, tuple[float, float]]:
        return {
            "motion_vectors_global": (self.min_vectors_global, INFINITY),
            "motion_vectors_patch": (self.min_vectors_patch, INFINITY),
            "motion_pixels_global": (self.min_pixels_global, INFINITY),
            "motion_pixels_patch": (self.min_pixels_patch, INFINITY),
        }


class Filters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """In the order in which a dropped clip's verdict names the first that dropped it."""

    resolution: Resolution | None = None
    duration: Duration | None = None
    black: Black | None = None
    static: Static | None = None
    blur: Blur | None = None
    motion: Motion | None = None

    def named(self) -> dict[str, Any]:
        """Name -> the settings of each filter that measures."""
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: one for name, one in found.items() if one is not None and one.mode != "disable"}

    def vectors(self) -> bool:
        """Does any of them want the codec's motion vectors?"""
        motion = self.named().get("motion")
        return motion is not None and motion.by != "pixels"


FILTERS: dict[str, type[Filter]] = {
    "resolution": Resolution,
    "duration": Duration,
    "black": Black,
    "static": Static,
    "blur": Blur,
    "motion": Motion,
}
SCORES = {column: score for kind in FILTERS.values() for column, score in kind.SCORES.items()}
"""Of all filters: a table has all of these columns, whatever the spec enables."""
