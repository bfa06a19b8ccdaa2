"""Which clips are kept: one block for each filter. A filter scores every clip; `mode` says what becomes of its verdict.

    filter:
      resolution: {min_width: 640, min_height: 360}     # named: enabled, with the defaults of what is not given
      black: {mode: score-only}                         # scores in the tables and the report; drops nothing

A filter's class variables tell the stage and the report what it is:
CODE    the module that measures: `start(settings)`, once per worker, returns `open(info) -> Meter`, once per clip
SCORES  the columns that it writes, for the tables, the report's histograms and `hpc calibrate`
"""

from __future__ import annotations

import re
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
    """Of the clip's half seconds. Ours: no shot of Big Buck Bunny has more than 0.03."""
    noise: Annotated[float, Meta(ge=0, le=1)] = 0.012
    """The picture stands while no part of it (some 1/20 of the width) changes by more within half a second, in the
    mean, from 0 (not at all) to 1 (black to white). Ours: frozen frames under heavy noise, or encoded at crf 33, change
    by 0.007; of the half seconds within the shots of Big Buck Bunny 0.7 % change by less than 0.012. (ffmpeg's
    freezedetect has 0.001, of the mean over the whole picture.)"""

    def limits(self) -> dict[str, tuple[float, float]]:
        return {"static_share": (0.0, self.max_share)}


class Blur(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How sharp the clip is, whatever its size and contrast."""

    CODE: ClassVar[str] = "hpc.curate.filters.blur"
    SCORES: ClassVar[dict[str, Score]] = {"blur_sharpness": Score("energy of the finest by that of all edges", 0, 3)}

    min_sharpness: Annotated[float, Meta(ge=0)] = 0.3
    """Ours: no shot of Big Buck Bunny has less than 1.0. Its trailer has 2.6 in the median, 1.1 if blurred with a sigma
    of 1/360 of the height, 0.4 with 1/180, 0.2 with 1/120; the blocks of a coarse codec count as sharp and add up to
    0.1. Film of other kinds, and noise, can differ much: look at the histogram (`mode: score-only`) before you drop by
    it. Blur finer than some 1/400 of the height is not seen."""

    def limits(self) -> dict[str, tuple[float, float]]:
        return {"blur_sharpness": (self.min_sharpness, INFINITY)}


class Motion(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much moves: the way per frame by width + height, in the mean over the picture (global) and where least moves
    (patch). By two measures, each with columns and limits of its own."""

    CODE: ClassVar[str] = "hpc.curate.filters.motion"
    SCORES: ClassVar[dict[str, Score]] = {
        "motion_vectors_global": Score("mean motion vector by width + height", 1e-5, 0.1, log=True),
        "motion_vectors_patch": Score("motion vector by width + height where least moves", 1e-7, 0.1, log=True),
        "motion_pixels_global": Score("mean way per frame by width + height", 1e-5, 0.1, log=True),
        "motion_pixels_patch": Score("mean way per frame by width + height where least moves", 1e-7, 0.1, log=True),
    }

    by: Literal["auto", "vectors", "pixels"] = "auto"
    """vectors: the motion vectors of the source's codec, which come with decoding if it is H.264, MPEG-1, MPEG-2 or
    MPEG-4 part 2. They are those that its encoder chose, which saves bits and need not follow what moves. Decoding is
    then done by one thread, unless frames have slices: with more, vectors would differ from run to run. Clips without
    vectors get no score, and stay. pixels: between frames as they are shown, for every codec alike.
    auto: vectors where a clip has them, else pixels; the other kind's columns are null, and its limits don't count."""
    min_vectors_global: Annotated[float, Meta(ge=0)] = 0.00098
    """Published (Cosmos-Curate), but for the vectors of clips that it has encoded itself. Those of the source have 0.5
    to 1.1 times as much on the trailer of Big Buck Bunny, against clips by x264 veryfast at crf 18. The published
    limits are strict: they drop 73 % of the shots of Big Buck Bunny."""
    min_vectors_patch: Annotated[float, Meta(ge=0)] = 1e-6
    """Published, as above: there is a place where no block moves at any time."""
    min_pixels_global: Annotated[float, Meta(ge=0)] = 0.0014
    """Ours, of one film: with these two as many of 49 shots of Big Buck Bunny are dropped as by vectors and the
    published limits, and 96 % are judged alike. The scores are not the same: pixels have 1.5 times the vectors' in the
    median, 0.7 to 4.2 times in 80 % of the shots; their ranks correlate with 0.77 (Spearman)."""
    min_pixels_patch: Annotated[float, Meta(ge=0)] = 0.00012
    """Ours, as above (1.2 times in the median, ranks 0.72)."""

    def limits(self) -> dict[str, tuple[float, float]]:
        return {
            "motion_vectors_global": (self.min_vectors_global, INFINITY),
            "motion_vectors_patch": (self.min_vectors_patch, INFINITY),
            "motion_pixels_global": (self.min_pixels_global, INFINITY),
            "motion_pixels_patch": (self.min_pixels_patch, INFINITY),
        }


class Text(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Text laid over the picture: titles, subtitles, logos, watermarks. Needs hpc[curate-models]."""

    CODE: ClassVar[str] = "hpc.curate.filters.text"
    SCORES: ClassVar[dict[str, Score]] = {
        "text_area": Score("share of the picture under text that stays", 1e-4, 1, log=True),
        "text_seconds": Score("seconds for which one text stays", 0, 60),
        "text_cover": Score("share of the picture under any text", 1e-4, 1, log=True),
    }

    max_area: Annotated[float, Meta(ge=0, le=1)] = 0.002
    """Share of the picture under boxes of text that stay in their place for about a second, when it is largest. A
    small logo in a corner has 0.006, a line of subtitles 0.02 to 0.04. Set on one film: see what `hpc calibrate`
    proposes."""
    max_cover: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the picture under boxes of any text, that of the scene too, in the mean; 1 keeps all. Rolling credits,
    which never stay, have 0.05 and more. Data-Juicer's video_ocr_area_ratio_filter has 1.0."""

    def limits(self) -> dict[str, tuple[float, float]]:
        return {"text_area": (0.0, self.max_area), "text_cover": (0.0, self.max_cover)}


MODEL = re.compile(r"[/~].*|[\w.-]+/[\w.-]+@[\w./-]+")


class Aesthetic(Filter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much people would like the pictures: CLIP ViT-L/14 and a head trained on ratings. Needs hpc[curate-models].

    Models are files or folders (/models/clip, ~/clip), or come from the Hugging Face hub or its cache, as
    owner/name@revision. To fetch them ahead, for compute nodes without a network: hpc models pull SPEC
    """

    CODE: ClassVar[str] = "hpc.curate.filters.aesthetic"
    SCORES: ClassVar[dict[str, Score]] = {"aesthetic_score": Score("rating, 1 to 10", 1, 10)}

    min: float | None = None
    """Clips with a lower score are dropped; none: only measured, since what is good depends on the data. On the scale
    of the default head Cosmos-Curate's examples have 3.5, and 5.5 is fair, 6.5 high (Open-Sora). Data-Juicer's scores
    are a tenth of these."""
    reduce: Literal["min", "mean"] = "min"
    """A clip's score from those of its frames. Cosmos-Curate has min."""
    every: Seconds = Seconds(1.0)
    """Time between the frames that are scored, the clip's first among them. Cosmos-Curate has 1 s."""
    clip: str = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
    """A CLIP model as transformers saves it."""
    head: str = "ttj/sac-logos-ava1-l14-linearMSE@1e77fa05081323d99725fc40a9bf9f88180490e7"
    """What rates CLIP's embedding: a .pth or .safetensors file, or a model with a model.safetensors. All published
    heads for ViT-L/14 can be read: the three of improved-aesthetic-predictor (sac+logos+ava1-l14-linearMSE.pth is the
    default), sa_0_4_vit_l_14_linear.pth of LAION's aesthetic-predictor, and the models of simple-aesthetics-predictor,
    of which the head alone is taken."""

    def __post_init__(self) -> None:
        if self.every <= 0:
            raise ValueError("every: give the time between two frames, e.g. 1s")
        for name in ("clip", "head"):
            if not MODEL.fullmatch(given := getattr(self, name)):
                raise ValueError(
                    f"{name}: {given!r} is neither a path that begins with / or ~ nor a model of the Hugging Face hub "
                    "as owner/name@revision; the revision keeps scores comparable"
                )

    def limits(self) -> dict[str, tuple[float, float]]:
        return {} if self.min is None else {"aesthetic_score": (self.min, INFINITY)}

    def models(self) -> dict[str, tuple[str, ...]]:
        clip = ("config.json", "preprocessor_config.json", "model.safetensors")
        return {self.clip: clip, self.head: ("model.safetensors",)}


class Filters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """In the order in which a dropped clip's verdict names the first that dropped it."""

    resolution: Resolution | None = None
    duration: Duration | None = None
    black: Black | None = None
    static: Static | None = None
    blur: Blur | None = None
    motion: Motion | None = None
    text: Text | None = None
    aesthetic: Aesthetic | None = None

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
    "text": Text,
    "aesthetic": Aesthetic,
}
SCORES = {column: score for kind in FILTERS.values() for column, score in kind.SCORES.items()}
"""Of all filters: a table has all of these columns, whatever the spec enables."""
