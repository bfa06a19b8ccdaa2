"""What a vision-language model is asked about clips, and what its answers are good for: semantic filter, classifier."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from hpc.data import vlm
from hpc.data.vlm import Vlm, Words

CRITERIA: dict[str, str] = {
    "slideshow": "Is it a slideshow: still pictures one after the other, animated text or pictures, slide transitions?",
    "synthetic video": "Was it made by a computer, and not filmed by a camera: a screen recording, motion graphics, a "
                       "game, animation, stop motion, or the output of a generative model?",
    "visual filter": "Was its look changed by editing: added grain or noise, odd colours or saturation, a painted or "
                     "cartoon look, simulated weather?",
    "post-production text": "Was text or graphics laid over it afterwards: subtitles, a title, a watermark, a logo, a "
                            "time stamp? Text that is part of the scene does not count.",
    "video in video": "Does it show a video within a video: an overlay, a split screen, a collage?",
    "photographic artifacts": "Is it badly filmed: much too dark or too bright, out of focus, strong lens flare?",
    "distorted view": "Is the view distorted, as by a fisheye lens?",
    "rotated view": "Is it turned on its side or upside down?",
    "low resolution": "Is it of low resolution, or blurry, for all of its time or a part of it?",
    "blurred region": "Was a part of it made unrecognisable: a blurred or pixelated face, number plate, logo or "
                      "background?",
    "abrupt camera motion": "Does the camera shake, or move or turn so fast that one cannot see what happens?",
    "fast zoom": "Does the camera zoom in or out fast?",
    "unnatural speed": "Does it play at an unnatural speed: slow motion, time lapse, skipped frames?",
}  # fmt: skip
"""The names of cosmos_curate 29f1358 (pipelines/common/filter_prompts.py); the questions are ours. Its prompt asks for
`little scene dynamics` as well, and its filter never looks at that answer."""
LABELS = (
    "movie/film_scene", "tv_drama/tv_series", "animation", "cartoon", "video_game", "news_reporting", "talk_show",
    "product_review/unboxing", "how_to/demo", "digital_illustration/digital_text", "visual_pattern",
    "egocentric_video/walking_POV", "vehicle_POV", "aerial_footage", "travel/luggage/plane", "food/drink", "cooking",
    "sports/exercise", "clothing/fashion/makeup", "exterior_building/cityscape", "interior_spaces",
    "nature_environment", "animal/insect/wildlife", "pets", "person/crowd", "talking_head", "other",
)  # fmt: skip
"""Of cosmos_curate 29f1358, as above."""
Names = Annotated[tuple[str, ...], Meta(description="a list, or {file: PATH} of a text file with one on each line")]


def listed(given: tuple[str, ...] | str) -> tuple[str, ...]:
    """A list, or the lines of a file (commas do too), each once, in order."""
    words = re.split(r"[\n,]", given) if isinstance(given, str) else given
    return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))


class Judge(Vlm, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both have: a question about each window of a clip, and a share of windows above which the clip goes."""

    mode: Literal["enable", "score-only"] = "enable"
    """score-only: ask, and write down what would be dropped; drop nothing."""
    max_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """A clip is dropped if more than this share of its windows has something against it; 0: if one has. A clip of one
    window is dropped by that one. (Cosmos-Curate's rejection threshold.)"""
    unparsable: Literal["keep", "drop"] = "keep"
    """A clip of whose windows no answer can be understood, refusals and errors among them. The report counts them.
    Cosmos-Curate drops them."""
    window: Annotated[int, Meta(ge=8, le=4096)] = 256
    """Frames. A rest of at least half of it is a window of its own, a shorter one belongs to the window before."""
    fps: Annotated[float, Meta(gt=0, le=60)] = 2.0
    """Frames a second that the model sees; never fewer than 4 of a window."""


class Semantic(Judge, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> a layer of verdicts: what a model says is wrong with them."""

    KIND: ClassVar[str] = "curate.semantic"
    CODE: ClassVar[str] = "hpc.curate.semantic"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = vlm.NEUTRAL
    SECONDS_PER_GIB: ClassVar[float] = 1500.0

    criteria: Names | Words | dict[str, str] = tuple(CRITERIA)
    """What a clip must not be: names of the list above, or words of your own ("is there WORDS in it?"); as a mapping,
    names with the questions of yes or no that are asked. Default: Cosmos-Curate's thirteen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.questions():
            raise ValueError("criteria: none; give one at least, or leave it out for the thirteen")

    def questions(self) -> dict[str, str]:
        """Name -> question."""
        if isinstance(self.criteria, dict):
            return dict(self.criteria)
        return {name: CRITERIA.get(name, f"Is there {name} in it?") for name in listed(self.criteria)}


class Classify(Judge, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> a layer of verdicts: what kinds of video they are, and which kinds are wanted."""

    KIND: ClassVar[str] = "curate.classify"
    CODE: ClassVar[str] = "hpc.curate.classify"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = vlm.NEUTRAL
    SECONDS_PER_GIB: ClassVar[float] = 1500.0

    labels: Names | Words = LABELS
    """The kinds; a clip can be of several. Default: Cosmos-Curate's 27."""
    allow: Names | Words = ()
    """If given, only clips of which one window at least is of one of these kinds stay."""
    block: Names | Words = ()
    """Clips of which too many windows (`max_share`) are of one of these kinds are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = listed(self.labels)
        if not known:
            raise ValueError("labels: none; give one at least, or leave it out for the 27")
        for field in ("allow", "block"):
            for label in listed(getattr(self, field)):
                if label not in known:
                    close = difflib.get_close_matches(label, known, 1)
                    hint = f": did you mean {close[0]}?" if close else ";"
                    raise ValueError(f"{field}: {label!r} is none of `labels`{hint} They are {', '.join(known)}")
