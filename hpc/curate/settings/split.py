"""Where to cut."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hpc.data.units import Seconds


class Threshold(NamedTuple):
    usual: float
    least: float
    most: float
    words: str


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to cut."""

    THRESHOLDS: ClassVar[dict[str, Threshold]] = {
        "transnetv2": Threshold(0.4, 0.001, 0.999, "a probability between 0 and 1"),
        "content": Threshold(27.0, 1.0, 255.0, "a mean change of 8-bit values, 1 to 255"),
        "adaptive": Threshold(3.0, 1.0, 255.0, "a ratio of changes, 1 to 255"),
    }

    detector: Literal["transnetv2", "content", "adaptive", "stride"] = "transnetv2"
    """transnetv2: at shot boundaries as the network sees them, gradual ones too. content: where hue, saturation and
    brightness change much from one frame to the next. adaptive: where they change more than around it. Both as in
    PySceneDetect 0.7. stride: every `stride` seconds."""
    threshold: float | None = None
    """What makes a cut; null is the detector's own. transnetv2: frames whose probability is above it are a transition;
    0.4, as in Cosmos-Curate (the paper has 0.5). content: the mean change, 0 to 255, that is a cut; 27. adaptive: the
    change relative to that of the two frames before and after, if it is 15 at least; 3. (PySceneDetect's defaults.)"""
    min_clip: Seconds = Seconds(2.0)
    """Shorter clips are dropped (and counted)."""
    min_frames: Annotated[int, Meta(ge=1)] = 48
    """At shots: clips of fewer frames are dropped too."""
    max_clip: Seconds = Seconds(60.0)
    """At shots: longer ones, after `crop`, are cut into pieces of this length."""
    long_shots: Literal["stride", "truncate"] = "stride"
    """stride: keep every piece of a long shot. truncate: keep its first piece only."""
    crop: Seconds = Seconds(0.5)
    """At shots: cut away at both ends of each, where transitions leave traces."""
    stride: Seconds = Seconds(10.0)
    """stride: the length of each clip."""

    @property
    def at_shots(self) -> bool:
        return self.detector != "stride"

    @property
    def cut_above(self) -> float:
        """The threshold in force."""
        return self.THRESHOLDS[self.detector].usual if self.threshold is None else self.threshold

    def __post_init__(self) -> None:
        if self.threshold is not None:
            if not self.at_shots:
                raise ValueError("threshold: detector stride has none; leave it out, or name another detector")
            usual, least, most, words = self.THRESHOLDS[self.detector]
            if not least <= self.threshold <= most:
                raise ValueError(
                    f"threshold: {self.threshold:g} is not {words}, as detector {self.detector} needs it; "
                    f"{usual:g} is usual"
                )
        longest = "max_clip" if self.at_shots else "stride"
        if getattr(self, longest) <= 0:
            raise ValueError(f"{longest}: clips of no length; give a length, e.g. 10s")
        if self.min_clip > getattr(self, longest):
            raise ValueError(
                f"min_clip: every clip would be dropped: {self.min_clip:g} s at least, and {longest} says "
                f"{getattr(self, longest):g} s at most"
            )
