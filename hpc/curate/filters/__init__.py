"""Filters: each measures one thing of every clip, on frames of the one decode.

A filter is a module with `start(settings) -> open` (once per worker: load models here), where `open(info)` gives the
Meter of one clip. Its settings, with the limits that decide, are in hpc.curate.settings.filters.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

from hpc.curate.look import Look
from hpc.curate.settings.filters import Filters
from hpc.data.video import Video

EVERY_FRAME = 0.0
NO_FRAMES = float("inf")


class Meter(Protocol):
    """Measures one clip."""

    every: float
    """Seconds between the frames that it wants, from the clip's first on; EVERY_FRAME, NO_FRAMES. `take` may change it:
    to EVERY_FRAME for the frame right after this one, and back."""

    def take(self, look: Look, seconds: float) -> None:
        """The next frame that it wants, `seconds` after the clip's first one."""

    def scores(self) -> dict[str, float]:
        """After the last frame. Columns that could not be measured are left out."""


Open = Callable[[Video], Meter]


def start(filters: Filters) -> dict[str, Open]:
    """Name -> the opener of each filter that the settings name."""
    return {name: importlib.import_module(one.CODE).start(one) for name, one in filters.named().items()}


def judge(filters: Filters, scores: dict[str, float]) -> tuple[str, list[str]]:
    """The first filter that drops a clip with these scores ("" for none), and every limit that it breaks, in words."""
    first, reasons = "", []
    for name, one in filters.named().items():
        for column, (least, most) in one.limits().items() if one.mode == "enable" else ():
            value = scores.get(column)
            if value is not None and not least <= value <= most:
                first = first or name
                reasons.append(f"{column} {value:.6g} {'<' if value < least else '>'} {min(max(value, least), most):g}")
    return first, reasons
