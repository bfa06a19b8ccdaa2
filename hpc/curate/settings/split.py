"""Where to cut."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hpc.data.units import Seconds


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
