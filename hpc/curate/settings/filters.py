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


class Filters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """In the order in which a dropped clip's verdict names the first that dropped it."""

    resolution: Resolution | None = None

    def named(self) -> dict[str, Any]:
        """Name -> the settings of each filter that measures."""
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: one for name, one in found.items() if one is not None and one.mode != "disable"}


FILTERS: dict[str, type[Filter]] = {"resolution": Resolution}
SCORES = {column: score for kind in FILTERS.values() for column, score in kind.SCORES.items()}
"""Of all filters: a table has all of these columns, whatever the spec enables."""
